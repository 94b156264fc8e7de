"""What the OpenAPI document says of requests that FastAPI does not parse itself, and of errors."""

from typing import Any

from pydantic import BaseModel

from service.speech import SpeechRequest
from service.transcription import TranscriptionRequest


class ErrorInfo(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorInfo


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody} for status in statuses}


def _operation(*media: str, **extra: Any) -> dict[str, Any]:
    """The keyword arguments of a route that answers in these media types."""
    ok = {"description": "The reply", "content": {name: {} for name in media}}
    return {"responses": {200: ok} | _errors(400, 404, 413, 415, 429, 500, 503), "openapi_extra": extra}


def _audio_form(model: type[BaseModel]) -> dict[str, Any]:
    """A form with a recording and the fields of a request."""
    schema = model.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "the recording, any format"}
    return {"schema": schema | {"properties": {"file": file} | schema["properties"], "required": ["file"]}}


_QUERY = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in SpeechRequest.model_json_schema()["properties"].items()
]
_RAW = {"schema": {"type": "string", "format": "binary"}}

SPEECH = _operation(
    "application/json",
    "text/event-stream",
    parameters=_QUERY,
    requestBody={
        "required": True,
        "content": {"multipart/form-data": _audio_form(SpeechRequest), "audio/*": _RAW},
    },
)
TRANSCRIPTION = _operation(
    "application/json",
    "text/plain",
    "text/event-stream",
    requestBody={"required": True, "content": {"multipart/form-data": _audio_form(TranscriptionRequest)}},
)
CHAT = _operation("application/json", "text/event-stream")
