import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, CliSubCommand, SettingsConfigDict
from safetensors.torch import load_file

from models.checkpoint import open_checkpoint
from models.training import CONTINUE
from service.alignment.commands import Align, Continue, Evaluate, Instruct
from tests.sounds import voice, wav

TRAINER = ["--max_steps", "2", "--use_cpu", "--per_device_train_batch_size=2", "--dataloader_pin_memory=false"]


class App(BaseSettings):
    """As service/cli.py's Blsp."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_implicit_flags=True)

    continue_: CliSubCommand[Continue] = Field(alias="continue")
    align: CliSubCommand[Align]
    evaluate: CliSubCommand[Evaluate]
    instruct: CliSubCommand[Instruct]

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


def run(*arguments: object) -> None:
    CliApp.run(App, cli_args=[str(argument) for argument in arguments])


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(wav(voice(1.5)))
    return tmp_path / "a.wav"


def test_align_then_evaluate(official: Path, recording: Path, tmp_path: Path) -> None:
    cache = ("--cache", tmp_path / "cache")
    lines = [{"audio": f"a.wav:{i}:16000", "text": "No.", "samples": 16000, "continuation": "Yes."} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("align", official, tmp_path / "data.jsonl", tmp_path / "run", "--loss", "kl", *cache, *TRAINER)
    assert open_checkpoint(str(tmp_path / "run"), tmp_path).load_embedder()

    question = {"audio": "a.wav", "text": "No.", "instruction": "Repeat:", "reference": "No.", "task": "wer"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question) + "\n")
    run("evaluate", tmp_path / "run", tmp_path / "questions.jsonl", tmp_path / "result", "--max-tokens", "4")
    assert json.loads((tmp_path / "result" / "evaluation.json").read_text())["alignment"]["tokens"] > 0


SCRIPT = "import sys; from tests.service.test_training_cli import run; run(*sys.argv[1:])"


def test_two_processes_train_as_one(official: Path, recording: Path, tmp_path: Path) -> None:
    lines = [
        {
            "audio": f"a.wav:{i * 100}:{16000 - 500 * i}",
            "text": "",
            "samples": 16000 - 500 * i,
            "continuation": "Yes." * i,
        }
        for i in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "script.py").write_text(SCRIPT)
    options = ["--cache", tmp_path / "cache", "--use_cpu", "--max_steps", "2", "--gradient_accumulation_steps=1"]
    options += ["--learning_rate=0.1", "--optim=sgd", "--warmup_steps=0", "--dataloader_pin_memory=false"]
    inputs = [official, tmp_path / "data.jsonl"]
    run("align", *inputs, tmp_path / "one", *options, "--per_device_train_batch_size=4")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, tmp_path / "script.py", "align", *inputs, tmp_path / "two", *options]
    done = subprocess.run(
        [*map(str, command), "--per_device_train_batch_size=2"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Wrote") == 1
    before = load_file(next((tmp_path / "cache").glob("*/adapter.safetensors")))
    one, two = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    for name, weight in one.items():
        change = weight - before[name]
        assert (two[name] - weight).norm() < 1e-3 * change.norm(), name


def test_instruct(official: Path, tmp_path: Path) -> None:
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "Well?", "input": "", "output": "No."}] * 3))
    run("instruct", official, tmp_path / "alpaca.json", tmp_path / "llm", "--cache", tmp_path / "cache", *TRAINER)
    assert (tmp_path / "llm" / "model.safetensors").exists()
    assert (tmp_path / "llm" / "tokenizer.json").exists()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Continue]:
    """The commands that would have run."""
    seen: list[Continue] = []
    monkeypatch.setattr(Continue, "cli_cmd", seen.append)
    return seen


def test_published_settings_are_the_defaults(seen: list[Continue]) -> None:
    run("continue", "in.jsonl", "out.jsonl", "--model", "m")
    assert (seen[0].instruction, seen[0].max_tokens, seen[0].temperature) == (CONTINUE, 64, 0)


def test_unknown_options_go_on_to_vllm(seen: list[Continue]) -> None:
    run("continue", "in.jsonl", "out.jsonl", "--model", "m", "--shard", "1/4", "--max-num-seqs", "8")
    assert seen[0].vllm == ["--max-num-seqs", "8"]
    assert seen[0].shard == "1/4"
