"""What C's allocator keeps of memory that is free, in whatever process asks."""

import ctypes
import os

M_ARENA_MAX = -8  # of glibc's malloc.h


def use_one() -> None:
    """Has threads that begin from now on take their memory from the process's own heap.

    glibc gives each of the first ones, eight for every core, a heap of its own, which keeps the most that any of its threads ever needed at
    a time. Does nothing where the operator has said how many (MALLOC_ARENA_MAX), or the C library has no word for it.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None and "MALLOC_ARENA_MAX" not in os.environ:
        option(M_ARENA_MAX, 1)


def give_back() -> None:
    """Returns what is free to the system, in some milliseconds; does nothing where the C library has no word for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class InWorker:
    """What vLLM's workers can be asked besides, as their `worker_extension_cls`."""

    def give_back(self) -> None:
        """As the function of that name."""
        give_back()
