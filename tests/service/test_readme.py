"""The README's examples, run as printed but for the address and the model's name."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.javascript import FOLDER, needs_node
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
def test_curl(server: Server, example: str) -> None:
    if missing := [name for name in ("curl", "ffmpeg") if name in example and shutil.which(name) is None]:
        pytest.skip(f"no {missing[0]}")
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


@needs_node
@pytest.mark.parametrize("example", examples("js", "OpenAI"))
def test_javascript(server: Server, example: str, tmp_path: Path) -> None:
    """In a folder of its own, from which node finds the client."""
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "example.mjs").write_text(here(example, server))
    done = subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "00:00:00,000 --> " in done.stdout


def test_there_are_examples() -> None:
    assert len(examples("sh", "curl")) > 1
    assert examples("js", "OpenAI")
    assert examples("python", "OpenAI")
