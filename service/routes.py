"""The endpoints: how each reads its request and shapes its reply. What happens in between is the services'."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing
from typing import Annotated, Any, TypeVar

import torch
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from service import metrics
from service.body import Fields, read_body
from service.chat import ChatCompletionRequest
from service.engine import VLLM_VERSION
from service.errors import ApiError, InvalidRequest, ModelNotFound, Unavailable
from service.listener import Recording
from service.loading import Service
from service.openapi import CHAT, SPEECH
from service.speech import SpeechRequest
from service.upload import GrowingBuffer

router = APIRouter()
T = TypeVar("T")


def _service(request: Request) -> Service:
    service: Service | None = request.app.state.service
    if service is None:
        raise Unavailable("The model is still loading; GET /ready tells when it is there.")
    return service


Ready = Annotated[Service, Depends(_service)]


@router.post("/v1/speech", **SPEECH)
async def speech(request: Request, service: Ready) -> Response:
    """Does what the instruction says with the speech in the recording.

    The audio is the part `file` of a form, or the whole body; the body is decoded and encoded while it arrives.
    """
    fields, recording = await _receive(request, service)
    options = _parse_fields(fields)
    events = service.speech.answer(options, recording)
    if options.stream:
        first = await _unless_gone(request, anext(events))
        return StreamingResponse(_sse(first, events), media_type="text/event-stream")
    return JSONResponse(await _unless_gone(request, _last(events)))


@router.post("/v1/chat/completions", **CHAT)
async def chat_completions(body: ChatCompletionRequest, request: Request, service: Ready) -> Response:
    """OpenAI's chat completions; a message's content may hold `input_audio` parts."""
    reply = await _unless_gone(request, service.chat.complete(body))
    if isinstance(reply, dict):
        return JSONResponse(reply)
    return StreamingResponse(reply, media_type="text/event-stream")


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that requests may name."""
    return {"object": "list", "data": [_model_card(request)]}


@router.get("/v1/models/{model:path}")
async def model(model: str, request: Request) -> dict[str, Any]:
    """One model."""
    card = _model_card(request)
    if model != card["id"]:
        raise ModelNotFound(f"The model {model!r} does not exist; this server has {card['id']!r}.", param="model")
    return card


def _model_card(request: Request) -> dict[str, Any]:
    return {"id": request.app.state.settings.name(), "object": "model", "created": _STARTED, "owned_by": "blsp"}


_STARTED = int(time.time())


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Liveness: 503 when the engine is dead."""
    service: Service | None = request.app.state.service
    if service is None:
        return {"status": "loading"}
    await service.engine.check()
    return {"status": "ok"}


@router.get("/ready")
async def ready(service: Ready) -> dict[str, str]:
    """Readiness: 200 once a first request has gone all the way through, else 503."""
    await service.engine.check()
    return {"status": "ready"}


@router.get("/metrics")
async def prometheus() -> Response:
    """The service's and vLLM's metrics for Prometheus."""
    return Response(metrics.render(), media_type=metrics.CONTENT_TYPE)


@router.get("/version")
async def version(request: Request) -> dict[str, str]:
    """Versions of what serves."""
    return {"version": request.app.version, "vllm": VLLM_VERSION, "torch": torch.__version__}


async def _receive(request: Request, service: Service) -> tuple[Fields, Recording]:
    """Reads the body and listens to the audio in it at the same time."""
    file = GrowingBuffer(request.app.state.settings.max_upload_bytes)
    hearing = asyncio.create_task(service.listener.hear(file))
    try:
        fields = await read_body(request.stream(), request.headers.get("content-type", ""), file)
        recording = await _unless_gone(request, hearing)
    except BaseException as error:
        file.fail(error if isinstance(error, Exception) else ConnectionAbortedError("the request was cancelled"))
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        raise
    for name, value in request.query_params.multi_items():
        fields.setdefault(name, []).append(value)
    return fields, recording


def _parse_fields(fields: Fields) -> SpeechRequest:
    """Text fields to a SpeechRequest; only `stop` may come more than once."""
    values: dict[str, Any] = {}
    for name, texts in fields.items():
        if name != "stop" and len(texts) > 1:
            raise InvalidRequest(f"The field {name!r} is given {len(texts)} times; give it once.", param=name)
        values[name] = texts[0] if len(texts) == 1 else texts
    try:
        return SpeechRequest.model_validate(values)
    except ValidationError as error:
        raise invalid_field(error.errors()[0]) from error


def invalid_field(error: Mapping[str, Any]) -> InvalidRequest:
    """A pydantic error as a refusal that names the field."""
    where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    if error["type"] == "extra_forbidden":
        return InvalidRequest(
            f"Unknown field {where!r}; there are {', '.join(SpeechRequest.model_fields)}.", param=where
        )
    return InvalidRequest(f"{where or 'request'}: {error['msg']}", param=where or None)


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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _last(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    event: dict[str, Any] = {}
    async with aclosing(events):
        async for event in events:  # noqa: B007
            pass
    return event


async def _sse(first: dict[str, Any], events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
    """Events as server-sent events; what goes wrong on the way is the last of them."""
    async with aclosing(events):
        try:
            yield _line(first)
            async for event in events:
                yield _line(event)
        except ApiError as error:
            yield _line(error.body())
            return
        yield "data: [DONE]\n\n"


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
