"""`GET /v1/realtime`: a socket's handshake, its messages and its clocks. What they mean is the session's."""

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from fastapi import APIRouter, Request, WebSocket
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, field_validator
from starlette.websockets import WebSocketDisconnect

from service.answers.fields import check_json
from service.errors import ApiError, InvalidRequest, OriginRefused, Overloaded, Unavailable
from service.gate.keys import Keys
from service.http.door import LAST_WORDS_SECONDS, client_of
from service.http.json_route import JsonRoute, check_values_aside
from service.http.middleware import key_of
from service.http.openapi import SECRET
from service.http.routes import Ready, loaded
from service.listening.deaf import refusal
from service.model import Models
from service.realtime import beta
from service.realtime.config import SessionConfig
from service.realtime.protocol import Event, RealtimeError, new_id
from service.realtime.session import Session, Talks
from service.settings import ServeSettings
from service.telemetry import metrics

SUBPROTOCOL = "realtime"
MAX_UNSENT = 8 << 20  # characters that wait for a client to take them, before it is heard again
# Codes that close a socket; clients come again after 1001 and 1012.
NORMAL, GOING_AWAY, UNSUPPORTED, RESTART = 1000, 1001, 1003, 1012

log = logging.getLogger("service.access")
router = APIRouter(route_class=JsonRoute)


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket) -> None:
    """OpenAI's Realtime API, with text as output."""
    state = websocket.app.state
    settings: ServeSettings = state.settings
    client = client_of(websocket.scope)
    try:
        _check(websocket, settings)
        config, talks = _set_up(websocket, (await loaded(websocket)).models, state.keys)
        with state.sessions.admit(client), state.drain.talking(), metrics.REALTIME_SESSIONS.track_inprogress():
            await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
            await _Talk(websocket, settings).run(talks, config)
    except ApiError as error:
        headers = {}
        if isinstance(error, Overloaded):  # which the door has counted
            headers = {"Retry-After": str(error.retry_after)}
        else:
            metrics.REFUSALS.labels(error.code or error.type).inc()
        await websocket.send_denial_response(JSONResponse(error.body(), error.status, headers))


class SecretRequest(BaseModel):
    """Asks for a key that may be given away: to a page, say, which opens one socket after the other with it."""

    class Expiry(BaseModel):
        """When it ends."""

        anchor: Literal["created_at"] = "created_at"
        seconds: int = Field(600, ge=10, le=7200)

    expires_after: Expiry = Field(default_factory=Expiry)
    session: dict[str, Any] = Field(default_factory=dict, description="what sockets that it opens are set to")

    @field_validator("session", mode="before")
    @classmethod
    def _can_be_shown(cls, session: Any) -> Any:
        check_json(session)
        return session


@router.post("/v1/realtime/client_secrets", **SECRET)
async def client_secrets(body: SecretRequest, request: Request, service: Ready) -> dict[str, Any]:
    """OpenAI's: a key for a while, which opens sockets and nothing else."""
    config = SessionConfig(type=_session_type(body.session)).updated(body.session)
    service.prompts.check_length(len(config.instructions), "session.instructions")
    seconds = body.expires_after.seconds
    opens = _Opens(config, str(body.session.get("model")))
    key = request.app.state.keys.lend(client_of(request.scope), seconds, opens)
    session = {"id": new_id("sess"), **config.shown(), "expires_at": 0, "include": None}
    return {"value": key, "expires_at": int(time.time()) + seconds, "session": session}


class _Opens(NamedTuple):
    """What sockets begin with that a key opens which is lent."""

    config: SessionConfig
    model: str


def _session_type(session: Mapping[str, Any]) -> Literal["realtime", "transcription"]:
    return "transcription" if session.get("type") == "transcription" else "realtime"


def _check(websocket: WebSocket, settings: ServeSettings) -> None:
    """Raises ApiError for a handshake that can't lead to a session."""
    _check_origin(websocket, settings)
    if websocket.app.state.drain.begun.is_set():
        raise Unavailable("The service is shutting down.")
    if "call_id" in websocket.query_params:
        raise InvalidRequest("There are no calls here; open a socket with 'model' instead.", param="call_id")


def _set_up(websocket: WebSocket, models: Models, keys: Keys) -> tuple[SessionConfig, Talks]:
    """What a session begins with, and the talks of its model.

    Who has a key that is lent, or has only transcripts written, may name a model of OpenAI's. Raises ModelNotFound where others do, and
    InvalidRequest for a model that doesn't hear.
    """
    query = websocket.query_params
    asked = query.get("model", query.get("deployment"))  # the latter as Azure's clients say
    if lent := keys.lent(key_of(websocket.scope)):
        opens: _Opens = lent.what_for
        config, model = opens.config, models.known(asked, opens.model)
    elif query.get("intent") == "transcription":
        config = SessionConfig(type="transcription").updated({"audio": {"input": {"transcription": {}}}})
        model = models.known(asked)
    else:
        config, model = SessionConfig(), models.find(asked)
    if model.talks is None:
        raise refusal(model.names[0])
    return config, model.talks


