"""`blsp batch` over the demo's samples in every form: killed in the middle, then run again."""

import base64
import json
import os
import select
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.settings import DEMO
from tests.serving import BLSP
from tests.sounds import voice, wav

SAMPLES = DEMO.parent / "samples"
ROWS: list[dict[str, str]] = json.loads((SAMPLES / "samples.json").read_text())
INSTRUCTION = json.loads((DEMO / "config.json").read_text())["transcribe_instruction"]
TORN = b'{"audio": "pipe.wav", "line": 13, "respo'


@dataclass
class KilledBatch:
    """Two runs over one input; the first one got kill -9 while it was reading a recording."""

    source: Path
    out: Path
    before: list[dict[str, Any]]
    """What was in the output after the kill."""
    survivors: list[str]
    """Processes of the first run that were there a minute after its end."""
    resumed: subprocess.CompletedProcess[str]
    options: list[str | Path]

    @property
    def outputs(self) -> dict[int, dict[str, Any]]:
        """The output of each line by its number."""
        numbered = (json.loads(line) for line in self.out.read_text().splitlines())
        return {line.get("line") or int(line["id"].removeprefix("line-")): line for line in numbered}

    def replies(self, file: str) -> dict[str, str]:
        """The replies to INSTRUCTION about one of the demo's samples, by the form of the line."""
        by_form = {"chat": lambda body: body["choices"][0]["message"]["content"]}
        return {
            form: answer["response"]
            if form == "official"
            else by_form.get(form, lambda body: body["text"])(answer["response"]["body"])
            for form, number in form_lines(file).items()
            for answer in [self.outputs[number]]
        }


def form_lines(file: str) -> dict[str, int]:
    """The numbers of the lines about one of the samples."""
    index = [row["file"] for row in ROWS].index(file)
    count = len(ROWS)
    forms = ("official", "chat", "speech", "transcription")
    return {form: i * (count + 1) + index + 1 for i, form in enumerate(forms)}


def openai_line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def chat(audio: str, **fields: Any) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": INSTRUCTION},
        {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}},
    ]
    return {"model": "blsp-demo", "messages": [{"role": "user", "content": parts}], "temperature": 0} | fields


def lines() -> list[str]:
    """Each sample in each form; a line stands between the forms that is done or fails in its own way."""
    audio = {row["file"]: base64.b64encode((SAMPLES / row["file"]).read_bytes()).decode() for row in ROWS}
    some = next(iter(audio.values()))
    official = [
        {"audio": f"samples/{name}", "instruction": INSTRUCTION, "reference": row["text"]}
        for name, row in zip(audio, ROWS, strict=True)
    ]
    chats = [openai_line(f"chat-{name}", "/v1/chat/completions", chat(data)) for name, data in audio.items()]
    speech = [
        openai_line(f"speech-{name}", "/v1/speech", {"file": f"samples/{name}", "instruction": INSTRUCTION})
        for name in audio
    ]
    transcriptions = [
        openai_line(f"transcription-{name}", "/v1/audio/transcriptions", {"file_url": f"data:audio/wav;base64,{data}"})
        for name, data in audio.items()
    ]
    in_between: list[dict[str, Any]] = [
        {"audio": "pipe.wav:0:400000"},
        {"audio": "samples/00-animal.wav:1600:16000", "instruction": INSTRUCTION, "speaker": "\ud800"},
        openai_line("srt", "/v1/audio/transcriptions", {"file": "long.wav:0:48000", "response_format": "srt"}),
    ]
    broken: list[dict[str, Any] | str] = [
        {"audio": "missing.wav", "instruction": INSTRUCTION},
        {"audio": "long.wav"},
        {"audio": "lines.jsonl"},
        {"audio": 3},
        "{not JSON",
        "[]",
        "",
        openai_line("embeddings", "/v1/embeddings", {}),
        {"custom_id": "get", "method": "GET", "url": "/v1/chat/completions", "body": {}},
        {"method": "POST", "url": "/v1/chat/completions", "body": {}},
        openai_line("stream", "/v1/chat/completions", chat(some, stream=True)),
        openai_line("model", "/v1/chat/completions", chat(some, model="other")),
        openai_line("field", "/v1/speech", {"file": "samples/00-animal.wav", "nonsense": 1}),
        openai_line("url", "/v1/audio/translations", {"file_url": "http://127.0.0.1/speech.wav"}),
        openai_line("no audio", "/v1/audio/translations", {}),
    ]
    good = [*official, in_between[0], *chats, in_between[1], *speech, in_between[2], *transcriptions]
    return [line if isinstance(line, str) else json.dumps(line) for line in [*good, *broken]]


BROKEN = len(ROWS) * 4 + 4  # number of the first broken line


def run_killed_batch(folder: Path, cache: Path) -> KilledBatch:
    source, out, pipe = folder / "lines.jsonl", folder / "out" / "answers.jsonl", folder / "pipe.wav"
    source.write_text("\n".join(lines()))
    (folder / "samples").symlink_to(SAMPLES)
    (folder / "long.wav").write_bytes(wav(voice(7)))
    options: list[str | Path] = ["--dtype", "float32", "--cache", cache, "--max-audio-seconds", "6"]
    command = [BLSP, "batch", source, out, *options]

    os.mkfifo(pipe)
    with subprocess.Popen([*command, "--concurrency", "4"], stderr=subprocess.DEVNULL) as first:
        with pipe.open("wb"):  # waits until it is opened for reading as well
            family = {os.pidfd_open(pid): name for pid, name in descendants(first.pid).items()}
            first.kill()
        survivors = [name for process, name in family.items() if not select.select([process], [], [], 60)[0]]
    for process in family:
        os.close(process)
    before = [json.loads(line) for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")]
    with out.open("ab") as file:
        file.write(TORN)
    pipe.unlink()
    shutil.copy(SAMPLES / ROWS[0]["file"], pipe)
    env = os.environ | {"COLUMNS": "200"}
    resumed = subprocess.run(
        [*command, "--instruction", INSTRUCTION], capture_output=True, text=True, env=env, timeout=200
    )
    return KilledBatch(source, out, before, survivors, resumed, options)


def descendants(process: int) -> dict[int, str]:
    """All processes below one, and their names."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    family = {str(process)}
    for _ in rows:  # a child may stand before its parent
        family |= {pid for pid, parent, _ in rows if parent in family}
    return {int(pid): name for pid, _, name in rows if pid in family - {str(process)}}
