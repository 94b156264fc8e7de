"""uvicorn, with what it lacks: limits on connections, on the heads of requests and on clients that don't read, and an end to the drain.

All that stands on uvicorn's internals is here; tests/service/test_server.py fails where they move.
"""

import asyncio
import json
import math
import socket
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from service.errors import ApiError, HeadTooLarge, Overloaded, Unavailable
from service.http.door import LAST_WORDS_SECONDS, Drain
from service.settings import ServeSettings
from service.telemetry import metrics

MAX_HEAD_BYTES = 64 << 10  # that may come before a head is complete or a body goes on
MAX_MESSAGE_BYTES = 16 << 20  # of a socket: OpenAI's clients may send 15 MiB of audio at once
# Of an idle connection: longer than clients (OpenAI's 5, aiohttp 15) and load balancers (60) keep theirs, or a request could be sent into
# one that is just being closed.
KEEP_ALIVE_SECONDS = 75


class Connection(HttpToolsProtocol):
    """A client's connection, until a head of a request is complete: only then there is a request, which has limits of its own."""

    head_seconds: float
    send_seconds: float
    max_connections: int

    _clock: asyncio.TimerHandle | None = None
    _loose_bytes = 0
    """Bytes since the last that made a head complete or belonged to a body: of a head, of trailers, or between chunks."""

    @classmethod
    def limited(cls, settings: ServeSettings) -> type["Connection"]:
        """Connections with these limits."""
        names = ("head_seconds", "send_seconds", "max_connections")
        return type(cls.__name__, (cls,), {name: getattr(settings, name) for name in names})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes the connection, or refuses it where there are too many."""
        super().connection_made(transport)
        metrics.CONNECTIONS.set(len(self.connections))
        # Of a client that takes nothing. Closing alone would wait for what is still to be sent, and so for ever.
        milliseconds = round(1000 * self.send_seconds)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if 0 < self.max_connections < len(self.connections):
            error = Overloaded("The service has as many connections as it takes. Try again soon.", code="connections")
            self._refuse(error, f"retry-after: {error.retry_after}")
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the clock."""
        self._stop_clock()
        super().connection_lost(exc)
        metrics.CONNECTIONS.set(len(self.connections))

    def data_received(self, data: bytes) -> None:
        """Parses what has come, and sees to it that it is, or soon will be, part of a request."""
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(f"The head of a request may have {MAX_HEAD_BYTES} bytes."))
        elif self._is_idle():
            self._wait_for_head()
        else:
            self._stop_clock()

    def on_headers_complete(self) -> None:
        """The parser has a head."""
        self._loose_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser has a piece of a body."""
        self._loose_bytes = 0
        super().on_body(body)

    def _is_idle(self) -> bool:
        """Whether no request runs."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_head(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _head_is_late(self) -> None:
        if self.transport.get_protocol() is self:  # else it speaks WebSocket now
            self.transport.close()

    def _refuse(self, error: ApiError, *headers: str) -> None:
        """Says what is wrong, where no other answer has begun, and closes."""
        if self.transport.is_closing():
            return
        metrics.REFUSALS.labels(error.code or error.type).inc()
        if self._is_idle():
            body = json.dumps(error.body()).encode()
            lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "content-type: application/json"]
            lines += [f"content-length: {len(body)}", "connection: close", *headers, "", ""]
            self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()


class Socket(WebSocketsSansIOProtocol):
    """A client's socket; what a message comes in costs no more than its bytes, which are counted, in however many frames."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._further = bytearray()  # of a message, behind its first frame

    def handle_cont(self, event: Frame) -> None:
        """Takes a further frame of a message."""
        self._further += event.data
        if event.fin:
            self.frames.append(bytes(self._further))
            self._further.clear()
            self.send_receive_event_to_app()


class Server(uvicorn.Server):
    """Serves an application until `should_exit`, then lets what runs go on for `drain_seconds`; `drain` ends the rest."""

    def __init__(self, app: ASGIApp, drain: Drain, settings: ServeSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection.limited(settings),
                ws=Socket,
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,
                ws_ping_timeout=None,  # who is made to wait is not read, nor is its pong; TCP's own timeout tells who is gone
                host=settings.host,
                port=settings.port,
                log_config=None,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=settings.trusted_proxies,
                ssl_certfile=settings.ssl_certfile,
                ssl_keyfile=settings.ssl_keyfile,
                # Where it comes to this, uvicorn cancels without a word.
                timeout_graceful_shutdown=math.ceil(settings.drain_seconds + LAST_WORDS_SECONDS) + 1,
            )
        )
        self._drain = drain
        self._drain_seconds = settings.drain_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes nothing new, and returns when nothing runs any more."""
        error = Unavailable("The service is shutting down.")
        end = asyncio.get_running_loop().call_later(self._drain_seconds, self._drain.end, error)
        for server in self.servers:
            server.close()
        await self._drain.begin(self._drain_seconds)
        await super().shutdown(sockets)
        end.cancel()
