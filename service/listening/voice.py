"""Where in a stream of samples somebody speaks: Silero's detector, which all streams share.

Its network looks at one frame of each stream at a time; the frames of all streams that wait are looked at together. What is there as a
whole is looked at as a whole.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from silero_vad import load_silero_vad
from torch import Tensor, nn
from torch.nn import functional as F

from service.audio.raw import Samples

FRAME = 512  # samples at 16 kHz: 32 ms
AT_ONCE = 32  # frames of a stream, before others have their turn
CONTEXT = 64  # samples of the frame before, which the network looks at again
STATE = (2, 1, 128)


@dataclass(eq=False)
class Voice:
    """What the detector remembers of one stream."""

    context: Tensor = field(default_factory=lambda: torch.zeros(CONTEXT))
    state: Tensor = field(default_factory=lambda: torch.zeros(STATE))
    rest: Samples = field(default_factory=lambda: np.empty(0, np.float32))
    """Samples that are no whole frame yet."""


@dataclass(eq=False)
class _Piece:
    """Frames (n, FRAME) of a stream that wait."""

    voice: Voice
    frames: Tensor
    found: asyncio.Future[list[float]]


class Detector:
    """Tells of each frame how probably it is speech. Belongs to one event loop, but for `speech`, which any thread may call."""

    def __init__(self) -> None:
        self._network = load_silero_vad()._model
        self._memory = nn.LSTM(STATE[-1], STATE[-1])  # the network's, for all frames in one go
        self._memory.load_state_dict({f"{k}_l0": v for k, v in self._network.decoder.rnn.state_dict().items()})
        self._thread = ThreadPoolExecutor(
            1, thread_name_prefix="voice", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._waiting: list[_Piece] = []
        self._running: asyncio.Task[None] | None = None

    @torch.inference_mode()
    def speech(self, samples: Samples) -> float:
        """How probably somebody speaks in samples (n,) at 16 kHz, n > 0: the highest probability of any frame, the last filled up.

        Works in the calling thread.
        """
        frames = F.pad(torch.from_numpy(samples), (CONTEXT, -len(samples) % FRAME)).unfold(0, CONTEXT + FRAME, FRAME)
        looked = self._network.encoder(self._network.stft(frames))  # (frames, 128, 1)
        remembered, _ = self._memory(looked[..., 0])  # (frames, 128)
        return float(self._network.decoder.decoder(remembered[..., None]).max())

    async def listen(self, voice: Voice, samples: Samples) -> tuple[Samples, list[float]]:
        """Takes more samples (n,) of a stream at 16 kHz.

        Returns the whole frames (m, FRAME) that there are now, and of each the probability that it is speech. One call of a stream at a
        time.
        """
        samples = np.concatenate([voice.rest, samples])
        end = len(samples) - len(samples) % FRAME
        voice.rest = samples[end:].copy()  # without all that came before it
        frames = samples[:end].reshape(-1, FRAME)
        if not end:
            return frames, []
        found: list[float] = []
        for begin in range(0, len(frames), AT_ONCE):
            found += await self._heard(voice, frames[begin : begin + AT_ONCE])
        return frames, found

    async def _heard(self, voice: Voice, frames: Samples) -> list[float]:
        piece = _Piece(voice, torch.from_numpy(frames), asyncio.get_running_loop().create_future())
        self._waiting.append(piece)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run(), name="voice")
        return await piece.found

    async def _run(self) -> None:
        while self._waiting:
            pieces, self._waiting = self._waiting, []
            try:
                found = await asyncio.get_running_loop().run_in_executor(self._thread, self._look, pieces)
            except Exception as error:
                for piece in pieces:
                    if not piece.found.done():
                        piece.found.set_exception(error)
                continue
            for piece, probabilities in zip(pieces, found, strict=True):
                if not piece.found.done():
                    piece.found.set_result(probabilities)

    @torch.inference_mode()
    def _look(self, pieces: list[_Piece]) -> list[list[float]]:
        """The first frames of all pieces together, then the second ones of those that have them, and so on."""
        found: list[list[float]] = [[] for _ in pieces]
        for at in range(max(len(piece.frames) for piece in pieces)):
            some = [i for i, piece in enumerate(pieces) if at < len(piece.frames)]
            voices = [pieces[i].voice for i in some]
            frames = [pieces[i].frames[at] for i in some]
            batch = torch.stack([torch.cat([v.context, f]) for v, f in zip(voices, frames, strict=True)])
            probabilities, states = self._network(batch, torch.cat([v.state for v in voices], dim=1))
            for i, voice, frame, probability, state in zip(
                some, voices, frames, probabilities[:, 0].tolist(), states.split(1, dim=1), strict=True
            ):
                voice.context, voice.state = frame[-CONTEXT:].clone(), state
                found[i].append(probability)
        return found

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@dataclass
class Turns:
    """Silero's rule for the turns of a speaker, over the probabilities of frame after frame.

    A turn begins with a frame of at least `threshold`; it ends when `silence` frames have passed since one fell below that by `HYSTERESIS`,
    or below `LEAST`, and none has reached it again.
    """

    threshold: float
    silence: int
    speaking: bool = False
    quiet: int = 0
    """How many frames it has been quiet for while in a turn."""

    HYSTERESIS = 0.15
    LEAST = 0.01

    def reset(self) -> None:
        """Nobody speaks."""
        self.speaking, self.quiet = False, 0

    def hear(self, probability: float) -> bool | None:
        """Takes a frame. True: a turn begins with it; False: one ends with it; None: neither."""
        if probability >= self.threshold:
            self.quiet = 0
            began = not self.speaking
            self.speaking = True
            return True if began else None
        if not self.speaking:
            return None
        if self.quiet or probability < max(self.threshold - self.HYSTERESIS, self.LEAST):
            self.quiet += 1
        if self.quiet < self.silence:
            return None
        self.reset()
        return False


def frames_in(milliseconds: float) -> int:
    """How many frames last that long, at least one."""
    return max(1, round(milliseconds / 1000 * 16000 / FRAME))
