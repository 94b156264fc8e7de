"""The README's examples, run as printed but for the address and the model's name."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def examples(language: str, mark: str) -> list[str]:
    """The README's code blocks of a language that talk to the server."""
    return [block for block in re.findall(rf"```{language}\n(.*?)```", README, re.S) if mark in block]


def here(example: str, server: Server) -> str:
    model = re.findall(r'model="([^"]+)"', README)[0]
    return example.replace("http://127.0.0.1:8000", server.url).replace(f'"{model}"', f'"{server.model}"')


@pytest.mark.parametrize("example", examples("sh", "curl"))
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(server: Server, example: str) -> None:
    done = subprocess.run(["bash", "-c", here(example, server)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "data: [DONE]" in done.stdout
    assert '"error"' not in done.stdout


@pytest.mark.parametrize("example", examples("python", "OpenAI"))
def test_python(server: Server, example: str) -> None:
    code = [sys.executable, "-c", here(example, server)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_examples() -> None:
    assert examples("sh", "curl")
    assert examples("python", "OpenAI")
