"""Killed and run again with a real engine, and what can be seen without one."""

import asyncio
import base64
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from models.manifest import InputError
from service.answers.speech import SpeechRequest
from service.errors import ModelNotFound, Unavailable
from service.offline.batch import open_batch
from service.offline.clerk import Clerk
from tests.killed_batch import BROKEN, INSTRUCTION, SAMPLES, TOKENS, KilledBatch, chat, lines
from tests.serving import BLSP, Server


def test_kill_9_loses_and_doubles_nothing(killed_batch: KilledBatch) -> None:
    assert 0 < len(killed_batch.before) < len(killed_batch.outputs)
    written = [json.loads(line) for line in killed_batch.out.read_text().splitlines()]
    assert written[: len(killed_batch.before)] == killed_batch.before
    blank = lines().index("") + 1
    assert sorted(killed_batch.outputs) == [i for i in range(1, len(lines()) + 1) if i != blank]
    assert len(written) == len(killed_batch.outputs)


def test_kill_9_leaves_no_engine_behind(killed_batch: KilledBatch) -> None:
    assert killed_batch.survivors == []


def test_a_line_comes_back_with_its_fields(killed_batch: KilledBatch) -> None:
    for number, text in enumerate(lines()[: BROKEN - 1], 1):
        line, output = json.loads(text), killed_batch.outputs[number]
        if "audio" in line:
            assert output == line | {"line": number, "response": output["response"], "error": None}
            assert output["response"]
        else:
            assert list(output) == ["id", "custom_id", "response", "error"]
            assert (output["id"], output["custom_id"]) == (f"line-{number}", line["custom_id"])
            assert output["error"] is None
            assert list(output["response"]) == ["status_code", "request_id", "body"]
            assert output["response"]["status_code"] == 200


def test_a_default_instruction_a_piece_and_subtitles(killed_batch: KilledBatch) -> None:
    count = len(SAMPLES)
    whole, piece = killed_batch.outputs[count + 1], killed_batch.outputs[2 * count + 2]
    assert whole["response"] == killed_batch.outputs[1]["response"] != piece["response"]
    subtitles = killed_batch.outputs[3 * count + 3]["response"]["body"]
    assert subtitles.startswith("1\n00:00:00,000 --> 00:00:03,000\n")


def test_every_way_in_gives_the_same_greedy_text(server: Server, killed_batch: KilledBatch) -> None:
    """Through HTTP and in a batch, killed or not; a transcription, which has no `max_tokens`, begins with it."""
    fields = {"instruction": INSTRUCTION, "max_tokens": str(TOKENS)}
    with server.client() as client:
        for name, audio in SAMPLES.items():
            reply = client.post("/v1/speech", content=audio, params=fields).json()["text"]
            answer = client.post("/v1/chat/completions", json=chat(base64.b64encode(audio).decode()))
            written = killed_batch.replies(name)
            transcript = written.pop("transcription")
            assert answer.json()["choices"][0]["message"]["content"] == reply
            assert written == dict.fromkeys(("official", "chat", "speech"), reply)
            beginning = reply.rstrip("\ufffd").strip()  # less a character that the last token left unfinished
            assert beginning
            assert transcript.startswith(beginning)


ERRORS = {
    0: ("invalid_value", "'missing.wav' can't be read: .*No such file"),
    1: ("audio_too_long", "6 s"),
    2: ("unsupported_media_type", ""),
    3: ("invalid_value", "path of a recording is a string"),
    4: ("invalid_value", "not JSON"),
    5: ("invalid_value", "A line is"),
    7: ("invalid_value", "'/v1/embeddings'; use one of /v1/chat/completions"),
    8: ("invalid_value", "method: Input should be 'POST'"),
    9: ("invalid_value", "custom_id: Field required"),
    10: ("invalid_value", "can't be streamed"),
    11: ("model_not_found", "this server has 'tiny'"),
    12: ("invalid_value", "Unknown field 'nonsense'"),
    13: ("invalid_value", "no data: URL"),
    14: ("invalid_value", "path of a recording is a string"),
}


@pytest.mark.parametrize("offset", ERRORS)
def test_what_is_wrong_with_a_line_is_told(killed_batch: KilledBatch, offset: int) -> None:
    output = killed_batch.outputs[BROKEN + offset]
    response = output["response"]
    error = output["error"] or response["body"]["error"]
    code, message = ERRORS[offset]
    assert error["code"] == code
    assert re.search(message, error["message"], re.I)
    assert error["message"] in killed_batch.resumed.stderr
    assert f"lines.jsonl:{BROKEN + offset}: " in killed_batch.resumed.stderr
    statuses = {11: 404, 10: 400, 12: 400, 13: 400, 14: 400}
    assert (response and response["status_code"]) == statuses.get(offset)


