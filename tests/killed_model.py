"""`make killed-model`: a tiny model whose build is killed in each stage, and begun again, has the adapter of a build that was not.

Needs what `make model` needs. The stages are those of models/smol/build.py; of the ten that write replies, the first is killed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from models.training.align import ADAPTER

OPTIONS = (
    "--utterances 1500 --replies 40 --dev 20 --warm-steps 8 --align-steps 4 --workers 1"
    " --save_steps 2 --per_device_train_batch_size 4 --gradient_accumulation_steps 1"
)
HALF_DONE = {
    "speech train": "train/*.jsonl",
    "speech spare": "spare/*.wav",
    "warm-start": "warm/checkpoint-*",
    "continue": "replies/00.jsonl",
    "align": "aligned/checkpoint-*",
}
"""What a stage has written when it is killed; of others nothing is left, and they are killed after `SECONDS`."""
SECONDS = 5.0


def stages(process: subprocess.Popen[str]) -> Iterator[str]:
    """What each stage is called, as it begins."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("+ "):
            arguments = line.split()[2:]
            command = arguments[1].rpartition(".")[2] if arguments[0] == "-m" else arguments[0]
            yield f"speech {Path(arguments[3]).name}" if command == "speech" else command


def is_half_done(folder: Path, stage: str, process: subprocess.Popen[str]) -> bool:
    """Waits until the stage has done some of its work; False where the build ended before."""
    begun = time.monotonic()
    while (
        not any(found.stat().st_size for found in folder.glob(HALF_DONE[stage]))
        if stage in HALF_DONE
        else time.monotonic() < begun + SECONDS
    ):
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    return True


def build(folder: Path, killed: list[str]) -> bool:
    """Whether a build came to its end; else it was killed in a stage that was not yet among `killed`, and is now."""
    command = [sys.executable, "-m", "models.smol.build", "--folder", str(folder), *OPTIONS.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        for stage in stages(process):
            if stage not in killed and is_half_done(folder, stage, process):
                os.killpg(process.pid, signal.SIGKILL)
                killed.append(stage)
                print(f"killed in: {stage}", flush=True)
                return False
    if process.returncode:
        raise SystemExit(f"the build ended with {process.returncode}")
    return True


def main() -> None:
    """Builds twice, and compares."""
    with tempfile.TemporaryDirectory() as scratch:
        whole, interrupted = Path(scratch) / "whole", Path(scratch) / "interrupted"
        killed: list[str] = []
        while not build(interrupted, killed):
            pass
        build(whole, [stage for stage in killed if stage != "evaluate"])  # which the adapter does not depend on
        ours, theirs = (load_file(folder / "aligned" / ADAPTER) for folder in (interrupted, whole))
        differing = [name for name, tensor in theirs.items() if not ours[name].equal(tensor)]
        print(f"{len(differing)} of {len(theirs)} tensors differ from those of a build that was not killed")
        raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
