"""The endpoints: how each reads its request and shapes its reply. What happens in between is the services'."""

import asyncio
import time
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Annotated, Any, TypeVar

import torch
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, HTTPConnection

from service.answers.chat import (
    ALLOW_TRUNCATED,
    ChatCompletionRequest,
    ChatService,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from service.answers.fields import check_model, parse_fields
from service.answers.last import last
from service.answers.speech import SpeechRequest
from service.answers.transcription import Shape, Task, Transcript, TranscriptionRequest
from service.audio.upload import GrowingBuffer
from service.engine import VLLM_VERSION
from service.errors import ApiError, Unavailable
from service.http.body import JSON, Fields, read_body
from service.http.events import EventStream, sse_line
from service.http.json_route import JsonRoute
from service.http.openapi import (
    CHAT,
    COMPLETION,
    DETOKENIZE,
    HEALTH,
    METRICS,
    MODEL,
    RESPONSE,
    SPEECH,
    TOKENIZE,
    TRANSCRIPTION,
)
from service.listening.listener import FULL, Recording
from service.loading import Service
from service.model import Model
from service.request import running
from service.telemetry import metrics

router = APIRouter(route_class=JsonRoute)
T = TypeVar("T")
Options = TypeVar("Options", SpeechRequest, TranscriptionRequest)
Hearing = Coroutine[Any, Any, Recording]
Generation = TypeVar("Generation", ChatCompletionRequest, CompletionRequest, ResponsesRequest)

API_VERSION = "api-version"  # in the query of every request of Azure's clients


async def loaded(
    connection: HTTPConnection,
) -> Service:  # FastAPI runs one without async in a thread, for every request
    """What answers, once it is there; raises Unavailable before."""
    service: Service | None = connection.app.state.service
    if service is None:
        raise Unavailable("The model is still loading; GET /ready tells when it is there.")
    return service


Ready = Annotated[Service, Depends(loaded)]


@router.post("/v1/speech", **SPEECH)
async def speech(request: Request, service: Ready) -> Response:
    """Does what the instruction says with the speech in the recording.

    The audio is the part `file` of a form, `input_audio` of a JSON object, or the whole body; forms and audio are decoded and encoded
    while they arrive. Where it is the whole body, the LLM reads the windows of a long recording while it arrives, too.
    """

    early = _early_options(SpeechRequest, request, service)

    def hear(model: Model, file: GrowingBuffer) -> Hearing:
        ahead = partial(model.speech.prepare, early) if early else None
        return model.listener.hear(file, FULL, ahead, model.listener.budget(), allow_truncated=True)

    model, fields, recording = await _receive(request, service, hear)
    options = early or _options(SpeechRequest, request, fields)
    _check_whole(recording, options.allow_truncated)
    events = model.speech.answer(options, recording)
    if options.stream:
        first = await _unless_gone(request, anext(events))
        return EventStream(_sse(first, events), _truncated())
    return JSONResponse(await _unless_gone(request, last(events)), headers=_truncated())


@router.post("/v1/chat/completions", **CHAT)
async def chat_completions(body: ChatCompletionRequest, request: Request, service: Ready) -> Response:
    """OpenAI's chat completions; a message's content may hold `input_audio` and `audio_url` parts."""
    return await _generate(request, service, ChatService.complete, body)


@router.post("/v1/completions", **COMPLETION)
async def completions(body: CompletionRequest, request: Request, service: Ready) -> Response:
    """OpenAI's completions, of text alone."""
    return await _generate(request, service, ChatService.complete_text, body)


@router.post("/v1/responses", **RESPONSE)
async def responses(body: ResponsesRequest, request: Request, service: Ready) -> Response:
    """OpenAI's responses; nothing is stored."""
    return await _generate(request, service, ChatService.respond, body)


@router.post("/tokenize", **TOKENIZE)
async def tokenize(body: TokenizeRequest, service: Ready) -> dict[str, Any]:
    """vLLM's: the token ids of a text or of messages; 0 where speech stands."""
    return await service.models.find(body.model or None).chat.tokenize(body)


@router.post("/detokenize", **DETOKENIZE)
async def detokenize(body: DetokenizeRequest, service: Ready) -> dict[str, Any]:
    """vLLM's: the text of token ids."""
    return await service.models.find(body.model or None).chat.detokenize(body)


async def _generate(
    request: Request,
    service: Service,
    answer: Callable[[ChatService, Generation], Awaitable[AsyncIterator[str] | dict[str, Any]]],
    body: Generation,
) -> Response:
    body.model = _deployment(request) or body.model
    model = service.models.find(body.model or None)
    reply = await _unless_gone(request, answer(model.chat, body))
    headers = _ignored(body) | _truncated()
    if isinstance(reply, dict):
        return JSONResponse(reply, headers=headers)
    return EventStream(reply, headers=headers)


@router.post("/v1/audio/transcriptions", **TRANSCRIPTION)
async def transcriptions(request: Request, service: Ready) -> Response:
    """OpenAI's transcriptions: writes down what is said. A recording of any length is cut at quiet places."""
    return await _transcribe(request, service, attrgetter("transcribe"), Transcript.body)


@router.post("/v1/audio/translations", **TRANSCRIPTION)
async def translations(request: Request, service: Ready) -> Response:
    """OpenAI's translations: writes down in English what is said in another language."""
    return await _transcribe(request, service, attrgetter("translate"), Transcript.translation)


async def _transcribe(request: Request, service: Service, task: Callable[[Model], Task], shape: Shape) -> Response:
    early = _early_options(TranscriptionRequest, request, service)

    def hear(model: Model, file: GrowingBuffer) -> Hearing:
        return task(model).listener.hear(file, task(model).cut, allow_truncated=True)

    model, fields, recording = await _receive(request, service, hear)
    options = early or _options(TranscriptionRequest, request, fields)
    _check_whole(recording, options.allow_truncated)
    transcript = Transcript.of(recording)
    events = model.transcription.write(options, transcript, task(model))
    headers = _ignored(options) | _truncated()
    if options.stream:
        first = await _unless_gone(request, anext(events))
        return EventStream(_sse(first, events), headers=headers)
    await _unless_gone(request, last(events))
    body = shape(transcript, options)
    return PlainTextResponse(body, headers=headers) if isinstance(body, str) else JSONResponse(body, headers=headers)


def _deployment(request: Request) -> str | None:
    """The model that the path names, as Azure's do; what the request says besides does not count then."""
    name: str | None = getattr(request.state, "deployment", None)
    return name


def _ignored(request: BaseModel) -> dict[str, str]:
    """The header that names the fields of a request which nobody here knows."""
    unknown = (name for name in request.model_extra or {} if name != ALLOW_TRUNCATED)
    names = ", ".join(urllib.parse.quote(name[:64], safe="[]") for name in islice(unknown, 20))
    return {"x-ignored-fields": names} if names else {}


def _check_whole(recording: Recording, allow_truncated: bool) -> None:
    """A form says only behind its file whether a part of it will do."""
    if recording.truncated and not allow_truncated:
        raise recording.truncated


def _truncated() -> dict[str, str]:
    """The header that says that a recording was cut short."""
    return {"x-audio-truncated": "true"} if running().truncated else {}


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that requests may name."""
    return {"object": "list", "data": [model_card(name) for name in _names(request)]}


@router.get("/v1/models/{model:path}", **MODEL)
async def model(model: str, request: Request) -> dict[str, Any]:
    """One model."""
    check_model(model, _names(request))
    return model_card(model)


def _names(request: Request) -> Sequence[str]:
    """All that requests may name; the first model's while it is still loading."""
    service: Service | None = request.app.state.service
    names: Sequence[str] = request.app.state.settings.names() if service is None else service.models.names()
    return names


def model_card(name: str) -> dict[str, Any]:
    """A model in OpenAI's form."""
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "blsp"}


