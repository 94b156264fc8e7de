"""Decoding in other processes gives what decoding in this one gives, whatever is done to those processes."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.audio import decode as audio
from service.audio.decoder_process import FAILED, FRAME, SAMPLES, _RemoteFile
from service.audio.decoders import IDLE, MAX_MESSAGE_BYTES, MAX_SAMPLES, RECORDINGS, DecoderDied, Decoders, _Decoder
from service.audio.upload import GrowingBuffer
from service.errors import ApiError, AudioTooLong, InvalidAudio, Unavailable
from tests.processes import descendants
from tests.service import test_audio
from tests.service.test_audio import LOSSY, OTHERS, SEEDS, Decoding, encode, lossy, streamed_file, tones
from tests.service.test_refusals import silent_opus
from tests.sounds import RATE, voice, wav

CLIP = wav(voice(1.0))
MEMORY = 256 << 20


@pytest.fixture(scope="module")
def shared() -> Iterator[Decoders]:
    decoders = Decoders(max_seconds=60, seconds=20, memory_bytes=MEMORY)
    yield decoders
    decoders.close()


@pytest.fixture
def own() -> Iterator[Callable[..., Decoders]]:
    """Makes decoders whose processes a test may hurt."""
    made: list[Decoders] = []

    def make(max_seconds: float = 60, seconds: float = 20, memory_bytes: int = MEMORY) -> Decoders:
        made.append(Decoders(max_seconds=max_seconds, seconds=seconds, memory_bytes=memory_bytes))
        return made[-1]

    yield make
    for decoders in made:
        decoders.close()
    assert not descendants(os.getpid(), "decoder_process") - processes_of_shared


processes_of_shared: set[int] = set()


@pytest.fixture(autouse=True)
def _note_shared(shared: Decoders) -> None:
    """So that `own` can tell whether anything of its own is left."""
    list(shared.decode(io.BytesIO(CLIP)))
    processes_of_shared.update(descendants(os.getpid(), "decoder_process"))


def whole(decoders: Decoders, data: bytes) -> np.ndarray:
    return np.concatenate(list(decoders.decode(io.BytesIO(data))))


def workers(before: set[int]) -> set[int]:
    """The decoders' processes that were not there before: their parent first."""
    return descendants(os.getpid(), "decoder_process") - before


@pytest.mark.parametrize("name", [*SEEDS, *(f"long {name}" for name in LOSSY)])
def test_samples_are_the_same(shared: Decoders, name: str) -> None:
    data = SEEDS[name] if name in SEEDS else lossy(name.removeprefix("long "), seconds=2.0)
    expected = np.concatenate(list(audio.decode(io.BytesIO(data), max_seconds=60)))
    np.testing.assert_array_equal(whole(shared, data), expected)


@pytest.mark.parametrize("data", [b"", *OTHERS, streamed_file("flac")[:9000], silent_opus(70)])
def test_refusals_are_the_same(shared: Decoders, data: bytes) -> None:
    with pytest.raises(ApiError) as here:
        list(audio.decode(io.BytesIO(data), max_seconds=60))
    with pytest.raises(ApiError) as there:
        whole(shared, data)
    assert (type(here.value), here.value.message) == (type(there.value), there.value.message)


def test_a_file_that_points_far_behind_its_end(shared: Decoders) -> None:
    data = SEEDS["caf"]
    place = data.index(b"desc") + 12 + 32  # the size of the next chunk
    refused = data[:place] + b"free\x7f" + b"\xff" * 7 + data[place:]
    with pytest.raises(InvalidAudio, match="damaged"):
        whole(shared, refused)


