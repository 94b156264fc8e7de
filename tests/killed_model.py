"""`make killed-model`: a tiny model whose build is killed in each stage, and begun again, has the files of one that was not.

Needs what `make model` needs. The stages are those of models/smol/build.py; of the ten that write replies, the first is killed. The LLM's
replies are taken over by the other build, for vLLM's greedy ones depend on which are written together; what counts is that none is missing.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from models.updates import ADAPTER

OPTIONS = (
    "--utterances 1500 --natural 600 --replies 40 --dev 20 --warm-steps 8 --align-steps 4 --workers 1"
    " --save_steps 2 --per_device_train_batch_size 4 --gradient_accumulation_steps 1"
)
HALF_DONE = {
    "speech train": "train/*.jsonl",
    "speech spare": "spare/*.wav",
    "speech natural": "natural/*.jsonl",
    "warm-start": "warm/checkpoint-*",
    "continue": "replies/00.jsonl",
    "align": "aligned/checkpoint-*",
}
"""What a stage has written when it is killed; of others nothing is left, and they are killed after `SECONDS`."""
SECONDS = 5.0
PARTS = (
    *("sentences*.txt", "train/*.wav", "natural/*.wav", "spare/*.wav", "dev/*.wav"),
    *(f"warm/{ADAPTER}", "replies/*.jsonl", f"aligned/{ADAPTER}"),
)
"""What is compared, in the order in which one follows from the other."""


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


def differing(ours: Path, theirs: Path) -> list[str]:
    """The files of two builds that are not the same, but for where they lie."""

    def content(folder: Path, name: Path) -> bytes:
        return (folder / name).read_bytes().replace(str(folder).encode(), b"")

    names = [file.relative_to(theirs) for part in PARTS for file in sorted(theirs.glob(part))]
    return [str(name) for name in names if content(ours, name) != content(theirs, name)]


def take_over_replies(ours: Path, theirs: Path) -> None:
    """Copies the replies of one build to another; each recording that was told something has replied once."""
    (theirs / "replies").mkdir(parents=True)
    for file in sorted((ours / "replies").glob("*.jsonl")):
        text = file.read_text()
        asked = ours / "told" / file.name
        if asked.exists():
            replied = sorted(json.loads(line)["index"] for line in text.splitlines())
            if replied != list(range(len(asked.read_text().splitlines()))):
                raise SystemExit(f"{file.name} does not have one reply for each line that asked: {replied}")
        (theirs / "replies" / file.name).write_text(text.replace(str(ours), str(theirs)))


def main() -> None:
    """Builds twice, and compares; where they differ, both are kept."""
    scratch = Path(tempfile.mkdtemp())
    whole, interrupted = scratch / "whole", scratch / "interrupted"
    killed: list[str] = []
    while not build(interrupted, killed):
        pass
    take_over_replies(interrupted, whole)
    build(whole, [stage for stage in killed if stage != "evaluate"])  # which the adapter does not depend on
    if different := differing(interrupted, whole):
        print(f"not as in a build that was not killed, see {scratch}:", *different)
        raise SystemExit(1)
    print("all as in a build that was not killed")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
