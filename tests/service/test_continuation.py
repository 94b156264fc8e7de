import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.manifest import InputError, read_examples
from models.prompt import Prompt, PromptBuilder
from models.random_init import byte_tokenizer, init_checkpoint
from models.training.batches import transcript_message
from models.training.llm import open_llm
from service.alignment.continuation import Limits, Shard, Writer, write_continuations
from service.audio.recordings import read_samples
from service.errors import Unavailable
from tests.sounds import voice, wav

TOKENIZER = byte_tokenizer(640)
PROMPTS = PromptBuilder(TOKENIZER, "blsp", llm_dim=0)


async def echo(prompt: Prompt, sampling: object, request_id: str) -> AsyncGenerator[SimpleNamespace, None]:
    """Stands in for Engine.stream: continues a prompt with its transcript, backwards, in two steps; "mute" with nothing."""
    text = TOKENIZER.decode(prompt.token_ids).partition("Continue: ")[2].partition("\n")[0]
    await asyncio.sleep(0)
    for part in (" ", "" if text == "mute" else text[::-1]):
        yield SimpleNamespace(text=part)


def make_writer(stream: Any = echo, **limits: Any) -> Writer:
    sampling: Any = SimpleNamespace()
    return Writer(stream, sampling, PROMPTS, read_samples, "Continue:", Limits(**limits))


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """40 lines, pieces of one recording of 5 s."""
    (tmp_path / "long.wav").write_bytes(wav(voice(5)))
    lines = [{"audio": f"long.wav:{i * 1000}:16000", "text": f"sentence {i}", "speaker": 1} for i in range(40)]
    return write(tmp_path / "manifest.jsonl", lines)


def write(file: Path, lines: list[dict]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def run(manifest: Path, out: Path, writer: Writer | None = None, **options: Any) -> Counter[str]:
    writer = writer or make_writer()
    return asyncio.run(write_continuations(manifest, out, writer.instruction, lambda: nullcontext(writer), **options))


def written(out: Path) -> list[dict]:
    return sorted((json.loads(line) for line in out.read_text().splitlines()), key=lambda line: line["index"])


def test_every_line_is_continued_once(manifest: Path, tmp_path: Path) -> None:
    out, heard = tmp_path / "folder" / "out.jsonl", []
    assert run(manifest, out, progress=lambda done, total: heard.append((done, total))) == {"continued": 40}
    for i, line in enumerate(written(out)):
        assert line == {
            "index": i,
            "audio": f"{tmp_path}/long.wav:{i * 1000}:16000",
            "text": f"sentence {i}",
            "samples": 16000,
            "instruction": "Continue:",
            "continuation": f"sentence {i}"[::-1],
        }
    assert [(example.samples, example.text) for example in read_examples(out)[0]] == [
        (16000, line["text"]) for line in written(out)
    ]
    assert heard[0] == (0, 40)
    assert heard[-1] == (40, 40)


def test_the_prompt_is_the_published_one() -> None:
    prompt = PROMPTS.build([transcript_message("Continue:", "hello")])
    assert TOKENIZER.decode(prompt.token_ids) == "<s>###[Human]:Continue: hello\n\n\n###[Assistant]:"


def test_shards_share_the_lines(manifest: Path, tmp_path: Path) -> None:
    outs = [tmp_path / f"{i}.jsonl" for i in range(3)]
    counts = [run(manifest, out, shard=Shard.parse(f"{i}/3")) for i, out in enumerate(outs)]
    assert [count.total() for count in counts] == [14, 13, 13]
    assert sorted(line["index"] for out in outs for line in written(out)) == list(range(40))


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "1/0"])
def test_wrong_shards(text: str) -> None:
    with pytest.raises(InputError, match="shard"):
        Shard.parse(text)


