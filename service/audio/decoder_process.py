"""The processes that decode, one recording at a time, so that what a file does to its decoder it does to nothing else.

`python -m service.audio.decoder_process` loads the decoder (and neither torch nor anything else of the service), then forks a process for
every socket that it is sent. The process asks over its socket for the bytes of a file and answers with samples; `decoders.py` is at the
other end. It can open no file and no connection, write nothing, and its memory and processor time have limits.
"""

import gc
import io
import json
import math
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from typing import NamedTuple

import numpy as np

from service.audio.decode import decode, load_everything
from service.errors import ApiError

# What a decoder says: a kind and a number. HELLO process id; READ position in the file, to be answered with a length and as many bytes;
# BEGINS milliseconds, where the track begins late in the file's timeline; SAMPLES bytes of float32 that follow; FAILED bytes of JSON that
# follow, [class of service.errors, message]; END 0. After END it begins with the next file, after FAILED it is at its end.
FRAME = struct.Struct("<BQ")
HELLO, READ, SAMPLES, FAILED, END, BEGINS = range(6)
LENGTH = struct.Struct("<I")

BLOCK_BYTES = 1 << 18  # read at once
BATCH_SAMPLES = 1 << 18  # sent at once, at most; what there is goes out before every read


class Limits(NamedTuple):
    """What a recording may cost."""

    max_seconds: float  # of audio
    cpu_seconds: float
    memory_bytes: int  # beyond what the loaded decoder has


def main() -> None:
    """Forks until the other end of the control socket closes; then ends all decoders."""
    control = socket.socket(fileno=int(sys.argv[1]))
    limits = Limits(*json.loads(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    load_everything()  # nothing can be opened later
    gc.collect()
    gc.freeze()
    while True:
        word, files, _, _ = socket.recv_fds(control, 1, 1)
        if not word:
            os.killpg(0, signal.SIGKILL)
        with socket.socket(fileno=files[0]) as connection:
            try:
                child = os.fork()
            except OSError:  # the other end sees the socket close
                continue
            if not child:
                control.close()
                _work(connection, limits)


def _work(connection: socket.socket, limits: Limits) -> None:
    """Decodes recordings; never returns."""
    try:
        _limit(limits)
        _send(connection, HELLO, os.getpid())
        while True:
            _limit_time(limits.cpu_seconds)
            _decode(connection, limits.max_seconds)
    except ApiError as error:
        body = json.dumps([type(error).__name__, error.message]).encode()
        _send(connection, FAILED, len(body), body)
    except (ConnectionError, MemoryError):  # nobody listens any more; the other end sees that this process ends
        pass
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def _limit(limits: Limits) -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, size + limits.memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _limit_time(seconds: float) -> None:
    """The processor time from now on; SIGXCPU ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))


def _decode(connection: socket.socket, max_seconds: float) -> None:
    file = _RemoteFile(connection)

    def begins(seconds: float) -> None:
        _send(connection, BEGINS, round(seconds * 1000))

    for chunk in decode(file, max_seconds=max_seconds, begins=begins):
        file.add(chunk)
    file.flush()
    _send(connection, END, 0)


def _send(connection: socket.socket, kind: int, number: int, body: bytes = b"") -> None:
    connection.sendall(FRAME.pack(kind, number) + body)


class _RemoteFile(io.RawIOBase):
    """The file at the other end of the socket; the samples that were made of it go there before more of it is read."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._position = 0
        self._block = b""
        self._block_start = 0
        self._samples: list[np.ndarray] = []
        self._n_samples = 0

    def add(self, samples: np.ndarray) -> None:
        """Takes samples (n,) for the other end."""
        self._samples.append(samples)
        self._n_samples += len(samples)
        if self._n_samples >= BATCH_SAMPLES:
            self.flush()

    def flush(self) -> None:
        """Sends what there is."""
        if self._samples:
            body = np.concatenate(self._samples).tobytes()
            self._samples.clear()
            self._n_samples = 0
            _send(self._connection, SAMPLES, len(body), body)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, at least one before the end of the file; a damaged file may ask for any number."""
        if not self._block_start <= self._position < self._block_start + len(self._block):
            self._fetch()
        start = self._position - self._block_start
        part = self._block[start : start + size]
        self._position += len(part)
        return part

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To a position from the start."""
        if whence != io.SEEK_SET or offset < 0:
            raise ValueError(f"can't seek to {offset} from {whence}")
        self._position = offset
        return offset

    def _fetch(self) -> None:
        self.flush()
        _send(self._connection, READ, self._position)
        (length,) = LENGTH.unpack(self._receive(LENGTH.size))
        self._block, self._block_start = self._receive(length), self._position

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._connection.recv(length - len(data))
            if not piece:
                raise ConnectionAbortedError("nobody listens any more")
            data += piece
        return bytes(data)


if __name__ == "__main__":
    main()
