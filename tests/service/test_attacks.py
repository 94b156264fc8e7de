"""What is made to stop the server stops nobody: `make attack`, once."""

import asyncio

from benchmarks import processes
from benchmarks.attack import ATTACKS, find_defects, measure
from benchmarks.small import make_checkpoints

TRIES = 3  # a server that can be stopped is stopped each time; other work of the machine makes others wait now and then


def test_nobody_waits_because_of_an_attack() -> None:
    """Neither who is being answered nor who asks /version; the server is idle soon, and no attack is an error of the server's."""
    make_checkpoints()
    names = list(ATTACKS)
    with processes.ours("float32") as server:  # which is quick on every machine
        for _ in range(TRIES):
            defects = list(find_defects(asyncio.run(measure(server, names))))
            names = [name for name in names if any(defect.startswith(f"{name}: ") for defect in defects)]
            if not names:
                return
    raise AssertionError(defects)
