import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, CliSubCommand, SettingsConfigDict
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import open_checkpoint
from models.config import AdapterSizes
from models.evaluation.local import LocalModel
from models.prompt import CONTINUE
from models.training.align import shared_config
from models.updates import adapter_tensors
from service.alignment.commands import Align, Continue, Evaluate, Instruct, Update, WarmStart
from service.audio.recordings import read_samples
from tests.serving import BLSP
from tests.sounds import encode, voice, wav

TRAINER = ["--max_steps", "2", "--use_cpu", "--per_device_train_batch_size=2", "--dataloader_pin_memory=false"]


class App(BaseSettings):
    """As service/cli.py's Blsp."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_implicit_flags=True)

    continue_: CliSubCommand[Continue] = Field(alias="continue")
    warm_start: CliSubCommand[WarmStart]
    align: CliSubCommand[Align]
    evaluate: CliSubCommand[Evaluate]
    update: CliSubCommand[Update]
    instruct: CliSubCommand[Instruct]

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)


def run(*arguments: object) -> None:
    CliApp.run(App, cli_args=[str(argument) for argument in arguments])


def write(file: Path, lines: Sequence[Mapping[str, object]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def corpus(tmp_path: Path) -> list[dict[str, object]]:
    """A folder as the official data preparation leaves it: pieces of one long wav file and a FLAC file; and the manifest's lines."""
    spoken = [voice(1 + seed / 4, seed) for seed in range(4)]
    names = ["other.flac"]
    (tmp_path / names[0]).write_bytes(encode("flac", "flac", spoken[0]))
    (tmp_path / "talk.wav").write_bytes(wav(np.concatenate(spoken)))
    start = len(spoken[0])
    for samples in spoken[1:]:
        names.append(f"talk.wav:{start}:{len(samples)}")
        start += len(samples)
    return [{"audio": name, "text": f"This is sentence {i}."} for i, name in enumerate(names)]


