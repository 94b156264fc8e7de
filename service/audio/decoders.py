"""Decoding in processes of their own: a recording that crashes, hangs or bloats its decoder costs only itself.

Looks from outside like `decode.py`. The other end, and what the two say to each other, is `decoder_process.py`; what a decoder says is not
trusted.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from typing import BinaryIO

import numpy as np

from service import errors
from service.audio.decode import SAMPLE_RATE
from service.audio.decoder_process import (
    BATCH_SAMPLES,
    BEGINS,
    BLOCK_BYTES,
    END,
    FAILED,
    FRAME,
    HELLO,
    LENGTH,
    READ,
    SAMPLES,
    Limits,
)
from service.audio.upload import GrowingBuffer
from service.errors import ApiError, InvalidAudio, Unavailable
from service.telemetry import metrics

log = logging.getLogger(__name__)

IDLE = 64  # most decoders that are kept for the next recordings
RECORDINGS = 100  # that a decoder decodes before it is replaced
TRIES = 3
START_SECONDS = 60.0  # that a new decoder may take to begin
PARENT_SECONDS = 5.0  # that the decoders' parent may take to hear of one, and to end when it is killed
MAX_MESSAGE_BYTES = 10_000
MAX_SAMPLES = 8 * BATCH_SAMPLES  # in one message; one frame may be longer than a batch
MAX_BEGIN = 10**9  # milliseconds
MAX_POSITION = 1 << 40  # behind the end of any upload: a damaged file may send its decoder anywhere
REFUSALS: dict[str, type[ApiError]] = {
    kind.__name__: kind for kind in (errors.InvalidAudio, errors.TruncatedAudio, errors.NotAudio, errors.AudioTooLong)
}
ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")  # all that decoders learn of the service's


class DecoderDied(Exception):
    """The decoder has ended in the middle, or says what it should not."""


class DecoderHung(Exception):
    """The decoder has said nothing for too long."""


class Decoders:
    """Decodes recordings in processes, one for each that is being decoded; threads may share it.

    A process goes on with another recording only where it decoded the last one to its end.
    """

    def __init__(self, *, max_seconds: float, seconds: float, memory_bytes: int) -> None:
        """`seconds` is the processor time that a recording may take, and how long its decoder may say nothing."""
        self._limits = Limits(max_seconds, seconds, memory_bytes)
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []
        self._closed = False
        self._parent, self._control = self._start_parent()

    @property
    def max_seconds(self) -> float:
        """The longest that a recording may be."""
        return self._limits.max_seconds

    def decode(
        self, source: BinaryIO | GrowingBuffer, begins: Callable[[float], None] = lambda seconds: None
    ) -> Generator[np.ndarray, None, None]:
        """As `service.audio.decode`: mono float32 samples (n,) at 16 kHz, as the bytes of `source` arrive; `begins` as there.

        Raises NotAudio, InvalidAudio (also where the file kills its decoder, or costs it too much time or memory), AudioTooLong, what
        `source` raises, and Unavailable where no decoder can be started.
        """
        done = 0  # samples
        fresh = False
        while True:
            decoder = self._take(fresh)
            try:
                for samples in _after(done, decoder.decode(source, self._limits.max_seconds, begins)):
                    yield samples
                    done += len(samples)
                return
            except DecoderHung as error:
                metrics.DECODER_DEATHS.labels("hung").inc()
                raise InvalidAudio(
                    f"Decoding the audio hung for {self._limits.cpu_seconds:g} s. Send an intact file."
                ) from error
            except DecoderDied as error:
                log.warning("a decoder has died: %s", error)
                if decoder.recordings == 1:
                    metrics.DECODER_DEATHS.labels("died").inc()
                    raise InvalidAudio(
                        f"The audio could not be decoded: its decoder crashed, or needed more than {self._limits.cpu_seconds:g} s or "
                        f"{self._limits.memory_bytes >> 20} MiB. Send an intact file."
                    ) from error
                fresh = True  # it may have died of what an earlier recording left behind: once more, with a new one
            finally:
                self._put_back(decoder)

    def close(self) -> None:
        """Ends all decoders; recordings that are being decoded fail."""
        with self._lock:
            self._closed = True
            self._control.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._parent.pid, signal.SIGKILL)
            _wait(self._parent)
            while self._idle:
                self._idle.pop().end()

    def _take(self, fresh: bool) -> "_Decoder":
        """A decoder that is alive and idle; a new one where it is to be `fresh`."""
        for _ in range(TRIES):
            with self._lock:
                if self._closed:
                    raise Unavailable("The service is shutting down.")
                decoder = self._idle.pop() if self._idle and not fresh else self._fork()
                parent = self._parent
            try:
                decoder.begin()
            except DecoderDied:
                decoder.end()
            except DecoderHung:  # so it is the parent that hangs, for it has made none
                decoder.end()
                self._replace(parent)
            else:
                return decoder
        raise Unavailable("No process could be started that decodes the audio.")

    def _put_back(self, decoder: "_Decoder") -> None:
        with self._lock:
            if decoder.clean and decoder.recordings < RECORDINGS and len(self._idle) < IDLE and not self._closed:
                self._idle.append(decoder)
                return
        decoder.end()

    def _fork(self) -> "_Decoder":
        """A new decoder; starts their parent again where that has died or does not listen."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            except OSError as error:
                self._restart_parent(str(error))
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
        return _Decoder(ours, self._limits.cpu_seconds)

    def _replace(self, parent: subprocess.Popen[bytes]) -> None:
        """Starts another parent, where nobody has done so yet and it is still wanted."""
        with self._lock:
            if parent is self._parent and not self._closed:
                self._restart_parent("it hangs")

    def _restart_parent(self, why: str) -> None:
        """Kills the parent, but not the decoders that are at work, and starts another."""
        log.error("the decoders' parent is gone (%s); it is started again", why)
        self._parent.kill()
        _wait(self._parent)
        self._control.close()  # only now: it would take all decoders with it
        self._parent, self._control = self._start_parent()

    def _start_parent(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
            parent = subprocess.Popen(
                [sys.executable, "-m", "service.audio.decoder_process", str(theirs.fileno()), json.dumps(self._limits)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment | {"OPENBLAS_NUM_THREADS": "1"},
                process_group=0,  # in the same session: Linux weighs sessions against each other, and let decoders wait for seconds
            )
        ours.settimeout(PARENT_SECONDS)
        return parent, ours


def _wait(parent: subprocess.Popen[bytes]) -> None:
    """Until a parent that was killed has ended; not for ever, for the kernel may be busy with it."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        parent.wait(PARENT_SECONDS)


def _after(n: int, chunks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The chunks without their first `n` samples."""
    for chunk in chunks:
        if n < len(chunk):
            yield chunk[n:]
        n = max(0, n - len(chunk))


class _Decoder:
    """One process, which decodes one recording after the other.

    `recordings` counts them, `clean` tells whether all came to their end.
    """

    def __init__(self, connection: socket.socket, silence: float) -> None:
        """`silence` is how many seconds it may say nothing when it decodes."""
        self.recordings = 0
        self.clean = True
        self._connection = connection
        self._silence = silence
        self._process: int | None = None  # file descriptor, so that no other process is ever killed

    def begin(self) -> None:
        """Waits until the process is there."""
        if self._process is not None:
            return
        self._connection.settimeout(START_SECONDS)
        kind, pid = self._frame()
        self._connection.settimeout(self._silence)
        if kind != HELLO:
            raise DecoderDied(f"began with {kind}")
        try:
            self._process = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise DecoderDied("has ended already") from error

    def decode(
        self, source: BinaryIO | GrowingBuffer, max_seconds: float, begins: Callable[[float], None]
    ) -> Iterator[np.ndarray]:
        """Reads the source for the process and yields its samples (n,)."""
        self.recordings += 1
        self.clean = False
        position = n_samples = 0
        source.seek(0)
        while True:
            kind, number = self._frame()
            if kind == READ:
                if number != position:
                    position = source.seek(min(number, MAX_POSITION))
                block = source.read(BLOCK_BYTES) or b""
                position += len(block)
                self._send(LENGTH.pack(len(block)) + block)
            elif kind == SAMPLES and number % 4 == 0 and 0 < number // 4 <= MAX_SAMPLES:
                n_samples += number // 4
                if n_samples > (max_seconds + 1) * SAMPLE_RATE:
                    raise DecoderDied(f"made more than {max_seconds:g} s")
                yield np.frombuffer(self._receive(number), np.float32)
            elif kind == BEGINS:
                begins(min(number, MAX_BEGIN) / 1000)
            elif kind == FAILED and number <= MAX_MESSAGE_BYTES:
                raise _refusal(self._receive(number))
            elif kind == END:
                self.clean = True
                return
            else:
                raise DecoderDied(f"said {kind}, {number}")

    def end(self) -> None:
        """Kills the process, wherever it is."""
        self._connection.close()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
            self._process = None

    def _frame(self) -> tuple[int, int]:
        kind, number = FRAME.unpack(self._receive(FRAME.size))
        return kind, number

    def _receive(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            try:
                received = self._connection.recv_into(view)
            except TimeoutError as error:
                raise DecoderHung from error
            except OSError as error:
                raise DecoderDied(str(error)) from error
            if not received:
                raise DecoderDied("it closed its socket")
            view = view[received:]
        return data

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except TimeoutError as error:
            raise DecoderHung from error
        except OSError as error:
            raise DecoderDied(str(error)) from error


def _refusal(body: bytearray) -> Exception:
    """What the decoder found wrong with the file."""
    try:
        name, message = json.loads(body)
        return REFUSALS[name](str(message))
    except (ValueError, KeyError, TypeError) as error:
        return DecoderDied(f"failed with {bytes(body[:200])!r}: {error}")