def test_the_status_and_the_last_line_say_that_lines_failed(killed_batch: KilledBatch) -> None:
    codes = Counter(code for code, _ in ERRORS.values())
    details = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
    last = f"{killed_batch.out}: {BROKEN - 1} answered, {len(ERRORS)} failed ({details})"
    assert killed_batch.resumed.returncode == 3
    assert killed_batch.resumed.stderr.splitlines()[-1] == last
    again = subprocess.run(
        [BLSP, "batch", killed_batch.source, killed_batch.out], capture_output=True, text=True, timeout=200
    )
    assert (again.returncode, again.stderr) == (3, f"{last}\n"), "nothing is left: no engine starts"


def write(file: Path, lines: list[Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in.jsonl", [{"audio": f"{i}.wav", "instruction": "Hi"} for i in range(100)])


async def echo(number: int, text: bytes) -> dict[str, Any]:
    """Stands in for Clerk.answer."""
    await asyncio.sleep(0)
    return json.loads(text) | {"line": number, "response": "yes", "error": None}


def run(source: Path, out: Path, answer: Any = echo, **options: Any) -> Counter[str]:
    with open_batch(source, out) as batch:
        asyncio.run(batch.run(answer, **{"concurrency": 8} | options))
        return batch.counts


def test_a_line_is_read_when_it_can_begin(source: Path, tmp_path: Path) -> None:
    """All of `concurrency` lines are in work, never more; each that ends makes room for one."""
    running: set[int] = set()
    most = []

    async def answer(number: int, text: bytes) -> dict[str, Any]:
        running.add(number)
        most.append(len(running))
        output = await echo(number, text)
        running.remove(number)
        return output

    heard: list[tuple[int, int]] = []
    assert run(source, tmp_path / "out", answer, progress=lambda *counts: heard.append(counts)) == {"answered": 100}
    assert max(most) == 8
    assert most[-1] > 4
    assert heard == [(done, 100) for done in range(101)]


def test_a_dead_engine_fails_no_line(source: Path, tmp_path: Path) -> None:
    async def answer(number: int, text: bytes) -> dict[str, Any]:
        if number == 50:
            raise Unavailable("dead")
        return await echo(number, text)

    with pytest.raises(Unavailable):
        run(source, tmp_path / "out", answer)
    with open_batch(source, tmp_path / "out") as batch:
        assert 40 < len(batch.done) < 50
        assert batch.counts == {"answered": len(batch.done)}
    assert run(source, tmp_path / "out") == {"answered": 100}


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ([{"audio": "other.wav", "instruction": "Hi"}] * 100, "line 1 of .* was another one"),
        ([{"audio": f"{i}.wav", "instruction": "Bye"} for i in range(100)], "was another one"),
        ([{"audio": f"{i}.wav", "instruction": "Hi"} for i in range(99)], "has lines that"),
    ],
)
def test_an_output_of_another_input_is_refused(source: Path, tmp_path: Path, other: list[Any], complaint: str) -> None:
    out = tmp_path / "out"
    run(source, out)
    before = out.read_bytes()
    with pytest.raises(InputError, match=complaint):
        run(write(tmp_path / "other", other), out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", [b"notes", b"some\nnotes", b'{"audio": "a.wav"}\n{"audio"', b"[]\n", b"\xff\n"])
def test_a_file_that_is_no_output_stays_as_it_is(source: Path, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    out.write_bytes(content)
    with pytest.raises(InputError, match="not"):
        run(source, out)
    assert out.read_bytes() == content


def test_the_input_is_no_output(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(InputError, match="is the input"):
        run(source, source)
    assert source.read_bytes() == before


def test_two_runs_do_not_share_an_output(source: Path, tmp_path: Path) -> None:
    with open_batch(source, tmp_path / "out"), pytest.raises(InputError, match="another process"):
        run(source, tmp_path / "out")


def test_a_missing_input_makes_no_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_a_line_names_its_model(tmp_path: Path) -> None:
    """Without one it is the first's; and one that is not there is told."""

    def find(asked: str | None) -> Any:
        if asked == "nope":
            raise ModelNotFound("The model 'nope' does not exist.", param="model")

        async def complete(request: Any) -> dict[str, Any]:
            return {"by": asked}

        return SimpleNamespace(chat=SimpleNamespace(complete=complete))

    clerk = Clerk(cast(Any, SimpleNamespace(models=SimpleNamespace(find=find))), tmp_path, SpeechRequest())
    told = []
    for model in ({"model": "second"}, {}, {"model": "nope"}):
        body = {"messages": [{"role": "user", "content": "Hi"}], **model}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        told.append((await clerk.answer(1, json.dumps(line).encode()))["response"])
    assert [reply["status_code"] for reply in told] == [200, 200, 404]
    assert [reply["body"].get("by") for reply in told] == ["second", None, None]