@pytest.mark.parametrize("kept", [0, 1, 17, 40])
@pytest.mark.parametrize("torn", ["", '{"index": 39, "audio"', '{"index": 39, "text": "stra\xc3'])
def test_a_torn_output_is_completed(manifest: Path, tmp_path: Path, kept: int, torn: str) -> None:
    out = tmp_path / "out.jsonl"
    run(manifest, out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_bytes("".join(lines[:kept]).encode() + torn.encode("latin-1"))
    asked = []

    async def stream(prompt: Prompt, sampling: object, request_id: str) -> AsyncGenerator[SimpleNamespace, None]:
        asked.append(request_id)
        async for delta in echo(prompt, sampling, request_id):
            yield delta

    assert run(manifest, out, make_writer(stream)) == {"continued": 40}
    assert len(asked) == 40 - kept
    assert [line["index"] for line in written(out)] == list(range(40))


def test_what_is_complete_needs_no_writer(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(manifest, out)
    done = write_continuations(manifest, out, "Continue:", lambda: pytest.fail("opened"))
    assert asyncio.run(done) == {"continued": 40}


KILLED = """
import sys
from pathlib import Path
from tests.service import test_continuation as t

async def stream(prompt, sampling, request_id):
    if request_id == "line-23":
        print("now", flush=True)
        t.signal.pause()
    async for delta in t.echo(prompt, sampling, request_id):
        yield delta

t.run(Path(sys.argv[1]), Path(sys.argv[2]), t.make_writer(stream), concurrency=4)
"""


def test_kill_9_loses_and_doubles_nothing(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with subprocess.Popen([sys.executable, "-c", KILLED, manifest, out], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(InputError, match="another process"):
            run(manifest, out)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = written(out)
    assert 15 < len(before) < 30
    assert run(manifest, out) == {"continued": 40}
    after = written(out)
    assert [line["index"] for line in after] == list(range(40))
    assert all(line in after for line in before)


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    (tmp_path / "good.wav").write_bytes(wav(voice(1)))
    (tmp_path / "bad.wav").write_bytes(b"RIFF and then nothing")
    good = {"audio": "good.wav", "text": "hello"}
    lines = [
        good,
        good | {"text": " \n"},
        good | {"text": "mute"},
        good | {"text": "x" * 200},
        good | {"audio": "bad.wav"},
        good | {"audio": "missing.wav"},
        good | {"audio": "good.wav:0:1000"},
        good | {"audio": "good.wav:50000:1000"},
        {"audio": "long.wav", "text": "hello"},
    ]
    (tmp_path / "long.wav").write_bytes(wav(voice(3)))
    out = tmp_path / "out.jsonl"
    counts = run(write(tmp_path / "m.jsonl", lines), out, make_writer(max_seconds=2))
    assert counts == {
        "continued": 1,
        "empty text": 1,
        "empty continuation": 1,
        "text too long": 1,
        "unreadable audio": 3,
        "audio too short": 1,
        "audio too long": 1,
    }
    assert written(out)[4] == {
        "index": 4,
        "audio": f"{tmp_path}/bad.wav",
        "text": "hello",
        "instruction": "Continue:",
        "dropped": "unreadable audio",
    }
    assert run(tmp_path / "m.jsonl", out, make_writer(max_seconds=2)) == counts


def test_an_output_of_another_manifest_is_refused(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(manifest, out)
    before = out.read_bytes()
    other = write(tmp_path / "other.jsonl", [{"audio": "a.wav", "text": "another sentence"}])
    with pytest.raises(InputError, match="not from this shard"):
        run(other, out)
    with pytest.raises(InputError, match="not from this shard"):
        run(manifest, out, shard=Shard(0, 2))
    elsewhere = [{"audio": f"long.wav:{i * 1000 + 1}:16000", "text": f"sentence {i}"} for i in range(40)]
    with pytest.raises(InputError, match="not from this shard"):
        run(write(tmp_path / "elsewhere.jsonl", elsewhere), out)
    with pytest.raises(InputError, match="with this instruction"):
        run(manifest, out, replace(make_writer(), instruction="Repeat:"))
    assert out.read_bytes() == before


def test_a_dead_engine_ends_the_run(manifest: Path, tmp_path: Path) -> None:
    async def stream(prompt: Prompt, sampling: object, request_id: str) -> AsyncGenerator[SimpleNamespace, None]:
        if request_id == "line-9":
            raise Unavailable("dead")
        async for delta in echo(prompt, sampling, request_id):
            yield delta

    out = tmp_path / "out.jsonl"
    with pytest.raises(Unavailable):
        run(manifest, out, make_writer(stream), concurrency=2)
    assert 0 < len(written(out)) < 40
    assert run(manifest, out) == {"continued": 40}


def test_the_llm_of_a_checkpoint_or_an_llm(official: Path, tmp_path: Path) -> None:
    random = tmp_path / "random"
    sizes: dict[str, Any] = {
        "encoder_dim": 16,
        "encoder_layers": 1,
        "encoder_heads": 1,
        "n_mels": 80,
        "llm_dim": 32,
        "llm_layers": 1,
    }
    sizes |= {"llm_heads": 1, "llm_ffn_dim": 32, "vocabulary": 260, "context": 64, "adapter_inner_dim": 8, "seed": 0}
    init_checkpoint(target=random, conv_kernel_sizes=(3,), padding="exact", prompt_format="blsp", **sizes)
    for name, format in ((official, "blsp"), (random, "blsp"), (random / "llm", "chat-template")):
        llm, prompts = open_llm(str(name), tmp_path / "cache", None)
        assert (llm / "config.json").exists()
        assert prompts.prompt_format == format
        assert prompts.build([transcript_message("Continue:", "hello")]).speech_tokens == 0
    assert open_llm(str(random / "llm"), tmp_path, "blsp")[1].prompt_format == "blsp"
