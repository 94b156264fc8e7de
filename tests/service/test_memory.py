import asyncio
import os
import subprocess
import sys
import weakref
from contextlib import ExitStack

import psutil
import pytest

from service import heap, memory
from service.gate.admission import Admission, Limits, Queued

MIB = 1 << 20


class Talk:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def resident() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)


def test_what_is_free_goes_back() -> None:
    """200 MiB in pieces, between which some are still in use."""
    heap.give_back()
    before = resident()
    pieces = [bytes([i % 255 + 1]) * 4096 for i in range(200 * MIB // 4096)]
    kept = pieces[::1000]
    assert resident() - before > 150 * MIB
    del pieces
    heap.give_back()
    assert resident() - before < 50 * MIB
    assert kept


def test_threads_take_from_one_heap() -> None:
    """Sixteen threads that hold something at the same time, in a process of its own, whose heaps its map tells."""
    program = """
import threading
from service import heap
heap.use_one()
barrier = threading.Barrier(17)
held = []
def hold():
    held.append([bytes(4096) for _ in range(1000)])
    barrier.wait()
    barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(16)]
for thread in threads: thread.start()
barrier.wait()
heaps = [line for line in open("/proc/self/maps") if int(line.split("-")[0], 16) % (1 << 26) == 0 and len(line.split()) == 5]
print(sum(int(end, 16) - int(begin, 16) for begin, end in (line.split()[0].split("-") for line in heaps if "rw-p" in line)) >> 20)
barrier.wait()
"""

    def heaps_mib(**environment: str) -> int:
        command = [sys.executable, "-c", program]
        return int(subprocess.run(command, env=os.environ | environment, capture_output=True, check=True).stdout)

    assert heaps_mib() < 10
    assert heaps_mib(MALLOC_ARENA_MAX="16") > 30, "what the operator says holds"


async def test_it_is_given_back_once_when_it_has_been_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    slept: asyncio.Queue[None] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        await slept.get()

    async def give_back() -> None:
        given.append(admission.admitted)

    monkeypatch.setattr("service.memory.asyncio.sleep", sleep)
    admission = Admission(Limits(0, 0, 0, 0, 0, 0), lambda: Queued(0.0, 0))
    talk = Talk()
    gone = weakref.ref(talk)
    watching = asyncio.create_task(memory.watch(give_back, admission))
    loop = asyncio.get_running_loop()

    async def passes() -> None:
        slept.put_nowait(None)
        while not slept.empty():
            await asyncio.wait([loop.create_future()], timeout=0)
        await asyncio.wait([loop.create_future()], timeout=0)

    with ExitStack() as running:
        running.enter_context(admission.admit("a"))
        await passes()
        await passes()
        assert not given, "somebody is being answered"
    del talk
    await passes()
    assert given == [1]
    assert gone() is None, "what only refers to itself is freed before"
    await passes()
    assert given == [1], "nothing has happened since"
    with admission.admit("a"):
        pass
    await passes()
    assert given == [1], "it was not quiet all the while"
    await passes()
    assert given == [1, 2]
    with ExitStack() as running:
        running.enter_context(admission.admit("a"))
        for _ in range(2 * memory.BUSY_LOOKS):
            await passes()
        assert given == [1, 2, 3, 3], "where it is never quiet, now and then"
    await passes()
    assert given == [1, 2, 3, 3, 3], "and when it is"
    watching.cancel()