def _check_origin(websocket: WebSocket, settings: ServeSettings) -> None:
    """Browsers ask nobody before they open a socket: where no key is needed, any page could talk to its reader's server."""
    origin = websocket.headers.get("origin")
    if origin is None or settings.keys or settings.keys_file or {origin, "*"} & set(settings.cors_origins):
        return
    if origin.partition("://")[2] != websocket.headers.get("host"):
        raise OriginRefused(
            f"Pages of {origin[:128]} may not talk to this server; it can be started with --cors-origins that names it."
        )


class _Unsent:
    """Events on their way to a client, in order."""

    def __init__(self, websocket: WebSocket) -> None:
        self._socket = websocket
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()
        self._size = 0  # characters that wait
        self._room = asyncio.Event()
        self._room.set()
        self.writer = asyncio.create_task(self._write())

    def put(self, event: Event) -> None:
        """Sends an event when it is its turn."""
        text = json.dumps(event, ensure_ascii=False)
        self._size += len(text)
        self._texts.put_nowait(text)
        if self._size > MAX_UNSENT:
            self._room.clear()

    async def room(self) -> None:
        """Waits while a client takes too little of what it is told."""
        await self._room.wait()

    async def _write(self) -> None:
        while (text := await self._texts.get()) is not None:
            await self._socket.send_text(text)
            self._size -= len(text)
            if self._size <= MAX_UNSENT:
                self._room.set()

    async def finish(self) -> None:
        """Sends what is left. Raises WebSocketDisconnect where the client is gone."""
        self._texts.put_nowait(None)
        await self.writer

    async def stop(self) -> None:
        """Sends nothing more."""
        self.writer.cancel()
        await asyncio.gather(self.writer, return_exceptions=True)


class _Talk:
    """The messages of one socket."""

    def __init__(self, websocket: WebSocket, settings: ServeSettings) -> None:
        self._socket = websocket
        self._settings = settings
        self._ends = time.time() + settings.session_seconds

    async def run(self, talks: Talks, config: SessionConfig) -> None:
        """Takes messages until somebody ends it."""
        state, started = self._socket.app.state, time.perf_counter()
        unsent = _Unsent(self._socket)
        in_beta_form = (
            beta.HEADER in self._socket.headers.get("openai-beta", "")
            or beta.SUBPROTOCOL in self._socket.scope["subprotocols"]
        )
        session = Session(talks, state.admission, config, int(self._ends), unsent.put, in_beta_form)
        try:
            code = await self._serve(session, unsent)
            await session.end_answers()
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await unsent.finish()
                await self._socket.close(code)
        except (WebSocketDisconnect, TimeoutError):
            pass
        finally:
            await session.close()
            await unsent.stop()
            facts = {"seconds": round(time.perf_counter() - started, 1), "client": client_of(self._socket.scope)}
            log.info("WEBSOCKET /v1/realtime ended after %(seconds)s s, client %(client)s", facts, extra=facts)

    async def _serve(self, session: Session, unsent: _Unsent) -> int:
        """Returns the code to close the socket with. Raises WebSocketDisconnect where the client does."""
        taking = asyncio.create_task(self._take(session, unsent))
        leaving = asyncio.create_task(self._socket.app.state.drain.begun.wait())
        tasks = {taking, leaving, unsent.writer}
        try:
            await asyncio.wait(tasks, timeout=self._ends - time.time(), return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                return taking.result()
            if unsent.writer.done():
                raise WebSocketDisconnect
            if leaving.done():
                await session.answered()
                return RESTART
            message = f"The session has lasted {self._settings.session_seconds:g} s, and ends."
            session.refuse(RealtimeError(message, code="session_expired"))
            return GOING_AWAY
        finally:
            for task in (taking, leaving):
                task.cancel()
            await asyncio.gather(taking, leaving, return_exceptions=True)

    async def _take(self, session: Session, unsent: _Unsent) -> int:
        """Takes one message after the other; returns the code to close with."""
        idle = self._settings.session_idle_seconds
        while True:
            try:
                async with asyncio.timeout(idle):
                    message = await self._socket.receive()
            except TimeoutError:
                session.refuse(RealtimeError(f"Nothing has come for {idle:g} s.", code="session_idle"))
                return NORMAL
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", NORMAL))
            text = message.get("text")
            if text is None:
                session.refuse(RealtimeError("Events are JSON in text messages.", code="invalid_event"))
                return UNSUPPORTED
            try:
                await check_values_aside(text.encode("utf-8", "surrogatepass"))
            except InvalidRequest as error:
                session.refuse(error)
            else:
                await session.handle(text)
            await unsent.room()
