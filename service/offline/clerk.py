"""One line of a batch file, answered by the services that answer HTTP requests.

A line is in the form of the official BLSP code, `{"audio": path, "instruction": …, "reference": …}`, and comes back with its fields and
`line`, `response` and `error`; or in that of OpenAI's batch files, `{"custom_id", "method", "url", "body"}`, and comes back in OpenAI's.
"""

import asyncio
import io
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from models.manifest import AudioSpan
from service.answers.chat import ChatCompletionRequest
from service.answers.conversation import read_data_url
from service.answers.fields import parse_values
from service.answers.last import last
from service.answers.speech import SpeechRequest
from service.answers.transcription import Shape, Task, Transcript, TranscriptionRequest
from service.audio.recordings import open_recording
from service.engine import VLLMClientError, as_api_error
from service.errors import ApiError, InvalidRequest, Unavailable
from service.listening.deaf import Deaf
from service.listening.listener import FULL, Cut, Listener, Recording
from service.loading import Service
from service.model import Model
from service.request import begin

log = logging.getLogger(__name__)
T = TypeVar("T")
Fields = Mapping[str, Any]
Output = dict[str, Any]
Answer = Callable[[int, bytes], Awaitable[Output]]
"""Clerk.answer."""


class BatchRequest(BaseModel):
    """A line in OpenAI's form."""

    model_config = ConfigDict(extra="forbid")

    custom_id: str
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


class Clerk:
    """Answers lines; paths in them are relative to the folder `base`."""

    def __init__(self, service: Service, base: Path, defaults: SpeechRequest) -> None:
        """`defaults` are for lines in the official form, which say no more than the instruction, or not even that."""
        self._service = service
        self._base = base
        self._defaults = defaults
        self._endpoints = {
            "/v1/chat/completions": self._chat,
            "/v1/speech": self._speech,
            "/v1/audio/transcriptions": self._transcribe,
            "/v1/audio/translations": self._translate,
        }

    async def answer(self, number: int, text: bytes) -> Output:
        """The output for a line; whatever goes wrong with it is in there. Raises Unavailable where the engine is dead."""
        begin()
        try:
            fields = parse_line(text)
        except InvalidRequest as error:
            return _openai_output(number, None, error)
        if "audio" in fields:
            response = await _attempt(self._ask(fields))
            return fields | {"line": number} | _official_output(response)
        try:
            request = parse_values(BatchRequest, fields)
            endpoint = self._endpoints.get(request.url)
            if endpoint is None:
                raise InvalidRequest(
                    f"Unknown url {request.url!r}; use one of {', '.join(self._endpoints)}.", param="url"
                )
        except InvalidRequest as error:
            return _openai_output(number, fields.get("custom_id"), error)
        reply = await _attempt(endpoint(request.body))
        return _openai_output(number, request.custom_id, None, reply)

    async def _ask(self, fields: Fields) -> str:
        """A line in the official form."""
        instruction = fields.get("instruction", self._defaults.instruction)
        request = parse_values(SpeechRequest, self._defaults.model_dump() | {"instruction": instruction})
        model = self._service.models.find(request.model)
        recording = await self._hear_file(model.listener, fields["audio"], "audio")
        reply = await last(model.speech.answer(request, recording))
        return str(reply["text"])

    async def _chat(self, body: Fields) -> Any:
        request = parse_values(ChatCompletionRequest, body)
        _refuse_stream(request.stream)
        return await self._service.models.find(request.model or None).chat.complete(request)

    async def _speech(self, body: Fields) -> Any:
        request = parse_values(SpeechRequest, _without_audio(body))
        _refuse_stream(request.stream)
        model = self._service.models.find(request.model)
        return await last(model.speech.answer(request, await self._hear(model.listener, body)))

    async def _transcribe(self, body: Fields) -> Any:
        return await self._write(body, lambda model: model.transcribe, Transcript.body)

    async def _translate(self, body: Fields) -> Any:
        return await self._write(body, lambda model: model.translate, Transcript.translation)

    async def _write(self, body: Fields, task: Callable[[Model], Task], shape: Shape) -> Any:
        request = parse_values(TranscriptionRequest, _without_audio(body))
        _refuse_stream(request.stream)
        model = self._service.models.find(request.model)
        to_do = task(model)
        transcript = Transcript.of(await self._hear(to_do.listener, body, to_do.cut))
        await last(model.transcription.write(request, transcript, to_do))
        return shape(transcript, request)

    async def _hear(self, listener: Listener | Deaf, body: Fields, cut: Cut = FULL) -> Recording:
        """The recording of a body: `file` is a path; `file_url`, as in vLLM's batch files, a data: URL."""
        if "file_url" not in body:
            return await self._hear_file(listener, body.get("file"), "file", cut)
        return await listener.hear(io.BytesIO(read_data_url(body["file_url"], "file_url")), cut)

    async def _hear_file(self, listener: Listener | Deaf, path: Any, param: str, cut: Cut = FULL) -> Recording:
        if not isinstance(path, str):
            raise InvalidRequest("The path of a recording is a string.", param=param)
        try:
            file = await asyncio.to_thread(open_recording, AudioSpan.parse(path, self._base))
        except (OSError, ValueError) as error:
            raise InvalidRequest(f"The recording {path!r} can't be read: {error}.", param=param) from error
        with file:
            return await listener.hear(file, cut)


