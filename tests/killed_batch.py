"""`blsp batch` over recordings in every form: killed in the middle, then run again."""

import base64
import json
import os
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import BlspConfig
from tests.serving import BLSP
from tests.sounds import voice, wav

SAMPLES = {f"{seed}.wav": wav(voice(1.5 + 0.5 * seed, seed)) for seed in range(6)}
INSTRUCTION = BlspConfig().transcribe_instruction
TOKENS = 12  # of a reply; a transcription has no such field, and ends with the context
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
        """The replies to INSTRUCTION about one of the samples, by the form of the line."""
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
    index, count = list(SAMPLES).index(file), len(SAMPLES)
    forms = ("official", "chat", "speech", "transcription")
    return {form: i * (count + 1) + index + 1 for i, form in enumerate(forms)}


def openai_line(custom_id: str, url: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def chat(audio: str, **fields: Any) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": INSTRUCTION},
        {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}},
    ]
    message = {"role": "user", "content": parts}
    return {"model": "tiny", "messages": [message], "temperature": 0, "max_tokens": TOKENS} | fields


def speech(file: str) -> dict[str, Any]:
    return {"file": f"samples/{file}", "instruction": INSTRUCTION, "max_tokens": TOKENS}


def lines() -> list[str]:
    """Each sample in each form; a line stands between the forms that is done or fails in its own way."""
    audio = {name: base64.b64encode(sample).decode() for name, sample in SAMPLES.items()}
    some = next(iter(audio.values()))
    official = [{"audio": f"samples/{name}", "instruction": INSTRUCTION, "reference": name} for name in audio]
    chats = [openai_line(f"chat-{name}", "/v1/chat/completions", chat(data)) for name, data in audio.items()]
    native = [openai_line(f"speech-{name}", "/v1/speech", speech(name)) for name in audio]
    transcriptions = [
        openai_line(f"transcription-{name}", "/v1/audio/transcriptions", {"file_url": f"data:audio/wav;base64,{data}"})
        for name, data in audio.items()
    ]
    in_between: list[dict[str, Any]] = [
        {"audio": "pipe.wav:0:400000"},
        {"audio": "samples/0.wav:1600:16000", "instruction": INSTRUCTION, "speaker": "\ud800"},
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
        openai_line("field", "/v1/speech", {"file": "samples/0.wav", "nonsense": 1}),
        openai_line("url", "/v1/audio/translations", {"file_url": "http://127.0.0.1/speech.wav"}),
        openai_line("no audio", "/v1/audio/translations", {}),
    ]
    good = [*official, in_between[0], *chats, in_between[1], *native, in_between[2], *transcriptions]
    return [line if isinstance(line, str) else json.dumps(line) for line in [*good, *broken]]


BROKEN = len(SAMPLES) * 4 + 4  # number of the first broken line


def run_killed_batch(checkpoint: Path, folder: Path, cache: Path) -> KilledBatch:
    source, out, pipe = folder / "lines.jsonl", folder / "out" / "answers.jsonl", folder / "pipe.wav"
    source.write_text("\n".join(lines()))
    (folder / "samples").mkdir()
    for name, sample in SAMPLES.items():
        (folder / "samples" / name).write_bytes(sample)
    (folder / "long.wav").write_bytes(wav(voice(7)))
    options: list[str | Path] = ["--model", checkpoint, "--dtype", "float32", "--cache", cache]
    options += ["--max-audio-seconds", "6", "--max-tokens", str(TOKENS), "--max-model-len", "256"]
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
    pipe.write_bytes(SAMPLES["0.wav"])
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
