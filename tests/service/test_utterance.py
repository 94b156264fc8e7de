import asyncio
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.audio.raw import Samples
from service.errors import Unavailable
from service.listening.voice import FRAME
from service.realtime.utterance import A_BREATH, LONG, PAUSE, SHORT, WAITING, Utterance

NOTHING = np.empty(0, np.float32)


class Encoder:
    """A row for each piece: its first sample and its length; notes what was asked, and what was wanted to the end."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.done: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, samples: Samples) -> Tensor:
        piece = int(samples[0]), len(samples)
        self.asked.append(piece)
        await self.gate.wait()
        self.done.append(piece)
        return torch.tensor([piece], dtype=torch.float32)


async def say(utterance: Utterance, voiced: Iterable[bool]) -> None:
    """Frames whose samples are all the frame's number; gives what is begun the time to end."""
    for said in voiced:
        number = utterance.n_samples // FRAME
        await utterance.add(np.full(FRAME, number, np.float32), 0.9 if said else 0.1)
    for _ in range(10):
        await asyncio.sleep(0)


def frames(n: int) -> int:
    return n * FRAME


async def test_all_is_encoded_when_the_silence_is_long_enough_to_be_the_end() -> None:
    encoder, read = Encoder(), list[int]()

    async def ahead(rows: Tensor) -> None:
        read.append(len(rows))

    utterance = Utterance(encoder, ahead)
    await say(utterance, [True] * 20 + [False] * A_BREATH)
    assert encoder.done == [(0, frames(20 + A_BREATH))]
    assert utterance.encoded_samples == utterance.n_samples
    await say(utterance, [False] * 10)
    recording = await utterance.finish(NOTHING)
    assert recording.rows.tolist() == [[0, frames(20 + A_BREATH)]]
    assert len(encoder.asked) == 1, "silence behind it is not encoded"
    assert read == [1], "and the LLM has read it"


async def test_who_speaks_on_after_a_breath_is_heard_whole() -> None:
    encoder = Encoder()
    utterance = Utterance(encoder)
    encoder.gate.clear()
    await say(utterance, [True] * 20 + [False] * A_BREATH)
    await say(utterance, [True] * 5)
    encoder.gate.set()
    recording = await utterance.finish(np.full(7, 99, np.float32))
    assert recording.lengths == [frames(25 + A_BREATH) + 7]
    assert encoder.done == [(0, frames(25 + A_BREATH) + 7)], "what was begun in the breath is dropped"


async def test_a_long_utterance_is_cut_in_a_pause_and_read_piece_by_piece() -> None:
    encoder, read = Encoder(), list[int]()

    async def ahead(rows: Tensor) -> None:
        read.append(len(rows))

    utterance = Utterance(encoder, ahead)
    await say(utterance, [True] * SHORT + [False] * PAUSE + [True] * 10)
    recording = await utterance.finish(NOTHING)
    first = SHORT + A_BREATH
    assert recording.lengths == [frames(first), frames(PAUSE - A_BREATH + 10)]
    await asyncio.sleep(0)
    assert recording.rows[:, 0].tolist() == [0, first]
    assert read[0] == 1


async def test_who_speaks_on_does_not_undo_what_was_said_before() -> None:
    """The LLM's turn to read is dropped while the first piece is being encoded."""
    encoder = Encoder()
    encoder.gate.clear()

    async def ahead(rows: Tensor) -> None:
        pass

    utterance = Utterance(encoder, ahead)
    await say(utterance, [True] * SHORT + [False] * PAUSE + [True] * 10 + [False] * A_BREATH)
    await say(utterance, [True] * 10)
    encoder.gate.set()
    n_samples = utterance.n_samples
    assert sum((await utterance.finish(NOTHING)).lengths) == n_samples


async def test_without_pauses_it_is_cut_where_it_is_quietest() -> None:
    encoder = Encoder()
    utterance = Utterance(encoder)
    quietest = LONG * 3 // 4
    for number in range(LONG + 20):
        loud = 0.01 if abs(number - quietest) < 4 else 1.0
        await utterance.add(np.full(FRAME, loud, np.float32), 0.9)
    recording = await utterance.finish(NOTHING)
    assert len(recording.lengths) == 2
    assert abs(recording.lengths[0] - frames(quietest)) <= frames(2)
    assert sum(recording.lengths) == frames(LONG + 20), "what was said behind the cut is heard though nobody speaks now"


async def test_it_is_told_of_each_piece_how_probably_somebody_speaks() -> None:
    utterance = Utterance(Encoder())
    await say(utterance, [False] * (LONG + 10) + [True] * 10)
    recording = await utterance.finish(NOTHING)
    assert len(recording.lengths) == 2
    assert list(recording.speech) == [0.1, 0.9]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, LONG + 5)), min_size=1, max_size=8))
def test_pieces_follow_each_other_and_hold_all_that_was_said(runs: list[tuple[bool, int]]) -> None:
    async def main() -> None:
        encoder = Encoder()
        utterance = Utterance(encoder)
        voiced = [said for said, n in runs for _ in range(n)]
        await say(utterance, voiced)
        recording = await utterance.finish(NOTHING)
        begins = np.cumsum([0, *recording.lengths])
        assert recording.rows[:, 0].tolist() == [begin // FRAME for begin in begins[:-1]]
        assert max(recording.lengths) <= frames(LONG)
        last_word = max((i for i, said in enumerate(voiced) if said), default=-1)
        assert begins[-1] >= frames(last_word + 1)

    asyncio.run(main())


async def test_an_encoder_that_is_behind_makes_the_speaker_wait() -> None:
    encoder = Encoder()
    encoder.gate.clear()
    utterance = Utterance(encoder)
    talk = asyncio.create_task(say(utterance, [True] * LONG * (WAITING + 4)))
    for _ in range(100_000):
        if len(encoder.asked) > WAITING:
            break
        await asyncio.sleep(0)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not talk.done()
    assert len(encoder.asked) == WAITING + 1
    encoder.gate.set()
    await talk
    utterance.drop()


async def test_what_the_encoder_raises_is_heard_by_who_waits() -> None:
    async def broken(samples: Samples) -> Tensor:
        raise Unavailable("broken")

    utterance = Utterance(broken)
    await say(utterance, [True] * 20)
    with pytest.raises(Unavailable):
        await utterance.finish(NOTHING)


async def test_what_is_dropped_is_not_encoded_to_its_end() -> None:
    encoder = Encoder()
    encoder.gate.clear()
    utterance = Utterance(encoder)
    await say(utterance, [True] * SHORT + [False] * PAUSE + [True] * 20 + [False] * A_BREATH)
    assert len(encoder.asked) == 2
    utterance.drop()
    encoder.gate.set()
    await asyncio.sleep(0)
    assert not encoder.done
