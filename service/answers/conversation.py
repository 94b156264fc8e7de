"""OpenAI-style messages with text and audio to the messages of a prompt."""

import asyncio
import base64
import binascii
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from models.prompt import Message, Role, Speech
from service.answers.fields import read_json
from service.audio.fetch import Fetcher
from service.errors import InvalidRequest
from service.listening.deaf import Deaf
from service.listening.listener import Budget, Listener, Recording

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")  # the latter two in responses
AT_A_TIME = 4  # recordings of one request that are fetched or decoded


@dataclass(frozen=True)
class Remote:
    """A recording that is still at a URL; `param` names the field."""

    url: str
    param: str


_Part = str | bytes | Remote


@dataclass(frozen=True)
class Draft:
    """A message whose audio is still bytes, or elsewhere."""

    role: Role
    parts: list[_Part]
    extra: dict[str, Any] = field(default_factory=dict)


def parse_messages(messages: Iterable[Any], name: str = "messages") -> list[Draft]:
    """Reads messages in OpenAI's form: content is a string or a list of `text`, `input_audio` and `audio_url` parts.

    Raises InvalidRequest that names the message and the part which is wrong.
    """
    return [_parse_message(message, f"{name}[{i}]") for i, message in enumerate(messages)]


@dataclass(frozen=True)
class Conversations:
    """Listens to the recordings of messages, also to those that have to be fetched first."""

    listener: Listener | Deaf
    fetcher: Fetcher

    async def hear(
        self, drafts: Sequence[Draft], heard_seconds: float = 0.0, allow_truncated: bool = False
    ) -> list[Message]:
        """Listens to the recordings, a few at a time; returns the messages.

        All of them together, and the `heard_seconds` that the request has brought elsewhere, may last as long as a request's audio may:
        raises AudioTooLong, and what the listener and Fetcher.fetch raise. After an error, or when it is cancelled, nothing of it goes on.
        """
        audio = [part for draft in drafts for part in draft.parts if not isinstance(part, str)]
        heard = iter(await self._hear_all(audio, self.listener.budget(heard_seconds), allow_truncated) if audio else [])
        return [
            Message(
                draft.role,
                [part if isinstance(part, str) else Speech(next(heard).rows) for part in draft.parts],
                draft.extra,
            )
            for draft in drafts
        ]

    async def _hear_all(
        self, audio: Sequence[bytes | Remote], budget: Budget, allow_truncated: bool
    ) -> list[Recording]:
        recordings: dict[int, Recording] = {}
        todo = enumerate(audio)

        async def hear_the_next() -> None:
            for i, part in todo:
                recordings[i] = await self._hear(part, budget, allow_truncated)

        tasks = [asyncio.create_task(hear_the_next()) for _ in audio[:AT_A_TIME]]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # Else they, an error and its traceback hold each other, and the audio, until garbage is collected.
            del task, tasks
        return [recordings[i] for i in range(len(audio))]

    async def _hear(self, part: bytes | Remote, budget: Budget, allow_truncated: bool) -> Recording:
        data = await self.fetcher.fetch(part.url, part.param) if isinstance(part, Remote) else part
        with io.BytesIO(data) as file:  # closed, so that its decoder ends where nobody waits for it any more
            return await self.listener.hear(file, budget=budget, allow_truncated=allow_truncated)


def _parse_message(message: Any, where: str) -> Draft:
    if not isinstance(message, Mapping):
        raise InvalidRequest("A message is an object with 'role' and 'content'.", param=where)
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise InvalidRequest(
            f"Unknown role {message.get('role')!r}; use one of {', '.join(ROLES)}.", param=f"{where}.role"
        )
    return Draft(role, _parse_content(message.get("content"), role, f"{where}.content"), _parse_extra(message, where))


def _parse_content(content: Any, role: Role, where: str) -> list[_Part]:
    if isinstance(content, str):
        return [content]
    if content is None and role == "assistant":
        return [""]
    if isinstance(content, bytes) or not isinstance(content, Iterable):
        raise InvalidRequest("'content' is a string or a list of parts.", param=where)
    parts: list[_Part] = []
    try:
        for part in content:  # vLLM checks them only now
            parts.append(_parse_part(part, f"{where}[{len(parts)}]"))
    except ValidationError as error:
        raise InvalidRequest(PARTS, param=f"{where}[{len(parts)}]") from error
    return parts


def _parse_part(part: Any, where: str) -> _Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "input_audio" and isinstance(part.get("input_audio"), Mapping):
        return decode_base64(part["input_audio"].get("data"), f"{where}.input_audio.data")
    if kind == "audio_url" and isinstance(part.get("audio_url"), Mapping):
        return _read_url(part["audio_url"].get("url"), f"{where}.audio_url.url")
    if kind == "file" and isinstance(part.get("file"), Mapping) and part["file"].get("file_data") is not None:
        return decode_base64(part["file"]["file_data"], f"{where}.file.file_data")
    if kind == "input_file" and part.get("file_data") is not None:
        return decode_base64(part["file_data"], f"{where}.file_data")
    if kind == "input_file" and part.get("file_url") is not None:
        return _read_url(part["file_url"], f"{where}.file_url")
    raise InvalidRequest(PARTS, param=where)


PARTS = (
    'A part is {"type": "text", "text": "…"}, {"type": "input_audio", "input_audio": {"data": "<base64>", "format": "wav"}}, '
    '{"type": "file", "file": {"file_data": "data:audio/wav;base64,…"}} or {"type": "audio_url", "audio_url": {"url": '
    '"data:audio/wav;base64,…"}}.'
)


def _read_url(url: Any, where: str) -> bytes | Remote:
    if str(url).partition(":")[0].lower() in ("http", "https"):
        return Remote(str(url), where)
    return read_data_url(url, where)


def read_data_url(url: Any, where: str) -> bytes:
    """What a data: URL in base64 holds; raises InvalidRequest that names the field `where`."""
    scheme, _, rest = str(url).partition(":")
    media, comma, data = rest.partition(",")
    if scheme.lower() != "data" or not comma or not media.lower().endswith(";base64"):
        raise InvalidRequest("This is no data: URL in base64, data:audio/wav;base64,…", param=where)
    return decode_base64(data, where)


_BASE64_WAYS = str.maketrans("-_", "+/", "\r\n\t ")  # the alphabet of URLs, and lines


def decode_base64(data: Any, where: str) -> bytes:
    """Audio in base64, as any client writes it; raises InvalidRequest that names the field `where`."""
    if not isinstance(data, str):
        raise InvalidRequest("Audio is a base64 string.", param=where)
    if data[:5].lower() == "data:":  # as pages hand it over, and some clients pass it on
        data = data.partition(",")[2]
    data = data.translate(_BASE64_WAYS)
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"Audio is not valid base64: {error}.", param=where) from error


def _parse_extra(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Calls of tools and their results, in the form that chat templates read: arguments are objects, not JSON texts."""
    extra = {name: message[name] for name in ("name", "tool_call_id") if message.get(name) is not None}
    calls = list(message.get("tool_calls") or ())
    if calls:
        extra["tool_calls"] = [_parse_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return extra


def _parse_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest("A tool call has a 'function' with 'name' and 'arguments'.", param=where)
    arguments = function.get("arguments") or "{}"
    try:
        parsed = read_json(arguments) if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise InvalidRequest(f"The arguments can't be read: {error}.", param=f"{where}.function.arguments") from error
    return {**call, "function": {**function, "arguments": parsed}}
