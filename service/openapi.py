"""What the OpenAPI document says of requests that FastAPI does not parse itself, and of errors."""

from typing import Any

from pydantic import BaseModel

from service.speech import SpeechRequest


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


_STREAM = {
    200: {
        "description": "The reply; with `stream`, server-sent events",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}
_FORM = SpeechRequest.model_json_schema()
_FORM["properties"] = {
    "file": {"type": "string", "format": "binary", "description": "the recording, any format"}
} | _FORM["properties"]
_FORM["required"] = ["file"]
_QUERY = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in SpeechRequest.model_json_schema()["properties"].items()
]

SPEECH: dict[str, Any] = {
    "responses": _STREAM | _errors(400, 404, 413, 415, 429, 500, 503),
    "openapi_extra": {
        "parameters": _QUERY,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": _FORM},
                "audio/*": {"schema": {"type": "string", "format": "binary"}},
            },
        },
    },
}
CHAT: dict[str, Any] = {"responses": _STREAM | _errors(400, 404, 413, 415, 429, 500, 503)}
