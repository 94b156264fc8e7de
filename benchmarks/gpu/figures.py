"""What a part of the benchmark has found so far, in a file of its own: one that fails later loses nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import machine


class Figures:
    """A list of rows in a JSON file, which is written with each of them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU: {machine()}"
        self._found: dict[str, Any] = {"card": card, "torch": torch.__version__, "rows": []}

    def add(self, **row: Any) -> None:
        """One more."""
        print(json.dumps(row), flush=True)
        self._found["rows"].append(row)
        self._file.write_text(json.dumps(self._found, indent=1))

    def attempt(self, what: str, work: Callable[[], dict[str, Any]]) -> None:
        """Adds what `work` finds, or how it failed."""
        try:
            self.add(what=what, **work())
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            self.add(what=what, failed=f"{type(error).__name__}: {error}"[:500])
