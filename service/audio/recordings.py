"""Recordings on disk, as manifests name them, to samples."""

import io
import math
import wave
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from models.features import SAMPLE_RATE
from models.manifest import AudioSpan
from service.audio.decode import decode
from service.errors import InvalidAudio


def read_samples(span: AudioSpan) -> Tensor:
    """The samples (n,) of a span, float32 at 16 kHz.

    Raises OSError where the file can't be read, NotAudio or InvalidAudio where it can't be decoded or ends before the span begins.
    """
    samples = _seek_wave(span)
    if samples is None:
        samples = _decode(span)
    if not len(samples):
        raise InvalidAudio(f"{span}: the file ends before this piece begins.")
    return torch.from_numpy(samples)


def open_recording(span: AudioSpan) -> BinaryIO:
    """The span as a file of any audio format: a whole recording as it is, a piece as wav; raises as read_samples."""
    return span.path.open("rb") if span.frames is None else io.BytesIO(as_wav(read_samples(span)))


def as_wav(samples: Tensor) -> bytes:
    """A 16-bit wav file of samples (n,)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes((samples * 32768).round().clamp(-32768, 32767).short().numpy().tobytes())
    return file.getvalue()


def _decode(span: AudioSpan) -> np.ndarray:
    """Decodes to the span's end: from its start in FLAC and WAV files at 16 kHz, from the file's start in any other."""
    chunks = [np.empty(0, np.float32)]
    length = 0
    with span.path.open("rb") as file:
        for chunk in decode(file, max_seconds=math.inf, start=span.start):
            chunks.append(chunk)
            length += len(chunk)
            if span.frames is not None and length >= span.frames:
                break
    return np.concatenate(chunks)[: span.frames]


def _seek_wave(span: AudioSpan) -> np.ndarray | None:
    """A piece of a 16-bit mono wav file at 16 kHz, however long the file; None for any other file or a whole one."""
    if span.frames is None or not _is_plain_wave(span.path):
        return None
    with wave.open(str(span.path)) as file:
        file.setpos(min(span.start, file.getnframes()))
        pcm = np.frombuffer(file.readframes(span.frames), "<i2")
    return pcm.astype(np.float32) / np.float32(32768)


def _is_plain_wave(path: Path) -> bool:
    try:
        with wave.open(str(path)) as file:
            return (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (SAMPLE_RATE, 1, 2)
    except (wave.Error, EOFError):
        return False
