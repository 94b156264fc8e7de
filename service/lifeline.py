"""An engine's processes end with the process that started them, however that one ended.

vLLM ends them when it is asked to; after `kill -9` nobody asks, and its engine core would stay, with all its memory.
"""

import multiprocessing
import os
import select
import signal
import threading
from contextlib import suppress
from functools import partial


def hold() -> None:
    """The entry point in `vllm.general_plugins`: vLLM calls it where engines are started, and in each process of an engine that is spawned.

    Forked processes don't load plugins again, so what starts an engine prepares them.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        os.register_at_fork(after_in_child=partial(end_with, os.getpid()))
    elif parent.pid is not None:
        end_with(parent.pid)


def end_with(pid: int) -> None:
    """Kills this process when the process `pid` ends."""
    threading.Thread(target=_wait_and_end, args=(pid,), name="lifeline", daemon=True).start()


def _wait_and_end(pid: int) -> None:
    with suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(pid)], [], [])
    os.kill(os.getpid(), signal.SIGKILL)
