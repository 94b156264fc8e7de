"""What every request passes through on its way to an endpoint: its id, clock and trace, and the question for its key."""

import logging
import re
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ApiError, InvalidKey
from service.gate.keys import ANONYMOUS, Keys
from service.request import RequestContext, begin
from service.telemetry import logs, metrics, tracing

log = logging.getLogger("service.access")

UNTOLD = "authenticated"
KEY_SUBPROTOCOL = "openai-insecure-api-key."  # OpenAI's name for it
AZURE = re.compile(
    r"/openai/(?:v1/|deployments/(?P<deployment>[^/].*?)/(?=(?:(?:chat/)?completions|responses)$|audio/))?(?P<endpoint>.+)"
)
"""Azure's paths: /openai/deployments/MODEL/chat/completions, /openai/responses, and of late /openai/v1/chat/completions."""
CLIENT_GONE = 499  # nginx's status for a client that closed the connection


class Observed:
    """Gives each request an id and a context; when it has been answered, counts, traces and logs it.

    `paths` are those that may name an endpoint in the metrics before the router has looked. Where nobody needs a key to read the metrics
    (`open_metrics`), those call every client that has one `UNTOLD`.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str], open_metrics: bool) -> None:
        self.app = app
        self.paths = paths
        self.open_metrics = open_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; what nobody has caught becomes a 500 and a traceback in the log."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["client"] = ANONYMOUS
        headers = Headers(scope=scope)
        if scope["type"] != "http":
            logs.begin_request(headers.get("x-request-id"))
            with begin().held:
                await self.app(scope, receive, send)
            return
        request_id = logs.begin_request(headers.get("x-request-id"))
        request = begin()
        times = request.timeline
        trace = tracing.begin(headers, request.trace_headers)
        status, has_body = CLIENT_GONE, False

        async def watched_receive() -> Message:
            nonlocal has_body
            message = await receive()
            if message["type"] == "http.request":
                has_body = has_body or bool(message.get("body"))
                if has_body and not message.get("more_body") and times.uploaded is None:
                    times.body_received()
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with metrics.IN_FLIGHT.labels(self._endpoint(scope)).track_inprogress():
            try:
                await self.app(scope, watched_receive, watched_send)
            except Exception:
                if status != CLIENT_GONE:  # the answer has begun; the server closes the connection
                    raise
                log.exception("the request failed")
                error = ApiError("The server had an error while processing the request.")
                metrics.REFUSALS.labels("internal_error").inc()
                await JSONResponse(error.body(), error.status)(scope, receive, watched_send)
            finally:
                request.held.close()
                self._account(scope, status, state["client"], request, trace)

    def _account(self, scope: Scope, status: int, client: str, request: RequestContext, trace: tracing.Trace) -> None:
        times = request.timeline
        seconds = time.perf_counter() - times.started
        endpoint = self._endpoint(scope)
        told = UNTOLD if self.open_metrics and client != ANONYMOUS else client
        metrics.REQUESTS.labels(endpoint, str(status), told, request.model).inc()
        metrics.REQUEST_SECONDS.labels(endpoint).observe(seconds)
        request.publish()
        facts = {
            "method": scope["method"],
            "endpoint": endpoint,
            "status": status,
            "seconds": round(seconds, 4),
            "audio_seconds": round(request.audio_seconds, 3),
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": request.completion_tokens,
            "client": client,
            "model": request.model,
        }
        trace.end(facts, times.spans.copy(), times.stages)
        log.info(
            "%(method)s %(endpoint)s %(status)d in %(seconds)s s, audio %(audio_seconds)s s, tokens %(prompt_tokens)d + "
            "%(completion_tokens)d, client %(client)s, model %(model)s",
            facts,
            extra=facts,
        )

    def _endpoint(self, scope: Scope) -> str:
        path = getattr(scope.get("route"), "path", scope["path"])
        return str(path) if path in self.paths else "other"


class Habits:
    """Takes requests as proxies and clients make them: below a `root_path`, with a slash behind the path, HEAD for GET, and Azure's paths.

    What the rest sees is the path that is documented, and GET; the server itself leaves out the body of an answer to HEAD. The model that
    one of Azure's paths names is the request's `state["deployment"]`.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if self.root_path and path.startswith(f"{self.root_path}/"):
            path = path[len(self.root_path) :]
        if path.endswith("/") and path.strip("/"):
            path = path[:-1]
        scope = {**scope, "path": path}
        if azure := AZURE.fullmatch(path):
            scope["path"] = f"/v1/{azure['endpoint']}"
            if azure["deployment"]:
                scope["state"] = {**scope.get("state", {}), "deployment": azure["deployment"]}
        if scope.get("method") == "HEAD":
            scope["method"] = "GET"
        await self.app(scope, receive, send)


class KeyRequired:
    """Lets in who has a key, and whoever asks for an open path; the key's name is the request's `state["client"]`."""

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: Collection[str]) -> None:
        self.app = app
        self.keys = keys
        self.open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] == "lifespan" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        key = key_of(scope)
        lent = self.keys.lent(key) if scope["type"] == "websocket" else None
        client = lent.name if lent else self.keys.name_of(key) if key else None
        if client is not None:
            scope.setdefault("state", {})["client"] = client
            await self.app(scope, receive, send)
        else:
            metrics.REFUSALS.labels(str(InvalidKey.code)).inc()
            await _unauthorized(bool(key))(scope, receive, send)


def key_of(scope: Scope) -> str:
    """The key that a request brings; sockets of browsers as a subprotocol, and Azure's clients under a name of their own."""
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(KEY_SUBPROTOCOL):
            return str(offered.removeprefix(KEY_SUBPROTOCOL))
    headers = Headers(scope=scope)
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("api-key", "")


def _unauthorized(given: bool) -> JSONResponse:
    message = "This API key is nobody's." if given else "This endpoint needs an API key."
    error = InvalidKey(f"{message} Send a valid one in the header 'Authorization: Bearer KEY'.")
    challenge = 'Bearer realm="blsp"' + (', error="invalid_token"' if given else "")
    return JSONResponse(error.body(), error.status, {"WWW-Authenticate": challenge})
