"""Trains the adapter, and nothing else, on the LLM's own continuation of each sentence, given the speech in its place.

Encoder and LLM are frozen. The adapter sees continuations only, never an example of a task.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from models.demo.generation import transcript_rows
from models.demo.mel_augment import augment
from models.demo.prompts import ids, prompt
from models.demo.train_llm import IGNORED, reply_logits
from models.demo.utterances import Utterances, batches, encoder_lengths
from models.encoder import WhisperEncoder

SIZES = AdapterSizes(conv_kernel_sizes=(5, 5, 5), inner_dim=128)
BATCH_STATES, WIDTHS = 64 * 128, 16  # states in a batch, and what its width is a multiple of
PEAK_RATE, WARMUP = 2e-3, 100
SAVE_EVERY, LOG_EVERY = 250, 50
_ENCODE_FRAMES, _ENCODE_WIDTHS = 8000, 32

Objective = Literal["cross-entropy", "divergence"]

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
    """Writes the encoder states of the first `count` sentences of the shards, each augmented once, without masks.

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
        features = augment(batch.features, batch.frames, generator, masks=False)
        with torch.autocast("cpu", torch.bfloat16):
            _, encoded = padded.encode(encoder, features, batch.frames, 0)
        for row, index in zip(encoded.half().numpy(), indices, strict=True):
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
    """An untrained adapter whose rows have the spread of the LLM's embeddings, and keep it: the LLM was prepared for such rows."""
    adapter = ModalityAdapter(encoder_dim, model.config.hidden_size, sizes)
    torch.nn.init.constant_(adapter.speech_ln.weight, model.model.embed_tokens.weight.std().item())
    adapter.speech_ln.requires_grad_(False)
    return adapter


def train(
    speech: EncodedSpeech,
    continuations: dict[str, str],
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    run: Path,
    steps: int,
    seed: int,
    objective: Objective = "divergence",
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
        texts = [speech.texts[i] for i in chosen]
        lesson = Lesson(*speech.batch(chosen, width), texts, [continuations[text] for text in texts])
        value = continuation_loss(adapter, model, tokenizer, lesson, objective)
        torch.autograd.backward(value)
        state.take_step(adapter, optimiser, state.learning_rate(step, steps, PEAK_RATE, WARMUP))
        if (step + 1) % LOG_EVERY == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            logger.info("step %d loss %.3f, %.3f s a step", step + 1, value.item(), pace)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state.save(run, step + 1, adapter, optimiser)
    return adapter


class Lesson(NamedTuple):
    """A training step's speech, and what the LLM says after its transcripts."""

    states: Tensor
    """(batch, width, encoder_dim)"""
    lengths: Tensor
    """(batch,) real states."""
    texts: list[str]
    replies: list[str]


def continuation_loss(
    adapter: ModalityAdapter,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lesson: Lesson,
    objective: Objective,
) -> Tensor:
    """How far the LLM that hears is from the one that reads, on the continuations.

    "cross-entropy": of the continuation itself, given the speech. "divergence": the Kullback-Leibler divergence, at each of its
    tokens, from the LLM's distribution given the transcript to its distribution given the speech.
    """
    with torch.autocast("cpu", torch.bfloat16):
        heard = padded.adapt(adapter, lesson.states, lesson.lengths)
    logits, targets = reply_logits(model, *_prompts(model, tokenizer, heard, lesson.replies))
    if objective == "cross-entropy":
        return F.cross_entropy(logits, targets, ignore_index=IGNORED)
    with torch.no_grad():
        read = [transcript_rows(model, tokenizer, text) for text in lesson.texts]
        wanted, _ = reply_logits(model, *_prompts(model, tokenizer, read, lesson.replies))
    real = targets != IGNORED
    return (
        F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True).sum(-1)[real].mean()
    )


def _prompts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, slots: list[Tensor], replies: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (batch, length, dim) of the continuation prompt with the slots in it and the replies after it, labels and mask."""
    before, after = prompt(tokenizer, INSTRUCTION)
    table = model.model.embed_tokens.weight
    items, labels = [], []
    for slot, reply in zip(slots, replies, strict=True):
        target = [*ids(tokenizer, reply), tokenizer.eos_token_id]
        items.append(torch.cat([table[before], slot.float(), table[after + target]]))
        labels.append(torch.tensor([IGNORED] * (len(items[-1]) - len(target)) + target))
    return _pad(items, 0), _pad(labels, IGNORED), _pad([torch.ones(len(item)) for item in items], 0)


def _pad(items: list[Tensor], value: float) -> Tensor:
    """Stacks items of different lengths, padded to a multiple of `WIDTHS`."""
    length = -(-max(map(len, items)) // WIDTHS) * WIDTHS
    return torch.stack(
        [F.pad(item, (0, 0) * (item.dim() - 1) + (0, length - len(item)), value=value) for item in items]
    )