def test_a_file_with_less_than_a_sample(shared: Decoders) -> None:
    with pytest.raises(InvalidAudio, match="no samples"):
        whole(shared, test_audio.wav(tones(768_000, 1e-5), 768_000, "i2"))


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "webm-opus", "mp4-fragmented"])
def test_samples_come_before_the_upload_ends(shared: Decoders, name: str) -> None:
    data = streamed_file(name)
    buffer = GrowingBuffer(len(data))
    decoding = Decoding(buffer, lambda source: shared.decode(source))
    buffer.feed(data[: len(data) // 2])
    assert decoding.first.wait(30), "nothing was decoded from the first half"
    buffer.feed(data[len(data) // 2 :])
    buffer.finish()
    decoding.join()
    np.testing.assert_array_equal(np.concatenate(decoding.chunks), whole(shared, data))


@pytest.mark.parametrize("error", [ConnectionError("client vanished"), TimeoutError("client sleeps")])
def test_errors_of_the_source_come_out_unchanged(shared: Decoders, error: Exception) -> None:
    buffer = GrowingBuffer(1000)
    decoding = Decoding(buffer, lambda source: shared.decode(source))
    buffer.feed(CLIP[:500])
    buffer.fail(error)
    decoding.join()
    assert decoding.error is error


def test_many_at_the_same_time(shared: Decoders) -> None:
    clips = [tones(16_000, 0.1 * i)[:, 0] for i in range(1, 41)]
    results: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i, clip=clip: results.update({i: whole(shared, wav(clip))}))
        for i, clip in enumerate(clips)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, clip in enumerate(clips):
        np.testing.assert_allclose(results[i], clip, atol=1e-4)


def half_decoded(decoders: Decoders) -> tuple[GrowingBuffer, Decoding, bytes]:
    """A recording whose decoder waits for its second half."""
    data = streamed_file("wav")
    buffer = GrowingBuffer(len(data))
    decoding = Decoding(buffer, lambda source: decoders.decode(source))
    buffer.feed(data[: len(data) // 2])
    assert decoding.first.wait(30)
    return buffer, decoding, data


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_crashes_costs_its_own_recording(own: Callable[..., Decoders], number: signal.Signals) -> None:
    decoders = own()
    before = descendants(os.getpid(), "decoder_process")
    victim, victims_decoding, data = half_decoded(decoders)
    (process,) = workers(before)
    bystander, bystanders_decoding, _ = half_decoded(decoders)
    os.kill(process, number)
    for buffer in (victim, bystander):
        buffer.feed(data[len(data) // 2 :])
        buffer.finish()
    victims_decoding.join()
    bystanders_decoding.join()
    assert isinstance(victims_decoding.error, InvalidAudio)
    assert "crashed" in victims_decoding.error.message
    assert bystanders_decoding.error is None
    assert len(whole(decoders, CLIP)) == 16_000


def test_what_an_earlier_recording_did_to_a_decoder_costs_nothing(own: Callable[..., Decoders]) -> None:
    decoders = own()
    before = descendants(os.getpid(), "decoder_process")
    whole(decoders, CLIP)
    (process,) = workers(before)
    buffer, decoding, data = half_decoded(decoders)
    assert workers(before) == {process}  # the same decoder again
    os.kill(process, signal.SIGSEGV)
    buffer.feed(data[len(data) // 2 :])
    buffer.finish()
    decoding.join()
    assert decoding.error is None
    np.testing.assert_array_equal(np.concatenate(decoding.chunks), whole(decoders, data))


def test_a_decoder_that_hangs_is_killed(own: Callable[..., Decoders]) -> None:
    decoders = own(seconds=1)
    before = descendants(os.getpid(), "decoder_process")
    buffer, decoding, data = half_decoded(decoders)
    (process,) = workers(before)
    os.kill(process, signal.SIGSTOP)
    buffer.feed(data[len(data) // 2 :])
    buffer.finish()
    decoding.join()
    assert isinstance(decoding.error, InvalidAudio)
    assert "hung for 1 s" in decoding.error.message
    assert not workers(before) & {process}
    assert len(whole(decoders, CLIP)) == 16_000


def test_processor_time_has_a_limit(own: Callable[..., Decoders]) -> None:
    decoders = own(max_seconds=float("inf"), seconds=1)
    with pytest.raises(InvalidAudio, match="more than 1 s"):
        for _ in decoders.decode(io.BytesIO(silent_opus(24 * 3600))):
            pass


def test_memory_has_a_limit(own: Callable[..., Decoders]) -> None:
    decoders = own(memory_bytes=1 << 20)
    with pytest.raises(InvalidAudio):
        whole(decoders, encode(tones(48_000, 3.0), 48_000, "ogg", "libopus"))
    with pytest.raises(InvalidAudio):
        whole(decoders, wav(voice(30.0)))


def test_waiting_for_a_slow_upload_costs_no_time(own: Callable[..., Decoders]) -> None:
    """The limit is on the decoder's silence, not on the client's: this client takes longer than its decoder may."""
    decoders = own(seconds=1)
    resumed = threading.Event()
    data = streamed_file("wav")

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(data) // 2 and not resumed.wait(1.5):
                resumed.set()
            return super().read(size)

    assert sum(map(len, decoders.decode(Slow(data)))) == 4 * 16_000


def test_a_dead_parent_is_replaced(own: Callable[..., Decoders], caplog: pytest.LogCaptureFixture) -> None:
    decoders = own()
    before = descendants(os.getpid(), "decoder_process")
    parent = decoders._parent.pid
    os.kill(parent, signal.SIGKILL)
    decoders._parent.wait()
    assert len(whole(decoders, CLIP)) == 16_000
    assert decoders._parent.pid != parent
    assert "started again" in caplog.text
    assert workers(before)


def test_a_parent_that_hangs_is_replaced_and_costs_no_recording(
    own: Callable[..., Decoders], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders = own()
    before = descendants(os.getpid(), "decoder_process")
    buffer, decoding, data = half_decoded(decoders)
    parent = decoders._parent
    os.kill(parent.pid, signal.SIGSTOP)
    monkeypatch.setattr("service.audio.decoders.START_SECONDS", 5.0)
    assert len(whole(decoders, CLIP)) == 16_000
    assert decoders._parent is not parent
    assert parent.returncode == -signal.SIGKILL
    buffer.feed(data[len(data) // 2 :])
    buffer.finish()
    decoding.join()
    assert decoding.error is None
    assert workers(before)


def test_a_parent_that_hears_nothing_any_more_is_replaced(own: Callable[..., Decoders]) -> None:
    decoders = own()
    whole(decoders, CLIP)
    parent = decoders._parent
    os.kill(parent.pid, signal.SIGSTOP)
    decoders._control.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:  # until no more fits into the parent's socket
            socket.send_fds(decoders._control, [b"+"], [decoders._control.fileno()])
    with decoders._lock:
        decoder = decoders._fork()
    decoder.end()
    assert decoders._parent is not parent
    assert len(whole(decoders, CLIP)) == 16_000


def test_closing_does_not_wait_for_a_parent_that_hangs(own: Callable[..., Decoders]) -> None:
    decoders = own()
    parent = decoders._parent
    os.kill(parent.pid, signal.SIGSTOP)
    decoders.close()
    assert parent.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("offset", "whence"), [(-1, io.SEEK_SET), (0, io.SEEK_CUR), (0, io.SEEK_END)])
def test_a_decoder_goes_to_no_place_but_one_counted_from_the_start(offset: int, whence: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        file = _RemoteFile(theirs)
        assert file.seek(7) == 7
        with pytest.raises(ValueError, match="can't seek"):
            file.seek(offset, whence)


@contextlib.contextmanager
def false_decoder(*said: bytes) -> Iterator[_Decoder]:
    """A decoder whose process says this, whatever it is asked."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.settimeout(20)

        def say() -> None:
            with contextlib.suppress(OSError):
                for piece in said:
                    theirs.sendall(piece)

        talking = threading.Thread(target=say)
        talking.start()
        decoder = _Decoder(ours, silence=20)
        yield decoder
        decoder.end()
        talking.join(20)


def samples(n: int) -> bytes:
    return FRAME.pack(SAMPLES, 4 * n) + bytes(4 * n)


def test_samples_without_end_come_to_an_end() -> None:
    second = samples(RATE)
    with false_decoder(*[second] * 10) as decoder:
        chunks = decoder.decode(io.BytesIO(CLIP), 3, lambda _: None)
        assert [len(next(chunks)) for _ in range(4)] == [RATE] * 4
        with pytest.raises(DecoderDied, match="more than 3 s"):
            next(chunks)


@pytest.mark.parametrize(
    "said",
    [
        FRAME.pack(SAMPLES, 4 * (MAX_SAMPLES + 1)),
        FRAME.pack(SAMPLES, 6),
        FRAME.pack(SAMPLES, 0),
        FRAME.pack(FAILED, MAX_MESSAGE_BYTES + 1),
        FRAME.pack(255, 0),
    ],
)
def test_what_a_decoder_says_is_not_trusted(said: bytes) -> None:
    with false_decoder(said) as decoder, pytest.raises(DecoderDied, match="said"):
        list(decoder.decode(io.BytesIO(CLIP), 3, lambda _: None))


def test_a_decoder_can_open_no_file_and_no_connection(tmp_path: Path) -> None:
    tried = """
import socket, sys
from service.audio.decoder_process import Limits, _limit

kept = open(sys.argv[1], "wb", buffering=0)
_limit(Limits(60, 20, 256 << 20))
for name, attempt in (
    ("read", lambda: open("/etc/passwd")),
    ("connect", socket.socket),
    ("write", lambda: kept.write(b"x")),
):
    try:
        attempt()
    except OSError as error:
        print(name, error.strerror)
"""
    code = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)" + tried
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "kept"], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "read Too many open files",
        "connect Too many open files",
        "write File too large",
    ]


def test_a_consumer_that_stops_ends_its_decoder(own: Callable[..., Decoders]) -> None:
    decoders = own()
    before = descendants(os.getpid(), "decoder_process")
    chunks = decoders.decode(io.BytesIO(streamed_file("wav") * 1))
    next(chunks)
    (process,) = workers(before)
    chunks.close()
    assert process not in workers(before)


def test_decoders_are_kept_and_replaced(own: Callable[..., Decoders]) -> None:
    decoders = own()
    seen = set()
    for _ in range(RECORDINGS + 1):
        whole(decoders, CLIP)
        seen |= {decoder.recordings for decoder in decoders._idle}
        assert len(decoders._idle) <= IDLE
    assert seen == set(range(1, RECORDINGS))


def test_after_closing_nothing_is_decoded() -> None:
    decoders = Decoders(max_seconds=60, seconds=20, memory_bytes=MEMORY)
    before = decoders._parent.pid
    decoders.close()
    with pytest.raises(Unavailable):
        whole(decoders, CLIP)
    assert not Path(f"/proc/{before}").exists()


def test_when_the_service_is_killed_its_decoders_end() -> None:
    program = (
        "import io, sys, time; from service.audio.decoders import Decoders; from tests.sounds import RATE, voice, wav\n"
        "d = Decoders(max_seconds=60, seconds=20, memory_bytes=1 << 28); list(d.decode(io.BytesIO(wav(voice(1.0)))))\n"
        "print(d._parent.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        parent = os.pidfd_open(int(service.stdout.readline()))
        service.kill()
    assert select_readable(parent, 20), "the decoders' parent lives on"
    os.close(parent)


def select_readable(file: int, seconds: float) -> bool:
    import select

    return bool(select.select([file], [], [], seconds)[0])


def test_decoders_belong_to_the_services_session_but_not_to_its_process_group(own: Callable[..., Decoders]) -> None:
    """Linux shares processors out to sessions; and what a terminal sends to the service is not for its decoders."""
    parent = own()._parent.pid
    assert os.getsid(parent) == os.getsid(0)
    assert os.getpgid(parent) == parent


def test_decoders_load_nothing_that_they_do_not_need() -> None:
    program = "import sys, service.audio.decoder_process; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "'av'" in loaded
    for name in ("torch", "vllm", "fastapi", "transformers", "prometheus_client", "models"):
        assert f"'{name}'" not in loaded


def test_a_file_over_the_limit_stops_at_it(own: Callable[..., Decoders]) -> None:
    decoders = own(max_seconds=2)
    with pytest.raises(AudioTooLong, match="limit of 2 s"):
        whole(decoders, silent_opus(3600))
