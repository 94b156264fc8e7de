"""Clients of OpenAI's API that others wrote, in an environment of their own, and how one of them is run."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.serving import Server

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent
PYTHON = ROOT / "build" / "clients" / "bin" / "python"

needs_clients = pytest.mark.skipif(not PYTHON.exists(), reason="no clients: run make build/clients")

# Some look for prices of models and for updates; nothing but the server is to be asked.
OFFLINE = {"https_proxy": "http://127.0.0.1:1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def run(script: str, server: Server, recording: Path) -> None:
    """Runs a client's script, which asserts by itself, against a server, about a recording."""
    done = subprocess.run(
        [PYTHON, FOLDER / script, server.url, server.model, recording],
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
