"""The FastAPI application: its life, its errors, and what every request passes through."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from service import heap, memory
from service.answers.fields import invalid_field
from service.engine import VLLMClientError, as_api_error
from service.errors import ApiError, InvalidRequest, Overloaded, Unavailable
from service.gate.admission import Admission, Queued
from service.gate.keys import Keys
from service.http import adapters, page, realtime, routes
from service.http.body import MAX_FIELD_BYTES
from service.http.door import Admitted, BodyLimit, Deadlines, Drain, Refusal
from service.http.middleware import CLIENT_GONE, Habits, KeyRequired, Observed
from service.http.openapi import complete
from service.loading import Service
from service.settings import ServeSettings
from service.telemetry import metrics, tracing

CHECK_SECONDS = 1.0  # between two looks at the engine

Load = Callable[[], Awaitable[Service]]


def create_app(settings: ServeSettings, load: Load, stop: Callable[[], None] = lambda: None) -> FastAPI:
    """Builds the application; it answers at once, and is ready when `load` has returned.

    Where `load` fails or the engine dies, the error is kept in `app.state.failure` and `stop` is called. Requests that run can be ended
    by `app.state.drain`. Raises OptionError for keys that are none.
    """
    keys = Keys(settings.keys, settings.keys_file)
    traces = tracing.start(version("blsp-serve"))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        heap.use_one()
        tasks = [
            asyncio.create_task(_load(app, load, stop)),
            asyncio.create_task(memory.watch(lambda: _give_back(app), app.state.admission, app.state.sessions)),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if app.state.service is not None:
            await app.state.service.close()
        if traces is not None:
            traces.shutdown()

    app = _Application(
        title="BLSP inference service",
        summary="Speech and an instruction in, streamed text out.",
        version=version("blsp-serve"),
        lifespan=life,
        root_path=settings.root_path.rstrip("/"),
        redirect_slashes=False,
    )
    metrics.BUILD.info(routes.versions(app.version) | {"model": settings.names()[0]})
    app.state.settings = settings
    app.state.service = app.state.failure = None
    app.state.keys = keys
    app.state.drain = drain = Drain()
    app.state.admission = Admission(settings.admission(), lambda: _queued(app))
    app.state.sessions = Admission(settings.session_admission(), lambda: Queued(0.0, 0))
    app.include_router(routes.router)
    app.include_router(realtime.router)
    if settings.adapter_folder:
        app.include_router(adapters.router)
    if settings.page:
        app.include_router(page.router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(VLLMClientError, _engine_refusal)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_middleware(BodyLimit, limit=settings.max_upload_bytes + MAX_FIELD_BYTES)
    app.add_middleware(
        Deadlines, upload_seconds=settings.upload_seconds, request_seconds=settings.request_seconds, drain=drain
    )
    app.add_middleware(Admitted, admission=app.state.admission)
    if keys.required:
        open_paths = [*settings.open_endpoints, *(page.PATHS if settings.page else ())]
        app.add_middleware(KeyRequired, keys=keys, open_paths=open_paths)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    app.add_middleware(Observed, paths=paths, open_metrics="/metrics" in settings.open_endpoints)
    app.add_middleware(Habits, root_path=settings.root_path)
    return app


def _queued(app: FastAPI) -> Queued:
    service: Service | None = app.state.service
    return Queued(0.0, 0) if service is None else service.queued()


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The document at /openapi.json."""
        return complete(super().openapi())


async def _load(app: FastAPI, load: Load, stop: Callable[[], None]) -> None:
    """Loads, then waits for the engine's death; either failure ends the server."""
    try:
        app.state.service = await load()
        metrics.READY.set(1)
        while True:
            await app.state.service.engine.check()
            await asyncio.sleep(CHECK_SECONDS)
    except Exception as error:
        metrics.READY.set(0)
        app.state.failure = error
        stop()
        await asyncio.sleep(CHECK_SECONDS)  # in which those that wait for the engine hear of its end in their own form
        app.state.drain.end(error if isinstance(error, ApiError) else Unavailable("The service is shutting down."))


async def _give_back(app: FastAPI) -> None:
    await asyncio.to_thread(heap.give_back)
    if app.state.service is not None:
        await app.state.service.engine.give_back()


def _respond(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    metrics.REFUSALS.labels(error.code or error.type).inc()
    if isinstance(error, Overloaded):
        headers = {"Retry-After": str(error.retry_after)}
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
    """404 and 405 of the router, and what went wrong while a body arrived, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        return _respond(error.error, error.headers)
    refusal = InvalidRequest(str(error.detail))
    refusal.status = error.status_code
    refusal.code = HTTPStatus(error.status_code).name.lower()
    return _respond(refusal, error.headers)  # Allow, with a 405


async def _client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this; it ends the request without a traceback in the log."""
    return Response(status_code=CLIENT_GONE)
