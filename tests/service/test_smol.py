"""The model of models/smol, through HTTP and vLLM: what it is reliable at, asserted on meaning.

Beside the checkpoint there is samples/samples.json, a list of {"file", "text"}: people's recordings and what they say. Questions have
"kind": "question" and "answer" as well, a word that the reply contains.
"""

import base64
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from models.checkpoint import open_checkpoint
from models.evaluation.scores import normalize, score
from service.audio.decode import decode
from service.self_check import self_check
from service.settings import DEFAULT_MODEL, ServeSettings
from tests.serving import Server, serve
from tests.sounds import RATE, wav

SMOL = DEFAULT_MODEL
SAMPLES = SMOL.parent / "samples"
Sample = dict[str, str]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(json.loads((SAMPLES / "samples.json").read_text()))


@pytest.fixture(scope="module")
def smol(smol_cache: Path) -> Iterator[Server]:
    with serve(SMOL, smol_cache, "--max-model-len", "512") as server:
        yield server


@pytest.fixture(scope="module")
def client(smol: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{smol.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def spoken(sample: Sample, text: str) -> list[Any]:
    audio = base64.b64encode((SAMPLES / sample["file"]).read_bytes()).decode()
    heard = {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}}
    return [{"role": "user", "content": [{"type": "text", "text": text}, heard]}]


def test_it_writes_down_what_people_say(smol: Server, client: openai.OpenAI, samples: list[Sample]) -> None:
    said = [sample for sample in samples if sample.get("kind") != "question"]
    assert said

    def write(sample: Sample) -> str:
        return client.audio.transcriptions.create(model=smol.model, file=SAMPLES / sample["file"]).text

    with ThreadPoolExecutor() as pool:
        written = list(pool.map(write, said))
    wer = score("wer", written, [sample["text"] for sample in said])["WER"]
    assert wer < 50, list(zip(written, said, strict=True))


def test_what_it_writes_down_was_heard(smol: Server, samples: list[Sample]) -> None:
    """Each token has how likely it was heard, also where what may be said leads the LLM to expect another; usage counts both."""
    (said,) = [sample for sample in samples if sample["file"] == "coffee.flac"]
    fields = {"response_format": "verbose_json", "include[]": "logprobs", "prompt": "Zebras. Zebras everywhere."}
    with smol.client() as http:
        files = {"file": (SAMPLES / said["file"]).read_bytes()}
        written = http.post("/v1/audio/transcriptions", files=files, data=fields).json()
        usage = http.post("/v1/audio/transcriptions", files=files).json()["usage"]
    assert "zebra" not in written["text"].lower()
    assert "".join(token["token"] for token in written["logprobs"]).split() == written["text"].split()
    assert all(token["logprob"] <= 0 for token in written["logprobs"])
    assert min(usage["input_token_details"].values()) > 0
    assert usage["input_tokens"] == sum(usage["input_token_details"].values())


def test_silence_is_not_written_down(smol: Server, client: openai.OpenAI) -> None:
    """Neither around what is said nor where nothing is."""
    with (SAMPLES / "coffee.flac").open("rb") as file:
        order = np.concatenate(list(decode(file, max_seconds=60)))
    silence = np.zeros(31 * RATE, np.float32)
    begin, end = 31.0, 31.0 + len(order) / RATE
    reply = client.audio.transcriptions.create(
        model=smol.model, file=wav(np.concatenate([silence, order, silence])), response_format="verbose_json"
    )
    assert reply.segments
    assert all(segment.start < end and segment.end > begin for segment in reply.segments)
    assert "milk" in normalize(reply.text).split(), reply.text
    assert reply.duration == 62 + len(order) / RATE
    (done,) = client.audio.transcriptions.create(model=smol.model, file=wav(silence), stream=True)
    assert done.type == "transcript.text.done"
    assert (done.text, done.usage and done.usage.total_tokens) == ("", 0)
    with smol.client() as http:
        translated = http.post("/v1/audio/translations", files={"file": wav(silence)})
    assert (translated.status_code, translated.json()) == (200, {"text": ""})


def test_it_answers_a_spoken_question(smol: Server, samples: list[Sample]) -> None:
    questions = [sample for sample in samples if sample.get("kind") == "question"]
    assert questions
    with smol.client() as http:
        for question in questions:
            audio = (SAMPLES / question["file"]).read_bytes()
            reply = http.post("/v1/speech", content=audio, params={"max_tokens": 64}).json()["text"]
            assert normalize(question["answer"]) in normalize(reply).split(), reply


def test_a_reply_in_json(smol: Server, client: openai.OpenAI, samples: list[Sample]) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["question", "statement"]}, "polite": {"type": "boolean"}},
        "required": ["kind", "polite"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=smol.model,
        messages=spoken(samples[0], "Describe what you hear as JSON."),
        response_format={"type": "json_schema", "json_schema": {"name": "heard", "schema": schema, "strict": True}},
        max_tokens=200,
        temperature=0,
    )
    heard = json.loads(reply.choices[0].message.content or "")
    assert heard.keys() == {"kind", "polite"}
    assert heard["kind"] in ("question", "statement")


def test_a_stream_is_the_reply_in_pieces(smol: Server, client: openai.OpenAI, samples: list[Sample]) -> None:
    messages = spoken(samples[0], "")
    whole = client.chat.completions.create(model=smol.model, messages=messages, max_tokens=48, temperature=0)
    events = client.chat.completions.create(
        model=smol.model, messages=messages, max_tokens=48, temperature=0, stream=True
    )
    pieces = [event.choices[0].delta.content or "" for event in events]
    assert len(pieces) > 2
    assert "".join(pieces) == whole.choices[0].message.content


def test_its_llm_hears_what_it_reads(smol_cache: Path, samples: list[Sample], tmp_path: Path) -> None:
    """More of its next tokens are the same, heard and read, than with each transcript beside the recording of another sentence."""
    assert len({sample["text"] for sample in samples}) > 2

    def agreement(shift: int) -> float:
        manifest = tmp_path / f"{shift}.jsonl"
        texts = [sample["text"] for sample in samples[shift:] + samples[:shift]]
        lines = ({"audio": str(SAMPLES / s["file"]), "text": text} for s, text in zip(samples, texts, strict=True))
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
        checkpoint = open_checkpoint(str(SMOL), smol_cache)
        return self_check(checkpoint, manifest, 0, torch.device("cpu"), print).top1_agreement

    assert agreement(0) > agreement(1) + 0.02


def test_it_is_the_default() -> None:
    assert ServeSettings().names() == ("blsp-smol",)
    assert ServeSettings(model=os.path.relpath(SMOL)).names() == ("blsp-smol",), "as `make serve` names it"
