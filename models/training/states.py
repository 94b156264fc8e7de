"""The frozen encoder's states of a training's recordings: computed once, kept on disk or on the GPU, so that no step runs the encoder."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.encoder import encoder_length
from models.embedder import Embedder
from models.features import SAMPLE_RATE, log_mels, n_frames
from models.training.manifest import AudioSpan, ReadAudio

CHUNK = 2048  # recordings that are sorted by length together; a killed run begins again with its chunk
BATCH_SECONDS = {"cpu": 20, "cuda": 1200}  # of audio that are encoded together
CONTENT, PROGRESS = "states.f16", "states.json"


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

    def batch(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The states of some recordings (batch, length, d_model), with anything behind the lengths (batch,), on the states' device."""
        places = places.to(self.bounds.device)
        starts = self.bounds[places]
        lengths = self.bounds[places + 1] - starts
        index = starts[:, None] + torch.arange(int(lengths.max()), device=starts.device)
        return self.content[index.clamp(max=len(self.content) - 1)], lengths


def keep_states(
    recordings: Iterable[Heard],
    read: ReadAudio,
    embedder: Embedder,
    folder: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncoderStates:
    """Encodes every recording once, into `folder` or, where it is None, into the memory of the embedder's device.

    A killed run goes on in the same folder; one that was made of other recordings or by another encoder is made anew. `progress` hears of
    the recordings done and of all. 1 kB a position of 512 dimensions, 50 positions a second: 180 MB an hour.
    """
    heard = list({str(item.audio): item for item in recordings}.values())
    lengths = [encoder_length(n_frames(item.samples)) for item in heard]
    bounds = torch.tensor([0, *np.cumsum(lengths).tolist()])
    width = embedder.encoder.config.d_model
    key = _fingerprint(heard, embedder)
    if folder is None:
        content = torch.empty(int(bounds[-1]), width, dtype=torch.float16, device=embedder.device)
        done = 0
    else:
        content, done = _open(folder, key, (int(bounds[-1]), width))
    for begin in range(done, len(heard), CHUNK):
        end = min(begin + CHUNK, len(heard))
        for places in _batches(lengths, range(begin, end), embedder.device.type):
            windows = [read(heard[i].audio)[: heard[i].samples] for i in places]
            for i, states in zip(places, encode(embedder, windows), strict=True):
                content[int(bounds[i]) : int(bounds[i + 1])] = states.to(content.device, torch.float16)
        if folder is not None:
            _note(folder, key, end)
        progress(end, len(heard))
    return EncoderStates(content, bounds.to(content.device), {str(item.audio): i for i, item in enumerate(heard)})


@torch.inference_mode()
def encode(embedder: Embedder, windows: Sequence[Tensor]) -> list[Tensor]:
    """Windows of samples (n_i,) -> the encoder's states (encoder_length_i, d_model), as the padding policy has them."""
    samples = [window.to(embedder.device, torch.float32) for window in windows]
    exact = embedder.padding == "exact"
    features = log_mels(samples, embedder.encoder.config.num_mel_bins) if exact else [embedder.features(w) for w in samples]
    states = embedder.encode(features)
    return [s[: encoder_length(n_frames(len(w)))] for s, w in zip(states, windows, strict=True)]


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


def _fingerprint(heard: Sequence[Heard], embedder: Embedder) -> str:
    """What the states depend on."""
    digest = hashlib.sha256(embedder.padding.encode())
    for item in heard:
        digest.update(f"{item.audio} {item.samples}\n".encode())
    weights = nn.utils.parameters_to_vector(embedder.encoder.conv1.parameters()).float().cpu()
    digest.update(weights.numpy().tobytes())
    return digest.hexdigest()


def _open(folder: Path, key: str, shape: tuple[int, int]) -> tuple[Tensor, int]:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        note = json.loads((folder / PROGRESS).read_bytes())
        done = int(note["done"]) if note["key"] == key else 0
    except (OSError, ValueError, KeyError):
        done = 0
    mode = "r+" if done else "w+"
    content = np.memmap(folder / CONTENT, np.float16, mode, shape=shape)
    return torch.from_numpy(content), done


def _note(folder: Path, key: str, done: int) -> None:
    partial = folder / f".{PROGRESS}"
    partial.write_text(json.dumps({"key": key, "done": done}))
    partial.replace(folder / PROGRESS)