def parse_line(text: bytes) -> dict[str, Any]:
    """The JSON object in a line; raises InvalidRequest."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The line is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InvalidRequest('A line is {"audio", "instruction"} or {"custom_id", "method", "url", "body"}.')
    return fields


def key(fields: Fields) -> Any:
    """What a line of the input and its output have in common."""
    return [fields["audio"], fields.get("instruction")] if "audio" in fields else fields.get("custom_id")


def line_number(output: Fields) -> int | None:
    """The number of the line that this is the output for; None where it is no output of ours."""
    if type(output.get("line")) is int:
        return int(output["line"])
    match = re.fullmatch(r"line-(\d+)", str(output.get("id")))
    return int(match[1]) if match else None


def failure(output: Fields) -> dict[str, Any] | None:
    """The error in an output, in OpenAI's shape, where there is one."""
    error: dict[str, Any] | None = output.get("error")
    response = output.get("response")
    if isinstance(response, dict) and response["status_code"] != 200:
        error = response["body"]["error"]
    return error


def _official_output(response: str | ApiError) -> Output:
    if isinstance(response, ApiError):
        return {"response": None, **response.body()}
    return {"response": response, "error": None}


def _openai_output(number: int, custom_id: Any, unreadable: ApiError | None, reply: Any = None) -> Output:
    """OpenAI's form: `error` where the line is no request, else a response, whose body may be an error."""
    output: Output = {"id": f"line-{number}", "custom_id": custom_id}
    if unreadable is not None:
        return output | {"response": None, **unreadable.body()}
    failed = isinstance(reply, ApiError)
    response = {
        "status_code": reply.status if failed else 200,
        "request_id": f"batch-{uuid.uuid4().hex}",
        "body": reply.body() if failed else reply,
    }
    return output | {"response": response, "error": None}


async def _attempt(work: Awaitable[T]) -> T | ApiError:
    """What the work gives, or why it failed; raises Unavailable, which is no fault of the line."""
    try:
        return await work
    except Unavailable:
        raise
    except ApiError as error:
        return error
    except VLLMClientError as error:
        return as_api_error(error)
    except Exception as error:
        log.exception("a line failed unexpectedly")
        return ApiError(f"{type(error).__name__}: {error}")


def _without_audio(body: Fields) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("file", "file_url")}


def _refuse_stream(stream: bool | None) -> None:
    if stream:
        raise InvalidRequest("A line of a batch can't be streamed; leave 'stream' out.", param="stream")
