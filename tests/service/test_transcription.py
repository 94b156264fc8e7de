"""What is asked of the LLM for a transcription, and what is made of its answers."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import pytest
import torch

from models.config import BlspConfig
from models.prompt import Message, Prompt, Speech
from service.answers.prompting import Prompts
from service.answers.transcription import LEAST_SPEECH, Task, Transcript, TranscriptionRequest, TranscriptionService
from service.engine import Delta, Engine, Sampling
from service.listening.deaf import Deaf
from service.listening.listener import Recording
from tests.sounds import RATE


class Asked:
    """Stands in for prompts and engine: the prompt is the speech alone, and answered with how many rows it has."""

    async def build(self, messages: Sequence[Message], param: str, *, begun: str) -> Prompt:
        (rows,) = (part.rows for message in messages for part in message.parts if isinstance(part, Speech))
        return Prompt([0] * len(rows), [False] * len(rows), rows)

    async def stream(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncGenerator[Delta, None]:
        n = prompt.speech_tokens
        yield Delta(str(n), [n], "stop", n, 0, -0.5)


def transcript(*rows: int) -> Transcript:
    """Of windows of 1 s, 2 s and so on, which have so many rows."""
    windows = [torch.zeros(n, 1) for n in rows]
    return Transcript.of(Recording(windows, [i * RATE for i in range(1, len(rows) + 1)], speech=[n / 4 for n in rows]))


async def written(to_fill: Transcript, **fields: Any) -> tuple[list[dict[str, Any]], TranscriptionRequest]:
    """The events, and what was requested."""
    asked = Asked()
    service = TranscriptionService(cast(Engine, cast(Any, asked)), cast(Prompts, cast(Any, asked)))
    request = TranscriptionRequest(**fields)
    return [event async for event in service.write(request, to_fill, Task(Deaf("nobody"), "Write."))], request


async def test_windows_without_rows_are_neither_asked_about_nor_listed() -> None:
    spoken = transcript(0, 2, 0, 3, 0)
    events, request = await written(spoken, response_format="verbose_json")
    assert [event["delta"] for event in events[:-1]] == ["2", " 3"]
    usage = {"type": "tokens", "input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    details = {"audio_tokens": 5, "text_tokens": 0}
    assert events[-1] == {
        "type": "transcript.text.done",
        "text": "2 3",
        "finish_reason": "stop",
        "usage": usage | {"input_token_details": details},
    }
    body = spoken.body(request)
    assert isinstance(body, dict)
    assert (body["text"], body["duration"]) == ("2 3", 15.0)
    times = [(segment["id"], segment["start"], segment["end"], segment["text"]) for segment in body["segments"]]
    assert times == [(0, 1.0, 3.0, "2"), (1, 6.0, 10.0, "3")]
    assert [segment["no_speech_prob"] for segment in body["segments"]] == [0.5, 0.25]
    subtitles = spoken.body(TranscriptionRequest(response_format="srt"))
    assert subtitles == "1\n00:00:01,000 --> 00:00:03,000\n2\n\n2\n00:00:06,000 --> 00:00:10,000\n3\n"


@pytest.mark.parametrize("form", ["json", "verbose_json", "text", "srt", "vtt"])
async def test_a_recording_of_silence_has_no_text(form: str) -> None:
    silent = transcript(0, 0)
    events, request = await written(silent, response_format=form)
    assert [(event["type"], event["text"], event["finish_reason"]) for event in events] == [
        ("transcript.text.done", "", "stop")
    ]
    assert events[0]["usage"]["total_tokens"] == 0
    body = silent.body(request)
    if isinstance(body, str):
        assert body == {"text": "\n", "srt": "", "vtt": "WEBVTT\n"}[form]
    else:
        assert body["text"] == ""
        assert body.get("segments", []) == []


async def test_what_is_asked_is_asked_of_every_window_with_rows() -> None:
    (*_, done), _ = await written(transcript(1, 2, 3))
    assert done["text"] == "1 2 3"


@pytest.mark.parametrize(("seconds", "least"), [(5.0, LEAST_SPEECH), (29.9, LEAST_SPEECH), (30.0, 0.0)])
def test_only_small_llms_are_not_asked_about_silence(seconds: float, least: float) -> None:
    config = BlspConfig(transcribe_seconds=seconds)
    transcribe, translate = Task.transcribe(config, Deaf("nobody")).cut, Task.translate(config, Deaf("nobody")).cut
    assert (transcribe.longest, transcribe.least_speech) == (round(seconds * RATE), least)
    assert (translate.longest, translate.least_speech) == (30 * RATE, least)
