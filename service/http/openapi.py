"""What the OpenAPI document says of requests that FastAPI does not parse itself, and of errors."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.answers.chat import ChatCompletionResponse, CompletionResponse, DetokenizeResponse, TokenizeResponse
from service.answers.speech import SpeechRequest
from service.answers.transcription import TranscriptionRequest
from service.http.body import JSON


class _PromptTokens(BaseModel):
    audio_tokens: int
    text_tokens: int
    cached_tokens: int


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptTokens


class _Audio(BaseModel):
    seconds: float
    windows: int
    speech_tokens: int


class SpeechReply(BaseModel):
    """The reply of `POST /v1/speech`, and the last event of its stream."""

    id: str
    object: Literal["speech"]
    model: str
    text: str
    finish_reason: str
    usage: _Usage
    audio: _Audio
    timings: dict[str, float] = Field(description="seconds by stage")
    token_ids: list[int] | None = Field(None, description="where `return_token_ids` asks for them")


class TranscriptionReply(BaseModel):
    """OpenAI's transcription; the formats `text`, `srt` and `vtt` are plain text."""

    text: str
    usage: dict[str, Any] | None = Field(None, description="of transcriptions; translations have none")
    logprobs: list[dict[str, Any]] | None = Field(None, description="where `include[]` asks for them")
    duration: float | None = Field(None, description="seconds; this and what follows are for `verbose_json`")
    language: str | None = None
    segments: list[dict[str, Any]] | None = None
    task: str | None = None
    finish_reason: str | None = Field(None, description="length where the text was cut off, else stop")
    warnings: list[str] | None = Field(None, description="what was asked for and can't be had")


class ResponseReply(BaseModel):
    """OpenAI's response object."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    error: None


class SecretReply(BaseModel):
    """A key that is lent, and what it opens."""

    value: str
    expires_at: int = Field(description="seconds since 1970")
    session: dict[str, Any]


class Status(BaseModel):
    """Of the process."""

    status: str


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


def _operation(reply: type[BaseModel], *media: str, **extra: Any) -> dict[str, Any]:
    """The keyword arguments of a route that answers with a JSON object or text of these media types."""
    ok = {"description": "The reply", "model": reply, "content": {name: {} for name in media}}
    return {"responses": {200: ok} | _errors(400, 404, 408, 413, 415, 429, 503, 504), "openapi_extra": extra}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Adds to every operation what any of them may answer; takes out FastAPI's 422, in whose place the service answers 400.

    Changes the document, and may be called on it again.
    """
    components = document["components"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    components["headers"] = {
        "request-id": {"description": "the request's own, else a new one", "schema": {"type": "string"}}
    }
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    document["security"] = [{"key": []}, {}]  # keys are a setting
    for path in document["paths"].values():
        for operation in path.values():
            _complete(operation["responses"])
    return document


def _complete(responses: dict[str, Any]) -> None:
    if responses.pop("422", None) is not None:
        responses.setdefault("400", _refusal("A field is missing or wrong"))
    responses.setdefault("401", _refusal("The API key is missing or nobody's, where keys are set"))
    responses.setdefault("500", _refusal("A defect"))
    for response in responses.values():
        response["headers"] = {"x-request-id": {"$ref": "#/components/headers/request-id"}}
    responses["401"]["headers"]["WWW-Authenticate"] = {"schema": {"type": "string"}}


def _refusal(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorBody"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _audio_form(model: type[BaseModel]) -> dict[str, Any]:
    """A form with a recording and the fields of a request."""
    schema = model.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "the recording, any format"}
    return {"schema": schema | {"properties": {"file": file} | schema["properties"], "required": ["file"]}}


def _audio_json(model: type[BaseModel]) -> dict[str, Any]:
    """The same in JSON, the recording as in chats."""
    schema = model.model_json_schema()
    data = {"type": "string", "description": "the recording in base64, any format"}
    audio = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    return {
        "schema": schema | {"properties": {"input_audio": audio} | schema["properties"], "required": ["input_audio"]}
    }


_QUERY = [
    {"name": name, "in": "query", "required": False, "schema": schema}
    for name, schema in SpeechRequest.model_json_schema()["properties"].items()
]
_RAW = {"schema": {"type": "string", "format": "binary"}}

SPEECH = _operation(
    SpeechReply,
    "text/event-stream",
    parameters=_QUERY,
    requestBody={
        "required": True,
        "content": {
            "multipart/form-data": _audio_form(SpeechRequest),
            JSON: _audio_json(SpeechRequest),
            "audio/*": _RAW,
        },
    },
)
TRANSCRIPTION = _operation(
    TranscriptionReply,
    "text/plain",
    "text/event-stream",
    requestBody={
        "required": True,
        "content": {"multipart/form-data": _audio_form(TranscriptionRequest), JSON: _audio_json(TranscriptionRequest)},
    },
)
CHAT = _operation(ChatCompletionResponse, "text/event-stream")
COMPLETION = _operation(CompletionResponse, "text/event-stream")
RESPONSE = _operation(ResponseReply, "text/event-stream")
TOKENIZE, DETOKENIZE = _operation(TokenizeResponse), _operation(DetokenizeResponse)
HEALTH: dict[str, Any] = {"response_model": Status, "responses": _errors(503)}
MODEL: dict[str, Any] = {"responses": _errors(404)}
METRICS: dict[str, Any] = {"responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}}
SECRET = _operation(SecretReply)
LOAD: dict[str, Any] = {"responses": _errors(400, 403, 408, 409, 413, 415, 429, 503, 504)}
UNLOAD: dict[str, Any] = {"responses": _errors(400, 403, 404, 503)}
