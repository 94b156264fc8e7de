"""The door, over real connections to a small application without a model."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Unavailable
from service.gate.admission import Admission, Limits, Queued
from service.http.door import Admitted, BodyLimit, Deadlines, Drain
from service.http.events import EventStream
from service.http.server import Server
from service.settings import ServeSettings

BEGUN = threading.Semaphore(0)
ENDED: list[str] = []
FLOODED = threading.Event()


async def echo(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def sleep(request: Request) -> Response:
    BEGUN.release()
    try:
        await asyncio.sleep(600)
    finally:
        ENDED.append(request.url.path)
    raise AssertionError


def streaming(media_type: str) -> Callable[[Request], Response]:
    async def endless() -> AsyncIterator[str]:
        try:
            yield 'data: {"n": 1}\n\n'
            BEGUN.release()
            await asyncio.sleep(600)
        finally:
            ENDED.append(media_type)

    def endpoint(_: Request) -> Response:
        return StreamingResponse(endless(), media_type=media_type)

    return endpoint


async def flood(_: Request) -> Response:
    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * (1 << 20)
                await asyncio.sleep(0)
        finally:
            FLOODED.set()

    return EventStream(endless())


async def too_slow(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


@contextmanager
def running(wrap: Callable[[ASGIApp], ASGIApp], drain: Drain | None = None, **settings: object) -> Iterator[httpx.URL]:
    """A server with these settings; at the end it must end within 20 s."""
    app = Starlette(
        routes=[
            Route("/echo", echo, methods=["POST", "GET"]),
            Route("/v1/sleep", sleep, methods=["POST"]),
            Route("/v1/events", streaming("text/event-stream"), methods=["POST"]),
            Route("/v1/flood", flood, methods=["POST", "GET"]),
            Route("/v1/text", streaming("text/plain"), methods=["POST"]),
        ],
        exception_handlers={HTTPException: too_slow},
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # from here on connections wait until the server takes them
        all_settings = ServeSettings.model_validate({"model": "none"} | settings)
        server = Server(wrap(app), drain or Drain(), all_settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield httpx.URL(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def hasty() -> Iterator[httpx.URL]:
    """A server whose requests may take a second, and their uploads half of it."""
    with running(deadlines(upload_seconds=0.5, request_seconds=1.0), send_seconds=1) as url:
        yield url


def deadlines(
    upload_seconds: float, request_seconds: float, drain: Drain | None = None
) -> Callable[[ASGIApp], ASGIApp]:
    return lambda app: Deadlines(app, upload_seconds, request_seconds, drain or Drain())


def refusals(reason: str) -> float:
    return REGISTRY.get_sample_value("blsp_refusals_total", {"reason": reason}) or 0.0


def admitting(**limits: float) -> Callable[[ASGIApp], ASGIApp]:
    none = {
        "requests": 0,
        "body_bytes": 0,
        "audio_seconds": 0,
        "prompt_tokens": 0,
        "client_requests": 0,
        "client_requests_per_minute": 0,
    }
    return lambda app: Admitted(app, Admission(Limits(**(none | limits)), lambda: Queued(0, 0)))  # type: ignore[arg-type]


def test_what_is_in_time_passes(hasty: httpx.URL) -> None:
    assert httpx.post(hasty.join("/echo"), content=b"abc").text == "3"


def test_a_slow_upload_is_408(hasty: httpx.URL) -> None:
    with socket.create_connection((hasty.host, hasty.port or 0)) as client:
        client.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        answer = client.recv(10_000)
        client.settimeout(20)
        while piece := client.recv(10_000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"0.5 s" in answer


def test_a_late_answer_is_504_and_its_work_ends(hasty: httpx.URL) -> None:
    ENDED.clear()
    before = refusals("deadline_exceeded")
    response = httpx.post(hasty.join("/v1/sleep"), timeout=20)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert ENDED == ["/v1/sleep"]
    assert refusals("deadline_exceeded") == before + 1


def test_a_late_stream_ends_with_an_error_event(hasty: httpx.URL) -> None:
    ENDED.clear()
    before = refusals("deadline_exceeded")
    response = httpx.post(hasty.join("/v1/events"), timeout=20)
    first, last = response.text.removesuffix("\n\n").split("\n\n")
    assert json.loads(first.removeprefix("data: ")) == {"n": 1}
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert ENDED == ["text/event-stream"]
    assert refusals("deadline_exceeded") == before + 1


def test_a_late_text_is_broken_off(hasty: httpx.URL) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.post(hasty.join("/v1/text"), timeout=20)


def test_a_client_that_does_not_read_is_let_go(hasty: httpx.URL) -> None:
    """Its stream ends, and with it the work, though nobody takes the last event."""
    FLOODED.clear()
    with socket.create_connection((hasty.host, hasty.port or 0)) as client:
        client.sendall(b"POST /v1/flood HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert FLOODED.wait(20)


def test_the_end_of_the_drain_ends_whatever_runs() -> None:
    drain = Drain()
    while BEGUN.acquire(blocking=False):
        pass  # what other tests have begun
    with ThreadPoolExecutor(3) as threads:
        with running(deadlines(600, 600, drain), drain, drain_seconds=0.5) as url:
            kinds = ("/v1/sleep", "/v1/events", "/v1/text")
            sleep, events, text = (threads.submit(httpx.post, url.join(kind), timeout=60) for kind in kinds)
            assert all(BEGUN.acquire(timeout=20) for _ in kinds)
            upload = socket.create_connection((url.host, url.port or 0))
            upload.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
            ENDED.clear()
            before = refusals("unavailable")
        with upload:
            assert upload.makefile("rb").readline().startswith(b"HTTP/1.1 503 ")
        assert sleep.result().status_code == 503
        assert sleep.result().json()["error"]["code"] == "unavailable"
        last = events.result().text.removesuffix("\n\n").split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "service_unavailable"
        with pytest.raises(httpx.RemoteProtocolError):
            text.result()
    assert sorted(ENDED) == ["/v1/sleep", "text/event-stream", "text/plain"]
    assert refusals("unavailable") == before + 4


@pytest.mark.parametrize("wrap", [lambda app: BodyLimit(app, 1), admitting(requests=1), deadlines(1.0, 1.0)])
async def test_the_applications_life_passes(wrap: Callable[[ASGIApp], ASGIApp]) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Message) -> Message:
        raise AssertionError

    await wrap(app)({"type": "lifespan"}, nothing, nothing)  # type: ignore[arg-type]
    assert seen == ["lifespan"]


def test_too_many_requests_are_429() -> None:
    with (
        running(admitting(requests=1)) as url,
        httpx.Client(base_url=url) as client,
        client.stream("POST", "/v1/events") as response,
    ):
        chunks = response.iter_raw()  # kept, for the connection closes with it
        next(chunks)
        refused = client.post("/echo")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "requests")
        assert client.get("/echo").status_code == 200  # what does no work always gets in


def test_a_body_that_the_service_has_no_room_for_is_429() -> None:
    with running(admitting(body_bytes=10)) as url, httpx.Client(base_url=url) as client:
        assert client.post("/echo", content=b"x" * 10).status_code == 200
        assert client.post("/echo", content=b"x" * 11).status_code == 429
        assert client.post("/echo", content=b"x" * 10).status_code == 200


def test_clients_are_told_apart_by_the_name_they_were_given() -> None:
    class Named:
        """Stands for whoever checks keys."""

        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
            name = dict(scope.get("headers", [])).get(b"x-name")
            if name:
                scope.setdefault("state", {})["client"] = name.decode()
            await self.app(scope, receive, send)

    limits = admitting(client_requests_per_minute=1)
    with running(lambda app: Named(limits(app))) as url, httpx.Client(base_url=url) as client:

        def status(**headers: str) -> int:
            return client.post("/echo", headers=headers).status_code

        assert [status(**{"x-name": name}) for name in ("ann", "bob", "ann")] == [200, 200, 429]
        assert [status(), status()] == [200, 429]


async def test_a_drain_passes_over_a_request_whose_time_is_over() -> None:
    """Its clock can't be set any more; the others' can, also the second time."""
    drain, ended = Drain(), []

    async def request(seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds) as clock:
                with drain.holding(clock):
                    try:
                        await asyncio.Event().wait()
                    finally:
                        await asyncio.sleep(0)  # its last words: it still counts as running
                        drain.end(Unavailable("again"))
        except TimeoutError:
            ended.append(seconds)

    requests = [asyncio.create_task(request(seconds)) for seconds in (0, 3600, 3601)]
    while 0 not in ended:
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await asyncio.gather(*requests)
    assert sorted(ended) == [0, 3600, 3601]
