"""The growing upload: reads like a file, waits for bytes, never leaves a reader hanging."""

import io
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audio.upload import GrowingBuffer
from service.errors import UploadTooLarge


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start `work`; the result's call joins (or fails the test) and returns or raises what `work` did."""
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.append((work(), None))
        except Exception as exc:
            outcome.append((None, exc))

    thread = threading.Thread(target=target, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(20)
        assert not thread.is_alive(), "the reader hangs"
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    return join


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 40)),
        st.tuples(st.just("seek"), st.integers(-50, 60), st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])),
    ),
    max_size=20,
)


@given(data=st.binary(max_size=50), cuts=st.lists(st.integers(0, 50), max_size=5), operations=OPERATIONS)
def test_finished_buffer_equals_bytesio(data: bytes, cuts: list[int], operations: list[tuple[Any, ...]]) -> None:
    buffer, plain = GrowingBuffer(50), io.BytesIO(data)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(edges):
        buffer.feed(data[start:end])
    buffer.finish()
    for name, *arguments in operations:
        try:
            expected = getattr(plain, name)(*arguments)
        except ValueError:
            with pytest.raises(ValueError, match="negative seek"):
                getattr(buffer, name)(*arguments)
        else:
            assert getattr(buffer, name)(*arguments) == expected
        assert buffer.tell() == plain.tell()


@given(pieces=st.lists(st.binary(max_size=20), max_size=10), size=st.integers(1, 16))
def test_reader_in_another_thread_gets_every_byte(pieces: list[bytes], size: int) -> None:
    buffer = GrowingBuffer(1000)
    joined = in_thread(lambda: b"".join(iter(lambda: buffer.read(size), b"")))
    for piece in pieces:
        buffer.feed(piece)
    buffer.finish()
    assert joined() == b"".join(pieces)


def test_read_returns_what_is_there_before_the_end() -> None:
    buffer = GrowingBuffer(100)
    buffer.feed(b"abc")
    assert buffer.read(0) == b""
    assert in_thread(lambda: buffer.read(10))() == b"abc"
    assert buffer.received == 3


def test_buffered_reader_waits_for_the_full_count() -> None:
    buffer = GrowingBuffer(100)
    joined = in_thread(lambda: io.BufferedReader(buffer).read(6))
    for piece in (b"ab", b"cd", b"ef", b"gh"):
        buffer.feed(piece)
    buffer.finish()
    assert joined() == b"abcdef"


def test_seek_from_the_end_waits_for_the_end() -> None:
    buffer = GrowingBuffer(100)
    joined = in_thread(lambda: buffer.seek(-1, io.SEEK_END))
    buffer.feed(b"ab")
    buffer.feed(b"c")
    buffer.finish()
    assert joined() == 2


@pytest.mark.parametrize("work", [lambda b: b.read(1), lambda b: b.readall(), lambda b: b.seek(0, io.SEEK_END)])
def test_fail_wakes_waiting_readers(work: Callable[[GrowingBuffer], Any]) -> None:
    buffer = GrowingBuffer(100)
    joined = in_thread(lambda: work(buffer))
    gone = ConnectionError("client vanished")
    buffer.fail(gone)
    with pytest.raises(ConnectionError) as caught:
        joined()
    assert caught.value is gone


def test_fail_wins_over_what_has_arrived_and_over_finish() -> None:
    buffer = GrowingBuffer(100)
    buffer.feed(b"abc")
    buffer.finish()
    buffer.fail(ConnectionError())
    with pytest.raises(ConnectionError):
        buffer.read(1)
    with pytest.raises(ConnectionError):
        buffer.seek(0)
    with pytest.raises(ConnectionError):
        buffer.feed(b"d")


def test_first_error_stays() -> None:
    buffer = GrowingBuffer(100)
    buffer.fail(ConnectionError())
    buffer.fail(KeyError())
    with pytest.raises(ConnectionError):
        buffer.read(1)


def test_limit_is_inclusive_and_reaches_the_reader() -> None:
    buffer = GrowingBuffer(4)
    buffer.feed(b"abcd")
    assert buffer.read(9) == b"abcd"
    joined = in_thread(lambda: buffer.read(1))
    with pytest.raises(UploadTooLarge, match="4 bytes"):
        buffer.feed(b"e")
    with pytest.raises(UploadTooLarge):
        joined()


def test_feed_after_finish_is_an_error() -> None:
    buffer = GrowingBuffer(4)
    buffer.finish()
    with pytest.raises(ValueError, match="after finish"):
        buffer.feed(b"a")


def test_unknown_whence() -> None:
    with pytest.raises(ValueError, match="whence"):
        GrowingBuffer(4).seek(0, 7)


@pytest.mark.parametrize(
    ("end", "complete"),
    [
        (lambda upload: upload.finish(), True),
        (lambda upload: upload.fail(OSError()), False),
        (lambda upload: (upload.finish(), upload.fail(OSError())), False),
        (lambda upload: upload.close(), False),
    ],
)
def test_it_tells_when_it_has_ended_and_whether_all_is_there(
    end: Callable[[GrowingBuffer], object], complete: bool
) -> None:
    upload = GrowingBuffer(10)
    upload.feed(b"abc")
    assert not upload.ended.done()
    assert not upload.is_complete
    end(upload)
    assert upload.ended.done()
    assert upload.is_complete == complete