_STARTED = int(time.time())


@router.get("/health", **HEALTH)
async def health(request: Request) -> dict[str, str]:
    """Liveness: 503 when the engine is dead."""
    service: Service | None = request.app.state.service
    if service is None:
        return {"status": "loading"}
    await service.engine.check()
    return {"status": "ok"}


@router.get("/ready", **HEALTH)
async def ready(service: Ready) -> dict[str, str]:
    """Readiness: 200 once a first request has gone all the way through, else 503."""
    await service.engine.check()
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse, **METRICS)
async def prometheus() -> Response:
    """The service's and vLLM's metrics for Prometheus."""
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)


def versions(own: str) -> dict[str, str]:
    """Versions of the service, whose own is given, and of what it stands on."""
    return {"version": own, "vllm": VLLM_VERSION, "torch": torch.__version__}


@router.get("/version")
async def version(request: Request) -> dict[str, str]:
    """Versions of what serves."""
    return versions(request.app.version)


async def _receive(
    request: Request, service: Service, hear: Callable[[Model, GrowingBuffer], Hearing]
) -> tuple[Model, Fields, Recording]:
    """Reads the body and has its model listen to the audio in it at the same time.

    Where a form names its model behind the audio, and it isn't the first, the audio is heard again.
    """
    file = GrowingBuffer(request.app.state.settings.max_upload_bytes)
    begun: list[tuple[Model, asyncio.Task[Recording]]] = []

    def begin(fields: Fields) -> None:
        model = service.models.find(_asked(request, fields))
        begun.append((model, asyncio.create_task(hear(model, file))))

    try:
        fields = await read_body(request.stream(), request.headers.get("content-type", ""), file, begin)
        model, hearing = begun[0]
        recording = await _unless_gone(request, hearing)
        if (asked := service.models.find(_asked(request, fields))) is not model:
            model, recording = asked, await _unless_gone(request, hear(asked, file))
        return model, fields, recording
    except BaseException as error:
        file.fail(error if isinstance(error, Exception) else ConnectionAbortedError("the request was cancelled"))
        for _, hearing in begun:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
        raise
    finally:
        file.close()
        begun.clear()  # see _unless_gone


