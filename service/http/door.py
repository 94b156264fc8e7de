"""What a request meets before an endpoint: admission, a limit on its body, and the clocks of its upload and of the whole of it."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError, DeadlineExceeded, Overloaded, UploadTooLarge, UploadTooSlow, WrongMediaType
from service.gate.admission import Admission
from service.gate.keys import ANONYMOUS
from service.http.events import sse_line
from service.telemetry import metrics

LAST_WORDS_SECONDS = 5.0  # for a late answer's error to be taken


class Refusal(HTTPException):
    """An error from within `receive`, where FastAPI takes any other than an HTTPException for a damaged body."""

    def __init__(self, error: ApiError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.status, error.message, headers)
        self.error = error


class Admitted:
    """Answers 429 to what `admission` refuses. Only requests that have work done are asked about: every POST."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self.app = app
        self.admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if not _is_work(scope):
            await self.app(scope, receive, send)
            return
        try:
            with self.admission.admit(client_of(scope)) as hold:
                await self.app(scope, _held(receive, hold), send)
        except Overloaded as error:
            await JSONResponse(error.body(), error.status, {"Retry-After": str(error.retry_after)})(
                scope, receive, send
            )


def _held(receive: Receive, hold: Callable[[int], None]) -> Receive:
    async def receive_and_hold() -> Message:
        message = await receive()
        try:
            hold(len(message.get("body", b"")))
        except Overloaded as error:
            raise Refusal(error) from error
        return message

    return receive_and_hold


class BodyLimit:
    """Refuses bodies over a limit while they arrive; reads as much again and drops it, so that the client gets to read the answer.

    Compressed bodies are refused at once: what is small on the way must not become large here.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, with a body that ends in an error where it goes over the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            while message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received <= self.limit and declared <= self.limit:
                    break
                if received > 2 * self.limit or not message.get("more_body"):
                    raise Refusal(UploadTooLarge(f"The request's body is larger than the limit of {self.limit} bytes."))
                message = await receive()
            return message

        headers = Headers(scope=scope)
        if (encoding := headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            error = WrongMediaType(f"The body's Content-Encoding is {encoding[:32]!r}; send it as it is, uncompressed.")
            metrics.REFUSALS.labels(error.code).inc()
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        declared = int(headers.get("content-length", 0))
        await self.app(scope, receive_limited, send)


class Drain:
    """Ends the requests that still run when the service has to end, and the sockets on which somebody talks."""

    def __init__(self) -> None:
        self.error: ApiError | None = None
        self.begun = asyncio.Event()
        self._clocks: set[asyncio.Timeout] = set()
        self._talks: set[asyncio.Task[Any]] = set()

    async def begin(self, seconds: float) -> None:
        """Has sockets end when nobody is being answered on them, and those that have not after so many seconds at once."""
        self.begun.set()
        if self._talks:
            _, late = await asyncio.wait(self._talks, timeout=seconds)
            for talk in late:
                talk.cancel()

    @contextmanager
    def talking(self) -> Iterator[None]:
        """The running task serves a socket for the duration of the block."""
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            yield
        finally:
            self._talks.remove(task)

    def end(self, error: ApiError) -> None:
        """Ends them; `error` is what their clients hear."""
        self.error = error
        for clock in self._clocks:
            if not clock.expired():
                clock.reschedule(0)

    @contextmanager
    def holding(self, clock: asyncio.Timeout) -> Iterator[None]:
        """Counts the request of this clock as running for the duration of the block."""
        self._clocks.add(clock)
        try:
            yield
        finally:
            self._clocks.remove(clock)


class Deadlines:
    """Ends requests whose upload (408) or whole (504) takes too long, and at the end of the drain (503) those that still run.

    A stream that has begun ends with an error event.
    """

    def __init__(self, app: ASGIApp, upload_seconds: float, request_seconds: float, drain: Drain) -> None:
        self.app = app
        self.upload_seconds = upload_seconds
        self.request_seconds = request_seconds
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if not _is_work(scope):
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            async with asyncio.timeout(self.request_seconds) as clock:
                with self.drain.holding(clock):
                    await self.app(scope, self._receive_in_time(receive), answer.send)
        except TimeoutError:
            if not clock.expired():
                raise
            late = DeadlineExceeded(f"The request took longer than {self.request_seconds:g} s.")
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await answer.end(self.drain.error or late, scope, receive)

    def _receive_in_time(self, receive: Receive) -> Receive:
        end = asyncio.get_running_loop().time() + self.upload_seconds
        complete = False

        async def receive_in_time() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                slow = UploadTooSlow(f"The upload took longer than {self.upload_seconds:g} s.")
                raise Refusal(slow, {"Connection": "close"}) from error  # whatever else comes is the rest of the body
            complete = not message.get("more_body")
            return message

        return receive_in_time


class _Answer:
    """An answer on its way, as far as it has got."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._complete = True

    async def end(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Says what went wrong, where that can still be said; raises the error where it can't."""
        if self._complete:
            return
        metrics.REFUSALS.labels(error.code or error.type).inc()
        if self._start is None:
            await JSONResponse(error.body(), error.status)(scope, receive, self._send)
        elif (b"content-type", b"text/event-stream; charset=utf-8") in self._start["headers"]:
            await self._send({"type": "http.response.body", "body": sse_line(error.body()).encode()})
        else:
            raise error


def _is_work(scope: Scope) -> bool:
    return bool(scope["type"] == "http" and scope["method"] == "POST")


def client_of(scope: Scope) -> str:
    """The name that whoever checks keys has given the client, else its address."""
    name = str(scope.get("state", {}).get("client", ANONYMOUS))
    return str(scope["client"][0]) if name == ANONYMOUS and scope.get("client") else name
