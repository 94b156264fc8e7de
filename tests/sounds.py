"""Sounds for tests."""

import io
import wave

import av
import numpy as np
import numpy.typing as npt

RATE = 16_000


def voice(seconds: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """Something speech-like (samples,): a gliding tone with overtones under a slow envelope, and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = 110 + 40 * rng.random() + 30 * np.sin(2 * np.pi * (0.4 + rng.random()) * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    tone = sum(np.sin(k * phase) / k for k in range(1, 12))
    envelope = 0.5 + 0.5 * np.sin(2 * np.pi * (2 + rng.random()) * t)
    return (0.1 * tone * envelope + 0.005 * rng.normal(size=len(t))).astype(np.float32)


def wav(samples: npt.NDArray[np.float32], rate: int = RATE) -> bytes:
    """A 16-bit mono wav file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def encoded(container: str, codec: str, seconds: float, rate: int = 48_000) -> bytes:
    """A tone as any container and codec that PyAV writes."""
    return encode(container, codec, 8000 / 32767 * np.sin(np.arange(round(seconds * rate)) * 0.05), rate)


def encode(container: str, codec: str, samples: npt.NDArray[np.floating], rate: int = RATE) -> bytes:
    """Samples (n,), of 16 bits, as any container and codec that PyAV writes."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        assert isinstance(stream, av.AudioStream)
        pcm = (samples.clip(-1, 1) * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    return file.getvalue()
