"""The frozen encoder's states of a training's recordings: computed once, kept on disk or on the GPU, so that no step runs the encoder."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.adapter import real_positions
from models.embedder import Embedder
from models.encoder import encoder_length
from models.features import SAMPLE_RATE, log_mels, n_frames
from models.manifest import AudioSpan, InputError, ReadAudio

CHUNK = 2048  # recordings that are sorted by length together; a killed run begins again with its chunk
BATCH_SECONDS = {"cpu": 20, "cuda": 1200}  # of audio that are encoded together
CONTENT, NOTE = "states.f16", "states.json"

Progress = Callable[[int, int], None]
"""Hears how many recordings are encoded, and of how many."""


class Heard(NamedTuple):
    """A recording and its number of samples."""

    audio: AudioSpan
    samples: int


@dataclass(frozen=True)
class EncoderStates:
    """States (positions of all recordings, d_model) float16 after each other; recording i has those from bounds[i] to bounds[i + 1]."""

    content: Tensor
    bounds: Tensor
    places: dict[str, int]
    """Which recording stands at which place, by its span."""

    def to(self, device: torch.device) -> "EncoderStates":
        """The same on another device."""
        return EncoderStates(self.content.to(device), self.bounds.to(device), self.places)

    def batch(self, places: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The states of some recordings (batch, length, d_model), with anything behind the lengths (batch,), on the device of `places`."""
        here, places = places.device, places.to(self.bounds.device)
        starts = self.bounds[places]
        lengths = self.bounds[places + 1] - starts
        index = starts[:, None] + torch.arange(int(lengths.max()), device=starts.device)
        states = self.content[index.clamp(max=len(self.content) - 1)]
        return states.to(here, dtype), lengths.to(here)


def keep_states(
    recordings: Iterable[Heard],
    read: ReadAudio,
    embedder: Embedder,
    folder: Path | None,
    progress: Progress = lambda done, total: None,
) -> EncoderStates:
    """Encodes every recording once, into `folder` or, where it is None, into the memory of the embedder's device.

    What the folder holds already is not encoded again, be it of a killed run or of another training; where another encoder made it, it is
    made anew. `progress` hears of the recordings done and of all. 1 kB a position of 512 dimensions, 50 positions a second: 180 MB an hour.
    """
    note = _Note(folder, _fingerprint(embedder))
    there = note.read()
    if not there:
        note.forget()  # or, after a kill, it would still tell what had been there of what is overwritten
    heard = list(dict.fromkeys([*there, *recordings]))
    lengths = [encoder_length(n_frames(item.samples)) for item in heard]
    bounds = torch.tensor([0, *np.cumsum(lengths).tolist()])
    shape = (int(bounds[-1]), embedder.encoder.config.d_model)
    content = (
        torch.empty(shape, dtype=torch.float16, device=embedder.device) if folder is None else _open(folder, shape)
    )
    if len(there) < len(heard):
        progress(len(there), len(heard))
    for begin in range(len(there), len(heard), CHUNK):
        end = min(begin + CHUNK, len(heard))
        for places in _batches(lengths, range(begin, end), embedder.device.type):
            windows = [_whole(heard[i], read) for i in places]
            at = torch.cat([torch.arange(int(bounds[i]), int(bounds[i + 1])) for i in places])
            content[at.to(content.device)] = encode(embedder, windows).to(content.device, torch.float16)
        note.write(heard[:end])
        progress(end, len(heard))
    return EncoderStates(content, bounds.to(content.device), {str(item.audio): i for i, item in enumerate(heard)})


def _whole(heard: Heard, read: ReadAudio) -> Tensor:
    """The samples (n,) of a recording; raises InputError where it has not as many as was said."""
    samples = read(heard.audio)[: heard.samples]
    if len(samples) < heard.samples:
        raise InputError(f"{heard.audio}: it has {len(samples)} samples, not {heard.samples}")
    return samples


@torch.inference_mode()
def encode(embedder: Embedder, windows: Sequence[Tensor]) -> Tensor:
    """Windows of samples (n_i,) -> the encoder's states of all after each other (sum of encoder_length_i, d_model)."""
    samples = [window.to(embedder.device, torch.float32) for window in windows]
    exact = embedder.padding == "exact"
    features = (
        log_mels(samples, embedder.encoder.config.num_mel_bins) if exact else [embedder.features(w) for w in samples]
    )
    frames = torch.tensor([item.shape[1] for item in features])
    if embedder.device.type == "cuda":
        batch = nn.utils.rnn.pad_sequence([item.T for item in features], batch_first=True).transpose(1, 2)
        states = embedder.encoder.padded(batch.to(embedder.dtype), frames)
    else:
        states = embedder.encode(features)
    lengths = torch.tensor([encoder_length(n_frames(len(window))) for window in windows])
    return states[real_positions(states, lengths.to(states.device))]


def _batches(lengths: Sequence[int], places: range, device: str) -> Iterator[list[int]]:
    """Recordings of similar length, of so many seconds together that one batch keeps the device busy."""
    budget = BATCH_SECONDS.get(device, 1200) * SAMPLE_RATE // 320  # positions
    batch: list[int] = []
    for i in sorted(places, key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _fingerprint(embedder: Embedder) -> str:
    """What the states depend on beside the recordings."""
    digest = hashlib.sha256(embedder.padding.encode())
    for weights in embedder.encoder.parameters():
        digest.update(weights.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _open(folder: Path, shape: tuple[int, int]) -> Tensor:
    """The file of the states, as it is, with room for all."""
    file = folder / CONTENT
    file.touch()
    os.truncate(file, shape[0] * shape[1] * 2)
    return torch.from_numpy(np.memmap(file, np.float16, "r+", shape=shape))


@dataclass(frozen=True)
class _Note:
    """Which recordings' states a folder holds, in their order, and which encoder made them; without a folder, none."""

    folder: Path | None
    encoder: str

    def read(self) -> list[Heard]:
        """The recordings; none where nothing is there, or another encoder's."""
        if self.folder is None:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            note = json.loads((self.folder / NOTE).read_bytes())
        except (OSError, ValueError):
            return []
        if note["encoder"] != self.encoder:
            return []
        return [
            Heard(AudioSpan(Path(path), start, frames), samples) for path, start, frames, samples in note["recordings"]
        ]

    def forget(self) -> None:
        """Removes it."""
        if self.folder is not None:
            (self.folder / NOTE).unlink(missing_ok=True)

    def write(self, heard: Sequence[Heard]) -> None:
        """Says so; a kill leaves the old note or the new one."""
        if self.folder is None:
            return
        partial = self.folder / f".{NOTE}"
        recordings = [(str(item.audio.path), *item.audio[1:], item.samples) for item in heard]
        partial.write_text(json.dumps({"encoder": self.encoder, "recordings": recordings}))
        partial.replace(self.folder / NOTE)
