"""Everything that is to be known of a GPU, in one command of at most twelve minutes, which goes on after a part that fails.

`python -m benchmarks.gpu` runs every part in a process of its own; its log and its figures are kept in build/gpu, or in the folder that the
variable OUT names, while it runs. Then the table goes into RESULTS.md. `--tiny` tries all of it with tiny shapes, also without a GPU, and
leaves RESULTS.md alone; `--report FOLDER` writes the table of figures that were brought from elsewhere.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.table import table
from benchmarks.processes import ROOT
from benchmarks.small import BUILD

# The module of each part, its arguments, and the seconds that it may take.
PARTS: dict[str, tuple[str, list[str], int]] = {
    "parity": ("benchmarks.gpu.encoder", ["parity"], 90),
    "ids": ("benchmarks.gpu.ids", [], 60),
    "encoder-small": ("benchmarks.gpu.encoder", ["small"], 80),
    "encoder-large-v2": ("benchmarks.gpu.encoder", ["large-v2"], 130),
    "service": ("benchmarks.gpu.service", [], 360),
}


def run(name: str, folder: Path, tiny: bool) -> str:
    """Runs a part to its end or its limit; says how it ended."""
    module, arguments, limit = PARTS[name]
    command = [sys.executable, "-m", module, *arguments, str(folder / f"{name}.json"), *(["--tiny"] if tiny else [])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    }
    begin = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        popen = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
        try:
            ended = f"ended with {popen.wait(limit)}"
        except subprocess.TimeoutExpired:
            ended = "was stopped at its limit"
        finally:
            if popen.poll() is None:
                os.killpg(popen.pid, signal.SIGKILL)  # what it has started, too
                popen.wait()
    return f"{name} {ended} after {time.perf_counter() - begin:.0f} s"


def collected(folder: Path) -> dict[str, Any]:
    """The figures of all parts that a folder has."""
    parts = {name: json.loads(file.read_text()) for name in PARTS if (file := folder / f"{name}.json").exists()}
    return {"made": str(date.today()), "parts": parts}


def main() -> None:
    """The command; ends with 1 where a part has no figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and few requests; on the CPU without a GPU")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="run nothing; write the table of these figures")
    arguments = parser.parse_args()
    folder = arguments.report or Path(os.environ.get("OUT") or BUILD / ("gpu-tiny" if arguments.tiny else "gpu"))
    if not (arguments.tiny or arguments.report or torch.cuda.is_available()):
        parser.error("there is no GPU; --tiny tries the command without one")
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.report:
        for name in arguments.only:
            (folder / f"{name}.json").unlink(missing_ok=True)
            print(run(name, folder, arguments.tiny), flush=True)
    figures = collected(folder)
    print("\n".join(table(figures)))
    if not arguments.tiny:
        from benchmarks import report  # with matplotlib, which need not be there

        report.GPU.write_text(json.dumps(figures, indent=1))
        report.write(report.read())
    raise SystemExit(not set(arguments.only) <= figures["parts"].keys())


if __name__ == "__main__":
    main()
