"""The FastAPI application: its life, its errors, and what every request passes through."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics, routes, timeline
from service.admission import Admission, Queued
from service.body import MAX_FIELD_BYTES
from service.door import Admitted, Deadlines
from service.engine import VLLMClientError, as_api_error
from service.errors import ApiError, InvalidRequest, Overloaded, UploadTooLarge, UploadTooSlow
from service.fields import invalid_field
from service.loading import Service
from service.settings import ServeSettings

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0  # between two looks at the engine
CLIENT_GONE = 499  # nginx's status for a client that closed the connection

Load = Callable[[], Awaitable[Service]]


def create_app(settings: ServeSettings, load: Load, stop: Callable[[], None] = lambda: None) -> FastAPI:
    """Builds the application; it answers at once, and is ready when `load` has returned.

    Where `load` fails or the engine dies, the error is kept in `app.state.failure` and `stop` is called.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(app, load, stop))
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        if app.state.service is not None:
            await app.state.service.close()

    app = FastAPI(
        title="BLSP inference service",
        summary="Speech and an instruction in, streamed text out.",
        version=version("blsp-serve"),
        lifespan=life,
    )
    app.state.settings = settings
    app.state.service = app.state.failure = None
    app.include_router(routes.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(VLLMClientError, _engine_refusal)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_middleware(BodyLimit, limit=settings.max_upload_bytes + MAX_FIELD_BYTES)
    app.add_middleware(Deadlines, upload_seconds=settings.upload_seconds, request_seconds=settings.request_seconds)
    app.add_middleware(Admitted, admission=Admission(settings.admission(), lambda: _queued(app)))
    app.add_middleware(Measured)
    return app


def _queued(app: FastAPI) -> Queued:
    service: Service | None = app.state.service
    return Queued(0.0, 0) if service is None else service.queued()


async def _load(app: FastAPI, load: Load, stop: Callable[[], None]) -> None:
    """Loads, then waits for the engine's death; either failure ends the server."""
    try:
        app.state.service = await load()
        while True:
            await app.state.service.engine.check()
            await asyncio.sleep(CHECK_SECONDS)
    except Exception as error:
        app.state.failure = error
        stop()


class Measured:
    """Begins each request's timeline and counts its answer by endpoint and status."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        times = timeline.begin()
        status = CLIENT_GONE

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            metrics.REQUESTS.labels(endpoint, str(status)).inc()
            times.publish()


class BodyLimit:
    """Refuses bodies over a limit while they arrive; reads as much again and drops it, so that the client gets to read the answer."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, with a body that ends in an error where it goes over the limit."""
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            while message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received <= self.limit and declared <= self.limit:
                    break
                if received > 2 * self.limit or not message.get("more_body"):
                    raise HTTPException(413, f"The request's body is larger than the limit of {self.limit} bytes.")
                message = await receive()
            return message

        declared = int(Headers(scope=scope).get("content-length", 0)) if scope["type"] == "http" else 0
        await self.app(scope, receive_limited, send)


def _respond(error: ApiError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Overloaded) else None
    return JSONResponse(error.body(), error.status, headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's 422, as OpenAI's 400 that names the first field which is wrong."""
    assert isinstance(error, RequestValidationError)
    return _respond(invalid_field(error.errors()[0]))


async def _engine_refusal(_: Request, error: Exception) -> JSONResponse:
    """What the validators of vLLM's request types raise past FastAPI."""
    return _respond(as_api_error(error))


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    """404 and 405 of the router, 408 of Deadlines and 413 of BodyLimit, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    for kind in (UploadTooLarge, UploadTooSlow):
        if error.status_code == kind.status:
            return _respond(kind(str(error.detail)))
    refusal = InvalidRequest(str(error.detail))
    refusal.status = error.status_code
    refusal.code = HTTPStatus(error.status_code).name.lower()
    return _respond(refusal)


async def _client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this; it ends the request without a traceback in the log."""
    return Response(status_code=CLIENT_GONE)


async def _unexpected_error(_: Request, error: Exception) -> JSONResponse:
    """A defect of ours: the log has it (uvicorn writes the traceback), the client gets no details."""
    return _respond(ApiError("The server had an error while processing the request."))
