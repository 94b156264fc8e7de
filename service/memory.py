"""Memory that a burst of requests took goes back to the system when it is over: C's allocator would keep it for the next."""

import asyncio
import ctypes
import gc
import os

from service.gate.admission import Admission

QUIET_SECONDS = 5.0
M_ARENA_MAX = -8  # of glibc's malloc.h


def use_one_heap() -> None:
    """Has threads that begin from now on take their memory from the process's own heap.

    glibc gives each of the first ones, eight for every core, a heap of its own, which keeps the most that any of its threads ever needed at
    a time. Does nothing where the operator has said how many (MALLOC_ARENA_MAX), or the C library has no word for it.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None and "MALLOC_ARENA_MAX" not in os.environ:
        option(M_ARENA_MAX, 1)


def collect() -> None:
    """Frees what only refers to itself, and returns it."""
    gc.collect()
    give_back()


def give_back() -> None:
    """Returns what is free; does nothing where the C library has no word for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def watch(*admissions: Admission) -> None:
    """Gives back what requests took, when none has run for a while."""
    given_back_after = admitted = 0
    while True:
        await asyncio.sleep(QUIET_SECONDS)
        before, admitted = admitted, sum(admission.admitted for admission in admissions)
        quiet = admitted == before and not any(admission.running for admission in admissions)
        if quiet and admitted != given_back_after:
            await asyncio.to_thread(give_back)
            given_back_after = admitted
