"""Memory that a burst of requests took goes back to the system when it is over: C's allocator would keep it for the next."""

import asyncio
import gc
from collections.abc import Awaitable, Callable

from service import heap
from service.gate.admission import Admission

QUIET_SECONDS = 5.0
BUSY_LOOKS = 12  # between two times where it is never quiet


def collect() -> None:
    """Frees what only refers to itself, and returns it."""
    gc.collect()
    heap.give_back()


async def watch(give_back: Callable[[], Awaitable[None]], *admissions: Admission) -> None:
    """Gives back what requests took, when none has run for a while, that which only refers to itself included.

    Where that never is, every minute: what is free lies scattered between what is not, and heaps grow.
    """
    given_back_after = admitted = looks = 0
    while True:
        await asyncio.sleep(QUIET_SECONDS)
        before, admitted = admitted, sum(admission.admitted for admission in admissions)
        running = any(admission.running for admission in admissions)
        quiet = admitted == before and not running
        used = running or admitted != given_back_after
        looks = looks + 1 if used else 0
        if used and (quiet or looks >= BUSY_LOOKS):
            if quiet:
                gc.collect()
            await give_back()
            given_back_after = admitted if quiet else -1
            looks = 0
