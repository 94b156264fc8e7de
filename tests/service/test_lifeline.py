"""Real processes; that an engine's end as well is in test_batch.py."""

import os
import select
import subprocess
import sys

import pytest

FORKED = """
import os, signal
from service.lifeline import hold
hold()
if child := os.fork():
    print(child, flush=True)
signal.pause()
"""

SPAWNED = """
import multiprocessing, os, signal
from service import lifeline

def child():
    lifeline.hold()
    print(os.getpid(), flush=True)
    signal.pause()

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child).start()
    signal.pause()
"""

ORPHAN = """
import signal, sys
from service.lifeline import end_with
end_with(int(sys.argv[1]))
signal.pause()
"""


@pytest.mark.parametrize("program", [FORKED, SPAWNED], ids=["forked", "spawned"])
def test_a_child_ends_with_its_parent(program: str, tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "program.py")
    with open(script, "w") as file:
        file.write(program)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert select.select([child], [], [], 30)[0]
    os.close(child)


def test_a_parent_that_has_ended_already() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert subprocess.run([sys.executable, "-c", ORPHAN, str(ended.pid)], timeout=30).returncode == -9
