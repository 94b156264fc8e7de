"""Where the tests' JavaScript lives, and whether it can run."""

import os
import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
HAS_NODE = shutil.which("node") is not None and (FOLDER / "node_modules" / "openai").is_dir()

# On CI the tests run whatever is there, so that a missing node fails them.
needs_node = pytest.mark.skipif(
    not HAS_NODE and not os.environ.get("CI"), reason="no node, or no client: run npm ci in tests/javascript"
)
