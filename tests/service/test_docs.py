"""README.md and the pages: examples run as printed but for the address and the model's name, commands parse, links lead somewhere."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service import cli
from tests.javascript import FOLDER, needs_node
from tests.serving import Server

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "deploy", "deploy/kubernetes", "examples", "models/smol")
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in [*ROOT.glob("*.md"), *(page for name in FOLDERS for page in ROOT.glob(f"{name}/*.md"))]
}
MODEL = "blsp-smol"


def blocks(language: str, mark: str = "") -> list[str]:
    """The pages' code blocks of a language that hold a mark."""
    found = [block for text in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", text, re.S)]
    return [block for block in found if mark in block]


def here(example: str, server: Server) -> str:
    return example.replace("http://127.0.0.1:8000", server.url).replace(f'"{MODEL}"', f'"{server.model}"')


@pytest.mark.parametrize("example", blocks("sh", "curl "))
def test_curl(server: Server, example: str) -> None:
    if missing := [name for name in ("curl", "ffmpeg") if name in example and shutil.which(name) is None]:
        pytest.skip(f"no {missing[0]}")
    done = subprocess.run(["bash", "-c", here(example, server)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "data: [DONE]" in done.stdout
    assert '"error"' not in done.stdout


@pytest.mark.parametrize("example", blocks("python", "OpenAI"))
def test_python(server: Server, example: str) -> None:
    code = [sys.executable, "-c", here(example, server)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@needs_node
@pytest.mark.parametrize("example", blocks("js", "OpenAI"))
def test_javascript(server: Server, example: str, tmp_path: Path) -> None:
    """In a folder of its own, from which node finds the client."""
    (tmp_path / "node_modules").symlink_to(FOLDER / "node_modules")
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "example.mjs").write_text(here(example, server))
    done = subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "00:00:00,000 --> " in done.stdout


def test_there_are_examples() -> None:
    assert len(blocks("sh", "curl ")) > 1
    assert blocks("js", "OpenAI")
    assert blocks("python", "OpenAI")
    assert len(commands()) > 10


def test_a_file_of_requests(smol_cache: Path, tmp_path: Path) -> None:
    """docs/batches.md's example, by the model that ships: each line is answered, or not, as printed."""
    (example,) = blocks("sh", "blsp batch questions.jsonl")
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    options = f" --cache {smol_cache} --max-model-len 512"
    done = subprocess.run(
        ["bash", "-c", example.rstrip() + options], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 3, done.stderr
    assert "2 answered, 1 failed (1 invalid_value)" in done.stdout + done.stderr
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    shown = PAGES["docs/batches.md"].replace("\n ", " ")
    for answer in answers:
        match answer:
            case {"custom_id": "words"}:
                assert answer["response"]["body"]["text"] in shown
            case {"line": 1}:
                assert answer["response"] in shown
            case _:
                assert answer["error"]


def commands() -> list[str]:
    """The pages' `blsp` command lines, without comments; what goes on behind a backslash is one line."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    found = [re.search(r"(?<![-\w])blsp (?=[a-z])(.*)", line) for line in lines]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("command", commands())
def test_a_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command.partition(" >")[0].partition(" &")[0], comments=True)
    ran = []
    for name, field in cli.Blsp.model_fields.items():
        if (field.alias or name.replace("_", "-")) == words[0]:
            (kind,) = (kind for kind in field.annotation.__args__ if hasattr(kind, "cli_cmd"))  # type: ignore[union-attr]
            monkeypatch.setattr(kind, "cli_cmd", lambda self: ran.append(self))
    monkeypatch.setattr(sys, "argv", ["blsp", *words])
    cli.main()
    assert len(ran) == 1


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_make_has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {name for text in PAGES.values() for name in re.findall(r"`make ([a-z-]+)", text)} <= targets


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].split()) < 1000
