"""What somebody says, heard while it is said.

It is cut into pieces at pauses; each is encoded, and the LLM reads it, while the speaker goes on. In every pause the open piece is heard
as if nothing came after it: where nothing does, all is done when that is known.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.answers.segments import quietest_cut
from service.audio.raw import Samples
from service.listening.listener import Recording
from service.listening.voice import FRAME, frames_in

VOICED = 0.35  # the least probability of a frame that counts as speech here
A_BREATH = frames_in(100)  # of quiet: what was said so far is heard as if it were all
PAUSE = frames_in(200)  # of quiet, in which a piece may end
SHORT = frames_in(3000)  # a piece lasts longer than that, unless the utterance ends
LONG = frames_in(7000)  # and no longer than that: it ends where it is quietest
WAITING = 16  # pieces of an utterance that wait for the encoder

Hear = Callable[[Samples], Coroutine[Any, Any, Tensor]]
Ahead = Callable[[Tensor], Awaitable[None]]


@dataclass(frozen=True, eq=False)
class _Piece:
    """Frames up to `end`: their rows, and that the LLM has read them."""

    end: int
    n_samples: int
    speech: float
    """How probably somebody speaks in it."""
    rows: asyncio.Task[Tensor]
    read: asyncio.Task[None] | None

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.rows.cancel()
        if self.read:
            self.read.cancel()


class Utterance:
    """Collects frames; `hear` encodes the samples of a piece, `ahead` has the LLM read the rows of all pieces so far."""

    def __init__(self, hear: Hear, ahead: Ahead | None = None) -> None:
        self._hear = hear
        self._ahead = ahead
        self._frames: list[Samples] = []
        self._speech: list[float] = []  # how probably somebody speaks in each frame
        self._pieces: list[_Piece] = []
        self._guess: _Piece | None = None  # the open piece, as if the utterance ended with it
        self._voiced_until = 0  # frames, the last of which is speech

    @property
    def n_samples(self) -> int:
        """How long it is so far."""
        return FRAME * len(self._frames)

    @property
    def samples(self) -> Samples:
        """All of it (n,), at 16 kHz."""
        return np.concatenate(self._frames) if self._frames else np.empty(0, np.float32)

    @property
    def encoded_samples(self) -> int:
        """How many samples of it are encoded."""
        pieces = (*self._pieces, self._guess) if self._guess else self._pieces
        return sum(piece.n_samples for piece in pieces if piece.rows.done())

    async def add(self, frame: Samples, probability: float) -> None:
        """Takes a frame (FRAME,), and how probably it is speech; waits while many pieces wait for the encoder."""
        self._speech.append(probability)
        self._add(frame, probability >= VOICED)
        if len(self._pieces) > WAITING and not (late := self._pieces[-WAITING - 1].rows).done():
            await asyncio.wait([late])

    def _add(self, frame: Samples, voiced: bool) -> None:
        self._frames.append(frame)
        now = len(self._frames)
        if voiced:
            self._voiced_until = now
            self._set_guess(None)
        quiet, length = now - self._voiced_until, now - self._begin
        if quiet == A_BREATH and self._is_voiced:
            self._set_guess(self._piece(now))
        elif quiet == PAUSE and self._guess and length > SHORT:
            self._close(self._guess)
        elif length >= LONG:
            samples = np.concatenate(self._frames[self._begin :])
            self._close(self._piece(self._begin + round(quietest_cut(samples) / FRAME)))

    @property
    def _is_voiced(self) -> bool:
        """Whether somebody spoke in the open piece."""
        return self._voiced_until > self._begin

    @property
    def _begin(self) -> int:
        """Where the open piece begins."""
        return self._pieces[-1].end if self._pieces else 0

    def _piece(self, end: int) -> _Piece:
        samples = np.concatenate(self._frames[self._begin : end])
        rows = asyncio.create_task(self._hear(samples))
        so_far = [*(piece.rows for piece in self._pieces), rows]
        before = self._pieces[-1].read if self._pieces else None
        read = asyncio.create_task(_read(so_far, before, self._ahead)) if self._ahead else None
        for task in (rows, read):
            if task:  # whoever waits for it hears of its error; where nobody does, it is nobody's
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return _Piece(end, len(samples), max(self._speech[self._begin : end], default=0.0), rows, read)

    def _set_guess(self, piece: _Piece | None) -> None:
        if self._guess and self._guess is not piece:
            self._guess.drop()
        self._guess = piece

    def _close(self, piece: _Piece) -> None:
        if self._guess is piece:
            self._guess = None
        self._set_guess(None)
        self._pieces.append(piece)

    async def finish(self, tail: Samples) -> Recording:
        """All of it, with the samples (n,) that made no frame any more. Raises what `hear` raises."""
        self._ahead = None  # from here on it is read where it is answered
        if self._guess:
            self._close(self._guess)
        elif self._is_voiced or not self._pieces:
            self._frames.append(tail)
            self._close(self._piece(len(self._frames)))
        rows = await asyncio.gather(*(piece.rows for piece in self._pieces))
        speech = [piece.speech for piece in self._pieces]
        return Recording(rows, [piece.n_samples for piece in self._pieces], speech=speech)

    def drop(self) -> None:
        """Nobody wants it any more."""
        for piece in (*self._pieces, self._guess):
            if piece:
                piece.drop()


async def _read(pieces: list[asyncio.Task[Tensor]], before: asyncio.Task[None] | None, ahead: Ahead) -> None:
    """Has the LLM read what was said so far, when it has read what it is to read `before`."""
    first = [*pieces, before] if before else pieces
    await asyncio.wait(first)  # unlike gather, it leaves them alone when it is cancelled
    await ahead(torch.cat([piece.result() for piece in pieces]))
