"""OpenAI-style messages with text and audio to the messages of a prompt."""

import asyncio
import base64
import binascii
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.prompt import Message, Role, Speech
from service.errors import InvalidRequest
from service.listener import Listener, Recording

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

# A message whose audio is still bytes.
_Part = str | bytes
_Draft = tuple[Role, list[_Part]]


def parse_messages(messages: Iterable[Any], field: str = "messages") -> list[_Draft]:
    """Reads messages in OpenAI's form: content is a string or a list of `text` and `input_audio` parts.

    Raises InvalidRequest that names the message and the part which is wrong.
    """
    return [_parse_message(message, f"{field}[{i}]") for i, message in enumerate(messages)]


async def hear_messages(drafts: Sequence[_Draft], listener: Listener) -> tuple[list[Message], list[Recording]]:
    """Listens to every recording at the same time; returns the messages, and the recordings in their order."""
    audio = [part for _, parts in drafts for part in parts if isinstance(part, bytes)]
    recordings = await asyncio.gather(*(listener.hear(io.BytesIO(data)) for data in audio))
    heard = iter(recordings)
    messages = [
        Message(role, [Speech(next(heard).rows) if isinstance(part, bytes) else part for part in parts])
        for role, parts in drafts
    ]
    return messages, list(recordings)


def _parse_message(message: Any, where: str) -> _Draft:
    if not isinstance(message, Mapping):
        raise InvalidRequest("A message is an object with 'role' and 'content'.", param=where)
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise InvalidRequest(
            f"Unknown role {message.get('role')!r}; use one of {', '.join(ROLES)}.", param=f"{where}.role"
        )
    content = message.get("content")
    if isinstance(content, str):
        return role, [content]
    if content is None and role == "assistant":
        return role, [""]
    if isinstance(content, str | bytes) or not isinstance(content, Iterable):
        raise InvalidRequest("'content' is a string or a list of parts.", param=f"{where}.content")
    return role, [_parse_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]


def _parse_part(part: Any, where: str) -> _Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "input_audio" and isinstance(part.get("input_audio"), Mapping):
        return _decode_base64(part["input_audio"].get("data"), f"{where}.input_audio.data")
    raise InvalidRequest(
        'A part is {"type": "text", "text": "…"} or {"type": "input_audio", "input_audio": {"data": "<base64>", "format": "wav"}}.',
        param=where,
    )


def _decode_base64(data: Any, where: str) -> bytes:
    if not isinstance(data, str):
        raise InvalidRequest("Audio is a base64 string.", param=where)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"Audio is not valid base64: {error}.", param=where) from error
