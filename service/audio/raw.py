"""Samples that no file is around, as sockets bring them: PCM and G.711, piece by piece, to mono 16 kHz and back."""

from fractions import Fraction
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.packet import Packet

from service.audio.decode import SAMPLE_RATE

Coding = Literal["pcm_s16le", "pcm_mulaw", "pcm_alaw"]
SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_mulaw": 1, "pcm_alaw": 1}
FULL_SCALE = 1 << 15

Samples = npt.NDArray[np.float32]


class RawDecoder:
    """Bytes of one stream, in pieces of any size, to float32 samples (n,) at 16 kHz, full scale = 1.0.

    The resampler keeps back less than a millisecond.
    """

    def __init__(self, coding: Coding, rate: int) -> None:
        self._codec = _codec(coding, "r", rate)
        self._resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        self._sample_bytes = SAMPLE_BYTES[coding]
        self._rest = b""

    def decode(self, data: bytes) -> Samples:
        """The samples that a further piece completes."""
        data = self._rest + data
        end = len(data) - len(data) % self._sample_bytes
        data, self._rest = data[:end], data[end:]
        if not data:
            return np.empty(0, np.float32)
        frames = [resampled for frame in self._codec.decode(Packet(data)) for resampled in self._resample(frame)]
        return np.concatenate([frame.to_ndarray()[0] for frame in frames]) if frames else np.empty(0, np.float32)

    def _resample(self, frame: AudioFrame) -> list[AudioFrame]:
        frame.pts = None  # else the resampler waits for what was never there
        return self._resampler.resample(frame)


def encode(samples: Samples, coding: Coding, rate: int) -> bytes:
    """The bytes of float32 samples (n,) at 16 kHz."""
    if not len(samples):
        return b""
    whole = np.clip(np.round(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    frame = AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    resampler = AudioResampler(format="s16", layout="mono", rate=rate)
    codec = _codec(coding, "w", rate)
    packets = [
        packet
        for resampled in (*resampler.resample(frame), *resampler.resample(None))
        for packet in codec.encode(resampled)
    ]
    return b"".join(map(bytes, packets))


def _codec(coding: Coding, mode: Literal["r", "w"], rate: int) -> AudioCodecContext:
    codec = av.CodecContext.create(coding, mode)
    assert isinstance(codec, AudioCodecContext)
    codec.sample_rate = rate
    codec.layout = "mono"
    if mode == "w":
        codec.format = "s16"
        codec.time_base = Fraction(1, rate)
    return codec
