"""Builds a tiny demo model twice, once undisturbed and once killed with SIGKILL in every stage, and compares what comes out.

`python -m tests.models.demo.killed FOLDER`; some six minutes on one core. Exits with 1 where a stage came out differently.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

STAGES = {
    "speech": "shards/000.npz",
    "encoder": "encoder.pt",
    "llm": "llm.pt",
    "continuations": "continuations.jsonl",
    "states": "states/states.npy",
    "adapter": "adapter.pt",
}
"""Stage -> the file whose first appearance is when it is killed: half of the work is then still to do."""

SMALL = """
import sys
from pathlib import Path
from models.demo import build, continuations, train_adapter, train_encoder, train_llm
work = Path(sys.argv.pop(1))
for name in ("SPEECH", "STATES", "ENCODER_RUN", "LLM_RUN", "ADAPTER_RUN", "LLM", "CONTINUATIONS"):
    setattr(build, name, work / getattr(build, name).relative_to(build.WORK))
build.WORK, build.CHECKPOINT = work, work / "checkpoint"
build.SHARDS, build.PROCESSES, build.ADAPTER_UTTERANCES = 2, 1, 600
build.ENCODER_STEPS = build.LLM_STEPS = build.ADAPTER_STEPS = 40
train_encoder.SAVE_EVERY = train_llm.SAVE_EVERY = train_adapter.SAVE_EVERY = 20
continuations._CHUNK = 100
if __name__ == "__main__":
    build.main()
"""


def start(work: Path, stage: str) -> "subprocess.Popen[bytes]":
    """Runs a stage in a process group of its own."""
    script = work / "small.py"
    script.write_text(SMALL)
    command = [sys.executable, str(script), str(work), stage]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, start_new_session=True)


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Waits for a stage; raises where it fails."""
    if process.wait():
        raise RuntimeError(f"{process.args!r} failed")


def kill_at(process: "subprocess.Popen[bytes]", file: Path) -> None:
    """Kills a stage with all its processes as soon as `file` is there."""
    while not file.exists() or not file.stat().st_size:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended before it could be killed")
        os.sched_yield()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def arrays(folder: Path) -> dict[str, Any]:
    """Everything in a folder, by name."""
    found: dict[str, Any] = {}
    for shard in sorted((folder / "shards").glob("[0-9]*.npz")):
        with np.load(shard, allow_pickle=True) as saved:
            found |= {f"speech {shard.stem} {name}": saved[name] for name in saved.files}
    for name in ("encoder", "llm", "adapter"):
        weights = torch.load(folder / f"{name}.pt", weights_only=True)["model"]
        found |= {f"{name} {key}": value.numpy() for key, value in weights.items()}
    found["continuations"] = np.array(
        [json.loads(line)["continuation"] for line in (folder / "continuations.jsonl").open()]
    )
    found["states"] = np.load(folder / "states" / "states.npy")
    return found


def build(work: Path, run: Callable[[Path, str], None]) -> dict[str, Any]:
    """All stages, each by `run`."""
    work.mkdir(parents=True)
    for stage in STAGES:
        run(work, stage)
    return arrays(work)


def disturbed(work: Path, stage: str) -> None:
    """A stage that is killed once."""
    kill_at(start(work, stage), work / STAGES[stage])
    finish(start(work, stage))


def main() -> None:
    """Compares stage by stage."""
    folder = Path(sys.argv[1])
    one = build(folder / "undisturbed", lambda work, stage: finish(start(work, stage)))
    other = build(folder / "killed", disturbed)
    assert one.keys() == other.keys()
    differ = 0
    for stage in STAGES:
        names = [name for name in one if name.split()[0] == stage]
        wrong = [name for name in names if not np.array_equal(one[name], other[name])]
        print(f"{stage}: {len(names) - len(wrong)} of {len(names)} the same after SIGKILL", *wrong[:5])
        differ += len(wrong)
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
