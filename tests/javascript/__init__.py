"""Where the tests' JavaScript lives, whether it can run, and how."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving import Server

FOLDER = Path(__file__).parent
HAS_NODE = shutil.which("node") is not None and (FOLDER / "node_modules" / "openai").is_dir()

# On CI the tests run whatever is there, so that a missing node fails them.
needs_node = pytest.mark.skipif(
    not HAS_NODE and not os.environ.get("CI"), reason="no node, or no client: run npm ci in tests/javascript"
)


def run(script: str, server: Server, audio: Path, **variables: str) -> None:
    """Runs a file of node's tests against a server, about a recording; with further environment variables."""
    done = subprocess.run(
        ["node", "--test", script],
        cwd=FOLDER,
        env=os.environ | {"BASE_URL": server.url, "MODEL": server.model, "AUDIO": str(audio), **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fail 0" in done.stdout