def test_from_recordings_to_a_measured_adapter(
    official: Path, corpus: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data's whole way: a real engine continues the transcripts, two steps of training, and an evaluation."""
    lost = {"audio": "talk.wav:99999999:16000", "text": "nothing is there"}
    manifest = write(tmp_path / "manifest.jsonl", [*corpus[:2], lost, *corpus[2:]])
    out = tmp_path / "continuations.jsonl"
    checkpoint = open_checkpoint(str(official), tmp_path / "cache")
    command: list[str | Path] = [BLSP, "continue", manifest, out, "--model", checkpoint.folder, "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "dropped: unreadable audio" in done.stderr

    written = sorted(map(json.loads, out.read_text().splitlines()), key=lambda line: line["index"])
    assert written.pop(2)["dropped"]
    texts = [str(line["text"]) for line in corpus]
    assert [line["text"] for line in written] == texts
    model = LocalModel(checkpoint, read_samples)
    assert [line["continuation"] for line in written] == model.from_text(texts, [CONTINUE] * len(texts), 64)

    step = ["--max_steps=2", "--warmup_steps=0", "--use_cpu", "--dataloader_pin_memory=false"]
    run("align", checkpoint.folder, out, tmp_path / "run", *step)
    assert "lines passed over: 1 (unreadable audio)" in capsys.readouterr().err
    before, after = (load_file(folder / "adapter.safetensors") for folder in (checkpoint.folder, tmp_path / "run"))
    assert all(not torch.equal(after[name], weight.float()) for name, weight in before.items())

    question = {"instruction": "Please repeat the words you hear.", "task": "wer"}
    questions = write(tmp_path / "questions.jsonl", [line | question | {"reference": line["text"]} for line in corpus])
    run("evaluate", tmp_path / "run", questions, tmp_path / "result")
    result = json.loads((tmp_path / "result" / "evaluation.json").read_text())
    assert result["groups"][0]["text"].keys() == result["groups"][0]["speech"].keys() == {"WER"}
    assert 0 < result["alignment"]["top1_agreement"] < 1


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    (tmp_path / "a.wav").write_bytes(wav(voice(1.5)))
    return tmp_path / "a.wav"


def test_align_then_evaluate(official: Path, recording: Path, tmp_path: Path) -> None:
    cache = ("--cache", tmp_path / "cache")
    lines = [{"audio": f"a.wav:{i}:16000", "text": "No.", "samples": 16000, "continuation": "Yes."} for i in range(4)]
    write(tmp_path / "data.jsonl", lines)
    run("align", official, tmp_path / "data.jsonl", tmp_path / "run", "--loss", "kl", *cache, *TRAINER)
    assert open_checkpoint(str(tmp_path / "run"), tmp_path).load_embedder()

    question = {"audio": "a.wav", "text": "No.", "instruction": "Repeat:", "reference": "No.", "task": "wer"}
    write(tmp_path / "questions.jsonl", [question])
    run("evaluate", tmp_path / "run", tmp_path / "questions.jsonl", tmp_path / "result", "--max-tokens", "4")
    assert json.loads((tmp_path / "result" / "evaluation.json").read_text())["alignment"]["tokens"] > 0


def test_align_goes_on_from_a_warm_start(
    official: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The states that the warm start kept are those that align takes; its lines say what they reply to and how they are learnt."""
    options = ("--cache", tmp_path / "cache", "--states", tmp_path / "states", *TRAINER)
    lines = [{"audio": f"a.wav:{i}:16000", "text": "No."} for i in range(4)]
    write(tmp_path / "manifest.jsonl", lines)
    sizes = AdapterSizes(conv_kernel_sizes=(3, 3), inner_dim=8, spelling_dim=16)
    config = shared_config(open_checkpoint(str(official), tmp_path / "cache")).model_copy(update={"adapter": sizes})
    speller = tmp_path / "speller"
    speller.mkdir()
    config.write(speller)
    run("warm-start", speller, tmp_path / "manifest.jsonl", tmp_path / "warm", "--negatives", "2", *options)
    assert "4/4" in capsys.readouterr().err
    run("warm-start", tmp_path / "warm", tmp_path / "manifest.jsonl", tmp_path / "more", "--rank", "1", *options)
    run("update", tmp_path / "warm", tmp_path / "more", tmp_path / "warm" / "update.safetensors", "--rank", "1")
    assert "MB" in capsys.readouterr().err
    note = tmp_path / "states" / "states.json"
    made = note.stat().st_mtime_ns
    told = [{"instruction": "Repeat:", "loss": "ce"}, {"instruction": "Answer:", "loss": "kl"}] * 2
    learnt = [line | reply | {"samples": 16000, "continuation": "No."} for line, reply in zip(lines, told, strict=True)]
    write(tmp_path / "data.jsonl", learnt)
    run("align", tmp_path / "warm", tmp_path / "data.jsonl", tmp_path / "run", *options)
    assert note.stat().st_mtime_ns == made
    warm, aligned = (dict(adapter_tensors(tmp_path / folder)) for folder in ("warm", "run"))
    assert any(not torch.equal(aligned[name], weight) for name, weight in warm.items())
    assert open_checkpoint(str(tmp_path / "run"), tmp_path).load_embedder()


@pytest.fixture
def pieces(recording: Path) -> Path:
    """What `blsp continue` writes about eight pieces of the recording."""
    lines = [
        {
            "audio": f"a.wav:{i * 100}:{16000 - 500 * i}",
            "text": "",
            "samples": 16000 - 500 * i,
            "continuation": "Yes." * i,
        }
        for i in range(8)
    ]
    return write(recording.with_name("data.jsonl"), lines)


SCRIPT = "import sys; from tests.service.test_training_cli import run; run(*sys.argv[1:])"


def run_twice(folder: Path, *arguments: object) -> None:
    """A command in two processes under torchrun."""
    (folder / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([".", os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*torchrun, folder / "script.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Wrote") == 1


def changes(folder: Path, *runs: str) -> Iterator[tuple[str, list[Tensor]]]:
    """Each weight's name, and what each run has added to it."""
    before = load_file(next((folder / "cache").glob("*/adapter.safetensors")))
    after = [load_file(folder / name / "adapter.safetensors") for name in runs]
    for name, weight in before.items():
        yield name, [adapter[name] - weight for adapter in after]


def test_two_processes_train_as_one(official: Path, pieces: Path, tmp_path: Path) -> None:
    options = ["--cache", tmp_path / "cache", "--use_cpu", "--max_steps", "2", "--gradient_accumulation_steps=1"]
    options += ["--learning_rate=0.1", "--optim=sgd", "--warmup_steps=0", "--dataloader_pin_memory=false"]
    run("align", official, pieces, tmp_path / "one", *options, "--per_device_train_batch_size=4")
    run_twice(tmp_path, "align", official, pieces, tmp_path / "two", *options, "--per_device_train_batch_size=2")
    for name, (one, two) in changes(tmp_path, "one", "two"):
        assert (two - one).norm() < 1e-3 * one.norm(), name


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_trains_alike_saves_nothing_frozen_and_goes_on(official: Path, pieces: Path, tmp_path: Path) -> None:
    """ZeRO-2 with the configuration of docs/training.md."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (config,) = re.findall(r"zero2\.json <<END\n(.*?)END\n", page, re.S)
    (tmp_path / "zero2.json").write_text(config)
    options = ["--cache", tmp_path / "cache", "--use_cpu", "--bf16", "--max_steps=4", "--save_steps=2"]
    options += ["--learning_rate=0.01", "--warmup_steps=0", "--dataloader_pin_memory=false"]
    options += ["--dataloader_num_workers=1", "--gradient_accumulation_steps=2"]
    run("align", official, pieces, tmp_path / "plain", *options, "--per_device_train_batch_size=2")
    options += ["--per_device_train_batch_size=1", "--deepspeed", tmp_path / "zero2.json"]
    run_twice(tmp_path, "align", official, pieces, tmp_path / "whole", *options)
    for name, (plain, whole) in changes(tmp_path, "plain", "whole"):
        assert torch.cosine_similarity(plain.flatten(), whole.flatten(), dim=0) > 0.9, name

    half = tmp_path / "whole" / "checkpoint-2"
    for file in half.rglob("*model_states.pt"):
        state = torch.load(file, weights_only=False)
        assert all(name.startswith("embedder.adapter.") for name in state["module"])
        assert not state["frozen_param_fragments"]

    shutil.copytree(half, tmp_path / "cut" / half.name)
    run_twice(tmp_path, "align", official, pieces, tmp_path / "cut", *options)
    for name, (whole, cut) in changes(tmp_path, "whole", "cut"):
        assert torch.equal(whole, cut), name


def test_a_server_is_asked_with_the_key(recording: Path, tmp_path: Path) -> None:
    keys: list[str | None] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            keys.append(self.headers["authorization"])
            message = {"role": "assistant", "content": "No."}
            body = json.dumps({"data": [{"id": "m"}], "choices": [{"message": message}], "text": "No."}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    question = {"audio": "a.wav", "text": "No.", "instruction": "Repeat:", "reference": "No.", "task": "exact"}
    questions = write(tmp_path / "questions.jsonl", [question])
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as answering:
        threading.Thread(target=answering.serve_forever).start()
        url = f"http://127.0.0.1:{answering.server_port}"
        run("evaluate", url, questions, tmp_path / "result", "--api-key", "sk-secret")
        answering.shutdown()
    assert keys == ["Bearer sk-secret"] * 3
    assert "sk-secret" not in (tmp_path / "result" / "evaluation.json").read_text()


def test_instruct(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of three lessons has a question that leaves no room for an answer: an epoch has two steps of one."""
    lessons = [{"instruction": "Well?", "input": "", "output": "No."}] * 2
    lessons += [{"instruction": "Well? " * 400, "output": "No."}]
    (tmp_path / "alpaca.json").write_text(json.dumps(lessons))
    options = ["--cache", tmp_path / "cache", *TRAINER, "--gradient_accumulation_steps=1"]
    options += ["--per_device_train_batch_size=1", "--max_steps=-1", "--num_train_epochs=1"]
    run("instruct", official, tmp_path / "alpaca.json", tmp_path / "llm", *options)
    assert (tmp_path / "llm" / "model.safetensors").exists()
    assert json.loads((tmp_path / "llm" / "trainer_state.json").read_text())["global_step"] == 2
    assert "lessons passed over: 1 " in capsys.readouterr().err
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
