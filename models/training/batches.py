"""From examples to batches: what is read, tokenized and padded, and in which order."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from models.config import PaddingPolicy
from models.encoder import encoder_length
from models.features import log_mel, n_frames
from models.manifest import Example, Objective, ReadAudio
from models.prompt import Message, Prompt, PromptBuilder, Speech

IGNORED = -100  # label of a position that is not learnt
MAX_POOL = 50  # steps that are sorted by length together, as in transformers' LengthGroupedSampler


def transcript_message(instruction: str, text: str) -> Message:
    """The user's message where the transcript stands in place of the speech (official code: data_process/asr_text_generation.py)."""
    return Message("user", [f"{instruction} {text}" if instruction else text])


@dataclass(frozen=True)
class Tokens:
    """Prompts and replies of a batch, padded; all (batch, length)."""

    ids: Tensor
    """int64; 0 where speech or padding stands."""
    is_speech: Tensor
    mask: Tensor
    """bool, False on padding."""
    labels: Tensor
    """int64; IGNORED but for the tokens of the reply and the EOS after it."""


def reply_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A reply's token ids, tokenized on its own as in the official code, and EOS."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def join_tokens(
    prompts: Sequence[Prompt], replies: Sequence[list[int]], side: Literal["left", "right"] = "right"
) -> Tokens:
    """Puts each reply (token ids with EOS) after its prompt, and pads on one side."""

    def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
        return pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=value, padding_side=side
        )

    pairs = list(zip(prompts, replies, strict=True))
    return Tokens(
        ids=pad([prompt.token_ids + reply for prompt, reply in pairs], 0),
        is_speech=pad([[not t for t in prompt.is_token] + [False] * len(reply) for prompt, reply in pairs], False),
        mask=pad([[True] * (len(prompt.token_ids) + len(reply)) for prompt, reply in pairs], False),
        labels=pad([[IGNORED] * len(prompt.token_ids) + reply for prompt, reply in pairs], IGNORED),
    )


@dataclass(frozen=True)
class Collator:
    """Makes batches of examples; runs in the workers of a DataLoader.

    `speech_length` gives the number of speech embeddings of so many samples. For examples whose objective is "kl" a batch also holds the
    prompts with the transcript in place of the speech.
    """

    read: ReadAudio
    prompts: PromptBuilder
    speech_length: Callable[[int], int]
    n_mels: int
    padding: PaddingPolicy
    instruction: str
    objective: Objective = "ce"
    places: Mapping[str, int] | None = None
    """Where the encoder's states of a recording are kept; None: recordings are read, and encoded in every step."""

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The arguments of AdapterModel.forward."""
        if self.places is None:
            batch, samples = self._features([self.read(example.audio) for example in examples])
        else:
            batch = {"places": torch.tensor([self.places[str(example.audio)] for example in examples])}
            samples = [example.samples for example in examples]
        replies = [reply_ids(self.prompts.tokenizer, example.continuation) for example in examples]
        told = [self.instruction if e.instruction is None else e.instruction for e in examples]
        speech = join_tokens([self.speech_prompt(*pair) for pair in zip(samples, told, strict=True)], replies)
        batch |= {
            "input_ids": speech.ids,
            "is_speech": speech.is_speech,
            "attention_mask": speech.mask,
            "labels": speech.labels,
        }
        compared = [(e.loss or self.objective) == "kl" for e in examples]
        if any(compared):
            prompts = [self.text_prompt(e.text, t) for e, t in zip(examples, told, strict=True)]
            text = join_tokens(list(compress(prompts, compared)), list(compress(replies, compared)))
            batch |= {"text_ids": text.ids, "text_mask": text.mask, "text_labels": text.labels}
            batch["compared"] = torch.tensor(compared)
        return batch

    def _features(self, audio: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[int]]:
        """The log-mel features of recordings, and their numbers of samples."""
        features = [log_mel(a, self.n_mels, pad_to_window=self.padding == "30s") for a in audio]
        batch = {
            "features": pad_sequence([f.T for f in features], batch_first=True).transpose(1, 2),
            "frames": torch.tensor([f.shape[1] for f in features]),
            "lengths": torch.tensor([encoder_length(n_frames(len(a))) for a in audio]),
        }
        return batch, [len(a) for a in audio]

    def speech_prompt(self, n_samples: int, instruction: str) -> Prompt:
        """The prompt around speech of so many samples, whose rows the model fills in."""
        rows = torch.zeros(self.speech_length(n_samples), self.prompts.llm_dim)
        return self.prompts.build([Message("user", [instruction, Speech(rows)])])

    def text_prompt(self, text: str, instruction: str) -> Prompt:
        """The prompt with the transcript."""
        return self.prompts.build([transcript_message(instruction, text)])


class LengthSampler(Sampler[int]):
    """Indices in an order in which every `unit` neighbours are of similar length: one step of all processes.

    The order depends on `seed` and on what `epoch()` gives when an epoch begins, and on nothing else, so that a resumed run goes on in it.
    """

    def __init__(self, lengths: Sequence[int], unit: int, seed: int, epoch: Callable[[], int]) -> None:
        self._lengths = np.asarray(lengths)
        self._unit = unit
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self._seed, self._epoch()])
        shuffled = rng.permutation(len(self))
        pool = self._unit * min(
            MAX_POOL, max(1, len(self) // (4 * self._unit))
        )  # fewer than all, or no epoch mixes anew
        pools = np.split(shuffled, range(pool, len(self), pool))
        by_length = np.concatenate([pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools])
        full = len(self) // self._unit * self._unit
        batches = rng.permutation(by_length[:full].reshape(-1, self._unit))
        yield from np.concatenate([batches.ravel(), by_length[full:]]).tolist()
