"""Trains the adapter, and nothing else: cross-entropy on the LLM's own continuation of a sentence, given the speech in its place.

Encoder and LLM are frozen. The adapter sees continuations only, never an example of a task.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.adapter import ModalityAdapter
from models.config import AdapterSizes
from models.demo import padded, state
from models.demo.continuations import INSTRUCTION
from models.demo.mel_augment import augment
from models.demo.prompts import ids, prompt
from models.demo.train_llm import IGNORED, loss
from models.demo.utterances import Utterances, batches, encoder_lengths
from models.encoder import WhisperEncoder

SIZES = AdapterSizes(conv_kernel_sizes=(5, 5, 5), inner_dim=128)
BATCH_STATES, WIDTHS = 64 * 128, 16  # states in a batch, and what its width is a multiple of
PEAK_RATE, WARMUP = 2e-3, 100
SAVE_EVERY, LOG_EVERY = 250, 50
_ENCODE_FRAMES, _ENCODE_WIDTHS = 8000, 32

logger = logging.getLogger(__name__)


class EncodedSpeech(NamedTuple):
    """Encoder states of many utterances, one after the other, and what is said in each."""

    states: NDArray[np.float16]
    """(all states, dim)"""
    starts: NDArray[np.int64]
    """(utterances + 1,)"""
    texts: list[str]

    def batch(self, indices: NDArray[np.int64], width: int) -> tuple[Tensor, Tensor]:
        """float32 (batch, width, dim) of the utterances at `indices`, zeros behind the real states, and how many are real."""
        states = torch.zeros(len(indices), width, self.states.shape[1])
        lengths = self.starts[indices + 1] - self.starts[indices]
        for row, index in enumerate(indices):
            states[row, : lengths[row]] = torch.from_numpy(
                self.states[self.starts[index] : self.starts[index + 1]].copy()
            )
        return states, torch.from_numpy(lengths)

    @classmethod
    def load(cls, folder: Path) -> "EncodedSpeech":
        """Reads what `encode` wrote; the states stay on disk."""
        texts = (folder / "texts.txt").read_text().splitlines()
        return cls(np.load(folder / "states.npy", mmap_mode="r"), np.load(folder / "starts.npy"), texts)


@torch.inference_mode()
def encode(encoder: WhisperEncoder, shards: Path, folder: Path, count: int, seed: int) -> None:
    """Writes the encoder states of the first `count` sentences of the shards, each augmented once.

    `texts.txt` comes last: where it is, all is there.
    """
    utterances = Utterances.load(shards)
    chosen = np.array([i for i in range(len(utterances.place)) if utterances.is_sentence(i)][:count])
    lengths = encoder_lengths(utterances.frames[chosen])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    folder.mkdir(parents=True, exist_ok=True)
    shape = (int(starts[-1]), encoder.config.d_model)
    states: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        folder / "states.npy", mode="w+", dtype=np.float16, shape=shape
    )
    generator = torch.Generator().manual_seed(seed)
    for indices, width in _in_order(utterances.frames[chosen]):
        batch = utterances.batch(chosen[indices], width)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = (
                padded.encode(encoder, augment(batch.features, batch.frames, generator), batch.frames, 0)[1]
                .half()
                .numpy()
            )
        for row, index in zip(encoded, indices, strict=True):
            states[starts[index] : starts[index + 1]] = row[: lengths[index]]
    states.flush()
    np.save(folder / "starts.npy", starts)
    (folder / "texts.txt").write_text("".join(utterances.text(int(i)) + "\n" for i in chosen))


def _in_order(frames: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """All utterances, those of like length together, with the width of each batch."""
    order = np.argsort(frames, kind="stable")
    done = 0
    while done < len(order):
        width = -(-int(frames[order[done]]) // _ENCODE_WIDTHS) * _ENCODE_WIDTHS
        size = min(_ENCODE_FRAMES // width, int(np.sum(frames <= width)) - done)
        yield order[done : done + size], width
        done += size


def new_adapter(encoder_dim: int, model: LlamaForCausalLM, sizes: AdapterSizes) -> ModalityAdapter:
    """An untrained adapter whose rows have the spread of the LLM's embeddings."""
    adapter = ModalityAdapter(encoder_dim, model.config.hidden_size, sizes)
    torch.nn.init.constant_(adapter.speech_ln.weight, float(model.model.embed_tokens.weight.std()))
    return adapter


def train(
    speech: EncodedSpeech,
    continuations: dict[str, str],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    run: Path,
    steps: int,
    seed: int,
    sizes: AdapterSizes = SIZES,
) -> ModalityAdapter:
    """Trains for `steps` steps on the utterances that have a continuation, or goes on where the run in the file `run` was cut off."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model.requires_grad_(False)
    adapter = new_adapter(speech.states.shape[1], model, sizes)
    optimiser = state.optimizer(adapter, PEAK_RATE)
    first = state.resume(run, adapter, optimiser)
    usable = np.array([i for i, text in enumerate(speech.texts) if text in continuations])
    order = batches(np.diff(speech.starts)[usable], BATCH_STATES, WIDTHS, seed, first)
    began = time.monotonic()
    for step in range(first, steps):
        indices, width = next(order)
        chosen = usable[indices]
        replies = [continuations[speech.texts[i]] for i in chosen]
        value = continuation_loss(adapter, model, tokenizer, *speech.batch(chosen, width), replies)
        torch.autograd.backward(value)
        state.take_step(adapter, optimiser, state.learning_rate(step, steps, PEAK_RATE, WARMUP))
        if (step + 1) % LOG_EVERY == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            logger.info("step %d loss %.3f, %.3f s a step", step + 1, value.item(), pace)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state.save(run, step + 1, adapter, optimiser)
    return adapter


def continuation_loss(
    adapter: ModalityAdapter,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    states: Tensor,
    lengths: Tensor,
    replies: list[str],
) -> Tensor:
    """The loss of the replies given the continuation prompt with speech in it, for encoder states (batch, width, encoder_dim)."""
    with torch.autocast("cpu", torch.bfloat16):
        rows = padded.adapt(adapter, states, lengths)
    before, after = prompt(tokenizer, INSTRUCTION)
    table = model.model.embed_tokens.weight
    items, labels = [], []
    for row, reply in zip(rows, replies, strict=True):
        target = [*ids(tokenizer, reply), tokenizer.eos_token_id]
        items.append(torch.cat([table[before], row.float(), table[after + target]]))
        labels.append(torch.tensor([IGNORED] * (len(items[-1]) - len(target)) + target))
    mask = _pad([torch.ones(len(item)) for item in items], 0)
    return loss(model, _pad(items, 0), _pad(labels, IGNORED), mask)


def _pad(items: list[Tensor], value: float) -> Tensor:
    """Stacks items of different lengths, padded to a multiple of `WIDTHS`."""
    length = -(-max(map(len, items)) // WIDTHS) * WIDTHS
    return torch.stack(
        [F.pad(item, (0, 0) * (item.dim() - 1) + (0, length - len(item)), value=value) for item in items]
    )
