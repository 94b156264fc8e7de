"""What a session hears: bytes as they come, cut into utterances by their silences or by the client."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from models.features import SAMPLE_RATE
from service.audio.raw import RawDecoder, Samples
from service.listening.listener import Listener, Recording
from service.listening.voice import FRAME, Detector, Turns, Voice, frames_in
from service.realtime.config import AudioInput, TurnDetection
from service.realtime.protocol import RealtimeError
from service.realtime.utterance import Ahead, Utterance
from service.telemetry import metrics

LEAST_SECONDS = 0.096  # of an utterance that a client commits: 100 ms in whole frames
FRAME_MS = 1000 * FRAME / SAMPLE_RATE


@dataclass(frozen=True, eq=False)
class Said:
    """An utterance that has ended."""

    samples: Samples
    recording: asyncio.Task[Recording]
    ended: float
    """When it was known to have ended, by time.perf_counter."""


class Ear:
    """Hears one session, one call at a time.

    `reader` gives what has the LLM read the rows (n, llm_dim) of an utterance that begins, while it goes on. Where the client's turns are
    told here, `began` hears where in all of the session's audio one begins and `ended` where it ends (milliseconds); the latter commits it.
    """

    def __init__(
        self,
        listener: Listener,
        detector: Detector,
        config: AudioInput,
        max_seconds: float,
        *,
        reader: Callable[[], Ahead] | None,
        began: Callable[[int], None],
        ended: Callable[[int], None],
    ) -> None:
        self._listener = listener
        self._detector = detector
        self._max_seconds = max_seconds
        self._reader, self._began, self._ended = reader, began, ended
        self._voice = Voice()
        self._n_samples = 0  # of the whole session
        self._utterance: Utterance | None = None
        self._format = config.format
        self._decoder = RawDecoder(*config.format.coding())
        self._turns: Turns | None = None
        self._before: deque[Samples] = deque()  # the last frames before a turn
        self._set_turns(config.turn_detection)

    def set(self, config: AudioInput) -> None:
        """Hears on with other settings; what was not committed is forgotten where its form, or who tells the turns, changes."""
        if config.format != self._format or (config.turn_detection is None) != (self._turns is None):
            self.clear()
            self._format = config.format
            self._decoder = RawDecoder(*config.format.coding())
        self._set_turns(config.turn_detection)

    def _set_turns(self, detection: TurnDetection | None) -> None:
        if detection is None:
            self._turns = None
            return
        threshold, silence = detection.threshold, frames_in(detection.silence_duration_ms)
        self._turns = replace(self._turns or Turns(threshold, silence), threshold=threshold, silence=silence)
        self._before = deque(self._before, maxlen=round(detection.prefix_padding_ms / FRAME_MS))

    async def take(self, data: bytes) -> None:
        """Hears more. Raises RealtimeError where an utterance that the client has to commit becomes too long."""
        waiting = self._utterance.n_samples / SAMPLE_RATE if self._utterance else 0.0
        if self._turns is None and waiting > self._max_seconds:
            raise RealtimeError(
                f"The buffer holds {waiting:.0f} s of audio; commit or clear it: it may hold {self._max_seconds:g} s.",
                code="input_audio_buffer_full",
                param="audio",
            )
        samples = self._decoder.decode(data)
        for frame, probability in zip(*await self._detector.listen(self._voice, samples), strict=True):
            await self._hear(frame, probability)

    async def _hear(self, frame: Samples, probability: float) -> None:
        self._n_samples += FRAME
        change = self._turns.hear(probability) if self._turns else None
        if change:
            self._utterance = self._begin()
            self._began(self._milliseconds - round((1 + len(self._before)) * FRAME_MS))
            for before in self._before:
                await self._utterance.add(before, 0.0)
            self._before.clear()
        elif self._utterance is None and self._turns is None:
            self._utterance = self._begin()
        if self._utterance is None:
            self._before.append(frame.copy())  # without all that came with it
            return
        await self._utterance.add(frame, probability)
        too_long = self._turns is not None and self._utterance.n_samples > self._max_seconds * SAMPLE_RATE
        if change is False or too_long:
            self._ended(self._milliseconds)

    @property
    def _milliseconds(self) -> int:
        return round(1000 * self._n_samples / SAMPLE_RATE)

    def _begin(self) -> Utterance:
        return Utterance(self._listener.hear_samples, self._reader() if self._reader else None)

    def check_commit(self) -> None:
        """Raises RealtimeError where nothing, or next to nothing, was said."""
        seconds = self._utterance.n_samples / SAMPLE_RATE if self._utterance else 0.0
        if seconds < LEAST_SECONDS:
            raise RealtimeError(
                f"The buffer holds {1000 * seconds:.0f} ms of audio; an utterance has 100 ms at least.",
                code="input_audio_buffer_commit_empty",
            )

    def commit(self) -> Said:
        """Ends the utterance, which there is."""
        assert self._utterance is not None
        utterance, self._utterance = self._utterance, None
        tail = self._voice.rest[:0]  # what makes no frame yet belongs to what comes, unless the client ends it
        if self._turns is None:
            tail, self._voice.rest = self._voice.rest, tail
            self._n_samples += len(tail)
        n_samples = utterance.n_samples + len(tail)
        if self._turns:
            self._turns.reset()
        ahead = utterance.encoded_samples / SAMPLE_RATE
        metrics.REALTIME_AUDIO_SECONDS.labels("ahead").inc(ahead)
        metrics.REALTIME_AUDIO_SECONDS.labels("after").inc(max(0.0, n_samples / SAMPLE_RATE - ahead))
        samples = np.concatenate([utterance.samples, tail])
        return Said(samples, asyncio.create_task(utterance.finish(tail)), time.perf_counter())

    def clear(self) -> None:
        """Forgets what was not committed."""
        if self._utterance:
            self._utterance.drop()
        self._utterance = None
        self._n_samples += len(self._voice.rest)
        self._voice = Voice()
        self._before.clear()
        if self._turns:
            self._turns.reset()
