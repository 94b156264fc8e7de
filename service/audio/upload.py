"""An upload as a file: bytes are read, in another thread, while they are still arriving.

This file knows nothing about audio, HTTP or asyncio: whoever receives the body calls `feed`, then `finish` or `fail`;
whoever consumes it reads and seeks as in any binary file.
"""

import io
import threading
from concurrent.futures import Future

from service.errors import UploadTooLarge


class GrowingBuffer(io.RawIOBase):
    """A seekable binary file of at most `limit` bytes that one thread writes while another reads.

    Writing (`feed`, `finish`, `fail`) never blocks, so an event loop may do it. Reading waits until at least one byte
    is there or the upload has ended, and like any raw file may return fewer bytes than asked for. Seeking from the end
    waits for the end. The whole upload is kept, once, so that readers can seek back.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._data = bytearray()
        self._position = 0
        self._finished = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self.ended: Future[None] = Future()  # well or not

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`.

        Raises `UploadTooLarge` when there are then more than `limit` bytes (readers get the same error), the error
        given to `fail` when there was one, and `ValueError` after `finish`.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._finished:
                raise ValueError("feed after finish")
            if len(self._data) + len(data) > self._limit:
                self._error = UploadTooLarge(f"The upload is larger than the limit of {self._limit} bytes.")
                self._data.clear()
            else:
                self._data += data
            self._changed.notify_all()
            if self._error is not None:
                raise self._error

    def finish(self) -> None:
        """Say that the upload is complete: readers now reach the end of the file."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()
        self._end()

    def fail(self, error: Exception) -> None:
        """Abort: waiting and later readers raise `error`, even after `finish`. The first error stays."""
        with self._changed:
            if self._error is None:
                self._error = error
                self._data.clear()
            self._changed.notify_all()
        self._end()

    def close(self) -> None:
        """Forget the upload, and the error with all that its traceback holds; whoever still reads fails."""
        with self._changed:
            self._error = ConnectionAbortedError("the upload is closed")
            self._data.clear()
            self._changed.notify_all()
        self._end()
        super().close()

    @property
    def is_complete(self) -> bool:
        """Whether the upload has ended well, so that all of it is there."""
        with self._changed:
            return self._finished and self._error is None

    @property
    def received(self) -> int:
        """Bytes that have arrived so far."""
        with self._changed:
            return len(self._data)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes, also to where no byte has arrived yet."""
        return True

    def readinto(self, target: "bytearray | memoryview") -> int:  # type: ignore[override]
        """Fill `target` as far as bytes are there, wait for the first one if need be; 0 is the end of the file."""
        wanted = len(target)
        with self._changed:
            self._changed.wait_for(lambda: self._settled(self._position + min(wanted, 1)))
            if self._error is not None:
                raise self._error
            part = self._data[self._position : self._position + wanted]
            target[: len(part)] = part
            self._position += len(part)
            return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move as `io.BytesIO` does and return the new position; from the end only once the end is known."""
        with self._changed:
            if whence == io.SEEK_SET:
                if offset < 0:
                    raise ValueError(f"negative seek value {offset}")
                base = 0
            elif whence == io.SEEK_CUR:
                base = self._position
            elif whence == io.SEEK_END:
                self._changed.wait_for(lambda: self._settled(None))
                base = len(self._data)
            else:
                raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
            if self._error is not None:
                raise self._error
            self._position = max(0, base + offset)
            return self._position

    def tell(self) -> int:
        """The reader's position in bytes."""
        return self._position

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _settled(self, needed: int | None) -> bool:
        """Nothing is left to wait for: `needed` bytes have arrived (None: never enough), or no more will."""
        return self._error is not None or self._finished or (needed is not None and len(self._data) >= needed)
