"""What Ray's proxies do with requests and replies beside handing them on; they know nothing of models.

RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.proxy:middlewares has them do it.
"""

import hashlib
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError, Overloaded, Unavailable
from service.http.events import sse_line

KEY = "x-session-id"  # the header that Ray's routers go by
REQUEST_ID = "x-request-id"
HEAD_BYTES = 32 << 10  # of a body that are looked at
SAMPLE_BYTES = 16 << 10  # of a recording, by which it is known: half a second at 16 kHz, behind the file's size
RETRY_SECONDS = 2
RESTART = 1012  # closes a socket; clients come again

_PART = re.compile(rb"\r\ncontent-disposition:[^\r\n]*filename[^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n", re.I)
_IN_JSON = re.compile(rb'"(?:data|file_data|url)"\s*:\s*"')


def middlewares() -> list[Middleware]:
    """For Ray's proxies."""
    return [Middleware(Keyed), Middleware(Whole)]


class Keyed:
    """Gives a request that has no key one of its first recording, so that it goes where that was heard before.

    Only where the length of the body is told: what a microphone sends is new, and is not to wait.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        headers = Headers(scope=scope)
        if scope["type"] != "http" or KEY in headers or not int(headers.get("content-length", 0)):
            await self.app(scope, receive, send)
            return
        taken: list[Message] = []
        head = b""
        while len(head) < HEAD_BYTES:
            taken.append(message := await receive())
            head += message.get("body", b"")
            if not message.get("more_body"):
                break
        if key := key_of(headers.get("content-type", ""), head[:HEAD_BYTES]):
            MutableHeaders(scope=scope)[KEY] = key

        async def receive_all() -> Message:
            return taken.pop(0) if taken else await receive()

        await self.app(scope, receive_all, send)


def key_of(content_type: str, head: bytes) -> str | None:
    """A key of the first recording in a body that begins with `head`; None where none is there, or too little of it."""
    kind = content_type.partition(";")[0].strip().lower()
    start, end = 0, len(head)
    if kind in ("multipart/form-data", "application/json"):
        found = (_PART if kind.startswith("multipart") else _IN_JSON).search(head)
        if found is None:
            return None
        start = found.end()
        stop = b"\r\n" + head.partition(b"\r\n")[0] if kind.startswith("multipart") else b'"'
        end = head.find(stop, start)
    sample = head[start : end if 0 <= end < start + SAMPLE_BYTES else start + SAMPLE_BYTES]
    whole = len(sample) == SAMPLE_BYTES or (0 <= end == start + len(sample))
    return hashlib.sha256(sample).hexdigest()[:32] if sample and whole else None


class Whole:
    """Ends what a dead replica has left: a stream gets an error event, a socket a code, and who has no answer yet a 503.

    What Ray itself refuses gets the form that clients of OpenAI's API read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] in ("http", "websocket") and not scope["path"].startswith("/-/"):
            reply = _Reply(send)
            await self.app(scope, receive, reply.send)
            await reply.end(scope, receive)
        else:
            await self.app(scope, receive, send)


class _Reply:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._done = self._is_stream = self._is_socket = False
        self._refusal: int | None = None  # status of one in Ray's words
        self._words = b""

    async def send(self, message: Message) -> None:
        """Passes a message on, unless it belongs to a refusal that `end` puts into other words."""
        match message["type"]:
            case "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                kind = headers.get("content-type", "")
                if REQUEST_ID in headers:  # Ray adds it to the service's own
                    headers[REQUEST_ID] = headers[REQUEST_ID]
                    message = {**message, "headers": headers.raw}
                if message["status"] >= 400 and kind.startswith("text/plain"):
                    self._refusal = message["status"]
                self._begun, self._is_stream = self._refusal is None, kind.startswith("text/event-stream")
            case "http.response.body":
                self._words += message.get("body", b"") if self._refusal else b""
                self._done = self._refusal is None and not message.get("more_body")
            case "websocket.accept":
                self._begun = self._is_socket = True
            case "websocket.close" | "websocket.http.response.start":  # its end, or that it was refused
                self._begun = self._done = True
        if self._refusal is None:
            await self._send(message)

    async def end(self, scope: Scope, receive: Receive) -> None:
        """Sends what is missing; what has begun and is no stream is left as it is, and the connection closed by uvicorn."""
        if self._done:
            return
        error = self._error()
        if not self._begun:
            headers = {"Retry-After": str(RETRY_SECONDS), REQUEST_ID: Headers(scope=scope).get(REQUEST_ID, "")}
            await JSONResponse(error.body(), error.status, headers)(scope, receive, self._send)
        elif self._is_stream:
            await self._send({"type": "http.response.body", "body": sse_line(error.body()).encode()})
        elif self._is_socket:
            await self._send({"type": "websocket.close", "code": RESTART})

    def _error(self) -> ApiError:
        if self._refusal is None:
            return Unavailable("The replica that was answering has gone. Try again.")
        words = self._words.decode(errors="replace")
        if self._refusal == Overloaded.status:
            return Overloaded(words, code="requests", retry_after=RETRY_SECONDS)
        error = Unavailable(words)
        error.status = self._refusal
        return error
