"""The conversation of a session: its items in order, and what the LLM is to read of them."""

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from models.prompt import Message, Speech
from service.audio.raw import FULL_SCALE
from service.listening.listener import Recording
from service.realtime.protocol import Event, Id, RealtimeError, invalid, new_id

MAX_ITEMS = 1000  # the oldest make room
FIRST = "root"  # as previous_item_id: before all others

Role = Literal["system", "user", "assistant"]
Status = Literal["completed", "incomplete", "in_progress"]


@dataclass(eq=False)
class Heard:
    """Something said: its rows as soon as they are there, and its samples (n,) at 16 kHz for whoever asks."""

    recording: asyncio.Task[Recording]
    samples: npt.NDArray[np.int16]
    transcript: str | None = None

    @classmethod
    def of(cls, recording: asyncio.Task[Recording], samples: npt.NDArray[np.float32]) -> "Heard":
        """Keeps samples of full scale 1.0 in half their size."""
        recording.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # whoever waits for it hears of it
        return cls(recording, np.clip(samples * FULL_SCALE, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16))

    async def heard(self) -> Recording:
        """What was heard. Raises RealtimeError where it was deleted meanwhile, and what hearing it raised."""
        await asyncio.wait([self.recording])  # unlike awaiting it, this does not end it where who waits is ended
        if self.recording.cancelled():
            raise RealtimeError("What was said has been deleted.", code="item_deleted")
        return self.recording.result()

    def floats(self) -> npt.NDArray[np.float32]:
        """The samples with a full scale of 1.0."""
        return np.divide(self.samples, FULL_SCALE, dtype=np.float32)


@dataclass(eq=False)
class Item:
    """A message of the conversation."""

    role: Role
    parts: list[str | Heard]
    id: str = field(default_factory=lambda: new_id("item"))
    status: Status = "completed"

    @property
    def heard(self) -> list[Heard]:
        """What of it was said."""
        return [part for part in self.parts if isinstance(part, Heard)]

    @property
    def characters(self) -> int:
        """How much text is in it."""
        return sum(len(part) for part in self.parts if isinstance(part, str))

    def shown(self) -> Event:
        """As clients read it, without its audio."""
        kind = "output_text" if self.role == "assistant" else "input_text"
        content = [
            {"type": kind, "text": part}
            if isinstance(part, str)
            else {"type": "input_audio", "transcript": part.transcript}
            for part in self.parts
        ]
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": content,
        }

    async def message(self) -> Message:
        """As the LLM reads it; raises what became of what was said."""
        parts = [part if isinstance(part, str) else Speech((await part.heard()).rows) for part in self.parts]
        return Message(self.role, parts)

    def drop(self) -> None:
        """Nobody wants it any more."""
        for heard in self.heard:
            heard.recording.cancel()


class Conversation:
    """Items in order; the oldest are forgotten where they hold too much together."""

    def __init__(self, max_samples: int, max_characters: int) -> None:
        self.id = new_id("conv")
        self._items: list[Item] = []
        self._max_samples = max_samples
        self._max_characters = max_characters

    def items(self) -> list[Item]:
        """All of them."""
        return list(self._items)

    def place(self, item: Item, after: str | None) -> int:
        """Where an item would stand behind another, by default at the end.

        Raises RealtimeError where there is no such other, or one of the same id already.
        """
        if any(other.id == item.id for other in self._items):
            raise RealtimeError(
                f"There is an item {item.id!r} already.", code="item_create_duplicate_item_id", param="item.id"
            )
        if after is None:
            return len(self._items)
        return 0 if after == FIRST else self._items.index(self.find(after, "previous_item_id")) + 1

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts an item at its place; returns the id of the one before it. Raises what `place` raises."""
        self._items.insert(self.place(item, after), item)
        return self.before(item)

    def before(self, item: Item) -> str | None:
        """The id of the item before this one; None where it is the first, or is there no more."""
        at = self._items.index(item) if item in self._items else 0
        return self._items[at - 1].id if at else None

    def find(self, item_id: str, param: str = "item_id") -> Item:
        """The item of an id; raises RealtimeError where there is none."""
        for item in self._items:
            if item.id == item_id:
                return item
        raise RealtimeError(
            f"There is no item {item_id[:64]!r} in the conversation.", code="item_retrieve_invalid_item_id", param=param
        )

    def remove(self, item_id: str) -> None:
        """Takes an item out; raises RealtimeError where there is none."""
        item = self.find(item_id)
        item.drop()
        self._items.remove(item)

    def forget(self) -> list[str]:
        """Takes out what is too much, oldest first, but never the last; returns the ids."""
        samples = characters = kept = 0
        for item in reversed(self._items):
            samples += sum(len(heard.samples) for heard in item.heard)
            characters += item.characters
            if kept and (samples > self._max_samples or characters > self._max_characters or kept == MAX_ITEMS):
                break
            kept += 1
        forgotten, self._items = self._items[: len(self._items) - kept], self._items[len(self._items) - kept :]
        for item in forgotten:
            item.drop()
        return [item.id for item in forgotten]


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["message"] = "message"
    id: Id | None = None
    role: Role
    status: Status = "completed"
    content: list[_Content]


def read_item(values: Mapping[str, Any], where: str) -> tuple[Item, dict[int, bytes]]:
    """An item as a client gives it, and the bytes of those of its parts that are audio, in whose place there is an empty text.

    Raises InvalidRequest that names what is wrong.
    """
    if values.get("type") in ("function_call", "function_call_output"):
        raise RealtimeError("There are no tools here.", code="unsupported_content_type", param=f"{where}.type")
    try:
        message = _Message.model_validate(values)
    except ValidationError as error:
        raise invalid(error, where) from error
    parts: list[str | Heard] = []
    audio: dict[int, bytes] = {}
    for i, part in enumerate(message.content):
        place = f"{where}.content.{i}"
        if part.type in ("input_text", "output_text", "text") and part.text is not None:
            parts.append(part.text)
        elif part.type == "input_audio" and part.audio is not None and message.role == "user":
            audio[i] = read_audio(part.audio, f"{place}.audio")
            parts.append("")
        elif part.type in ("output_audio", "audio", "input_audio") and part.transcript is not None:
            parts.append(part.transcript)
        else:
            raise RealtimeError(
                'A part of a message is {"type": "input_text", "text": "…"}, {"type": "output_text", "text": "…"} of the assistant, or '
                '{"type": "input_audio", "audio": "<base64>"} of the user.',
                code="unsupported_content_type",
                param=place,
            )
    item = Item(message.role, parts, status=message.status)
    item.id = message.id or item.id
    return item, audio


def read_audio(text: str, where: str) -> bytes:
    """Bytes in base64; raises RealtimeError that names the field."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RealtimeError(f"Audio is not valid base64: {error}.", code="invalid_value", param=where) from error
