"""A response: the events that tell of it, in the order that clients rely on."""

import time
from collections.abc import Callable
from typing import Any, Literal

from models.prompt import Prompt
from service.engine import Delta
from service.errors import ApiError, Overloaded
from service.realtime.conversation import Conversation, Item
from service.realtime.protocol import Event, ResponseOptions, event, new_id
from service.telemetry import metrics

Emit = Callable[[Event], None]
CancelledBy = Literal["turn_detected", "client_cancelled"]
Ending = Literal["completed", "cancelled", "incomplete", "failed"]


class Response:
    """What a response has come to so far; of one outside of the conversation (`conversation` None), items are in no conversation."""

    def __init__(
        self,
        options: ResponseOptions,
        max_output_tokens: int | Literal["inf"],
        conversation: Conversation | None,
        emit: Emit,
        asked: float,
    ) -> None:
        """`asked` is when the turn ended that it answers, or when it was asked for, by time.perf_counter."""
        self.id = new_id("resp")
        self.options = options
        self.max_output_tokens = max_output_tokens
        self.cancelled_by: CancelledBy = "client_cancelled"
        self._conversation = conversation
        self._emit = emit
        self._asked = asked
        self._item = Item("assistant", [""], status="in_progress")
        self._begun = False
        self._prompt: Prompt | None = None
        self._last: Delta | None = None
        self._output_tokens = 0
        emit(event("response.created", response=self._shown("in_progress", None)))

    @property
    def is_in_conversation(self) -> bool:
        """Whether its answer joins the conversation, in which one at a time may be given."""
        return self._conversation is not None

    def read(self, prompt: Prompt) -> None:
        """Hears what the LLM is given."""
        self._prompt = prompt

    def add(self, delta: Delta) -> None:
        """Takes one step of the engine."""
        if not self._begun:
            metrics.REALTIME_FIRST_TOKEN.observe(time.perf_counter() - self._asked)
            self._begin()
        self._last = delta
        self._output_tokens += len(delta.token_ids)
        if delta.text:
            self._item.parts[0] = self._text + delta.text
            self._emit(event("response.output_text.delta", **self._place, delta=delta.text))

    def end(self) -> None:
        """The engine is done."""
        if self._last is not None and self._last.finish_reason == "length":
            self._end("incomplete", {"reason": "max_output_tokens"})
        else:
            self._end("completed", None)

    def cancel(self) -> None:
        """It was cancelled."""
        self._end("cancelled", {"reason": self.cancelled_by})

    def fail(self, error: ApiError) -> None:
        """It can't be given."""
        if not isinstance(error, Overloaded):  # whom the door has counted
            metrics.REFUSALS.labels(error.code or error.type).inc()
        told = {"type": error.type, "code": error.code, "message": error.message}
        self._end("failed", {"error": told})

    @property
    def _text(self) -> str:
        (text,) = self._item.parts
        assert isinstance(text, str)
        return text

    @property
    def _place(self) -> dict[str, Any]:
        return {"response_id": self.id, "item_id": self._item.id, "output_index": 0, "content_index": 0}

    def _begin(self) -> None:
        self._begun = True
        empty = self._item.shown() | {"content": []}
        self._emit(event("response.output_item.added", response_id=self.id, output_index=0, item=empty))
        if self._conversation is not None:
            before = self._conversation.add(self._item)
            self._emit(event("conversation.item.added", previous_item_id=before, item=empty))
        self._emit(event("response.content_part.added", **self._place, part={"type": "text", "text": ""}))

    def _end(self, ending: Ending, details: dict[str, Any] | None) -> None:
        if self._begun:
            self._item.status = "completed" if ending == "completed" else "incomplete"
            item = self._item.shown()
            self._emit(event("response.output_text.done", **self._place, text=self._text))
            self._emit(event("response.content_part.done", **self._place, part={"type": "text", "text": self._text}))
            if self._conversation is not None and self._item in self._conversation.items():
                before = self._conversation.before(self._item)
                self._emit(event("conversation.item.done", previous_item_id=before, item=item))
            self._emit(event("response.output_item.done", response_id=self.id, output_index=0, item=item))
        metrics.REALTIME_RESPONSES.labels(ending).inc()
        self._emit(event("response.done", response=self._shown(ending, details and {"type": ending, **details})))

    def _shown(self, status: str, details: dict[str, Any] | None) -> Event:
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [self._item.shown()] if self._begun else [],
            "conversation_id": self._conversation.id if self._conversation is not None else None,
            "output_modalities": ["text"],
            "max_output_tokens": self.max_output_tokens,
            "usage": None if status == "in_progress" else self._usage(),
            "metadata": self.options.metadata,
        }

    def _usage(self) -> dict[str, Any]:
        prompt, last = self._prompt, self._last
        if prompt is None or last is None:
            read, audio, cached, cached_audio = 0, 0, 0, 0
        else:
            read, audio, cached = len(prompt.token_ids), prompt.speech_tokens, last.cached_tokens
            cached_audio = cached - sum(prompt.is_token[:cached])
        return {
            "total_tokens": read + self._output_tokens,
            "input_tokens": read,
            "output_tokens": self._output_tokens,
            "input_token_details": {
                "text_tokens": read - audio,
                "audio_tokens": audio,
                "image_tokens": 0,
                "cached_tokens": cached,
                "cached_tokens_details": {
                    "text_tokens": cached - cached_audio,
                    "audio_tokens": cached_audio,
                    "image_tokens": 0,
                },
            },
            "output_token_details": {"text_tokens": self._output_tokens, "audio_tokens": 0},
        }