def _asked(request: Request, fields: Fields) -> str | None:
    """The model that a request names: in its path, among the fields so far or in its query."""
    named = fields.get("model") or request.query_params.getlist("model")
    return _deployment(request) or (named[0] if named else None)


def _early_options(kind: type[Options], request: Request, service: Service) -> Options | None:
    """What a request asks whose body is all audio: an upload may take minutes, and what is wrong is said before them. None: it isn't."""
    kind_of_body = request.headers.get("content-type", "").lower()
    if kind_of_body.startswith(("multipart/", JSON)):  # fields may be behind the audio
        return None
    options = _options(kind, request, {})
    service.models.find(_asked(request, {}))
    return options


def _options(kind: type[Options], request: Request, fields: Fields) -> Options:
    """A form's fields and those of the query."""
    for name, value in request.query_params.multi_items():
        if name != API_VERSION:
            fields.setdefault(name, []).append(value)
    return parse_fields(kind, fields)


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Awaits work whose request body has been read; cancels it, and raises ClientDisconnect, when the client goes."""
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
        # Else they, an error and its traceback hold each other, and the audio, until garbage is collected.
        del work, task, watch


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _sse(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    """Events as server-sent events; what goes wrong on the way is the last of them."""
    async with aclosing(events):
        try:
            yield sse_line(first)
            async for event in events:
                yield sse_line(event)
        except ApiError as error:
            metrics.REFUSALS.labels(error.code or error.type).inc()
            yield sse_line(error.body())
            return
        yield "data: [DONE]\n\n"
