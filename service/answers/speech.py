"""`POST /v1/speech`: a recording and an instruction in, text out. `SpeechService.answer` is the whole story."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from models.prompt import Message, Prompt, Speech
from service.answers.conversation import Conversations, parse_messages
from service.answers.fields import as_list, from_json
from service.answers.prompting import Prompts
from service.engine import Delta, Engine, Sampling
from service.listening.listener import Recording
from service.request import running


class SpeechRequest(BaseModel):
    """The fields of a request beside the audio; as form fields or in the query."""

    model_config = ConfigDict(extra="forbid")

    instruction: str = Field("", description="what to do with the speech; empty: answer it")
    model: str | None = Field(None, description="a name that GET /v1/models lists; by default its first")
    stream: bool = Field(False, description="server-sent events instead of one JSON reply")
    max_tokens: int | None = Field(None, ge=1, description="most tokens to generate; by default what the context holds")
    min_tokens: int = Field(0, ge=0, description="tokens before the reply may end")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [], max_length=16, description="texts that end the reply"
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    history: Annotated[list[dict[str, Any]], BeforeValidator(from_json)] = Field(
        [], description="earlier turns, as JSON: messages in OpenAI's form, audio included"
    )
    return_token_ids: bool = Field(False, description="adds token_ids to the reply")
    allow_truncated: bool = Field(
        False, description="answers about what there is of a file that was cut short; the reply says so"
    )

    def sampling(self) -> Sampling:
        """How to generate."""
        return Sampling(self.max_tokens, self.min_tokens, self.temperature, self.top_p, tuple(self.stop), self.seed)


@dataclass
class Reply:
    """A reply as far as it has been generated."""

    model: str
    audio: Recording
    audio_tokens: int
    with_token_ids: bool
    id: str = field(default_factory=lambda: f"speech-{uuid.uuid4().hex}")
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    last: Delta | None = None

    def add(self, delta: Delta) -> dict[str, Any]:
        """Takes one step; returns its event."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.last = delta
        event: dict[str, Any] = {"id": self.id, "object": "speech.delta", "model": self.model, "delta": delta.text}
        return event | ({"token_ids": delta.token_ids} if self.with_token_ids else {})

    def body(self) -> dict[str, Any]:
        """The JSON reply; as the last event of a stream, the same."""
        assert self.last is not None
        prompt, completion = self.last.prompt_tokens, len(self.token_ids)
        body: dict[str, Any] = {
            "id": self.id,
            "object": "speech",
            "model": self.model,
            "text": self.text,
            "finish_reason": self.last.finish_reason,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {
                    "audio_tokens": self.audio_tokens,
                    "text_tokens": prompt - self.audio_tokens,
                    "cached_tokens": self.last.cached_tokens,
                },
            },
            "audio": {
                "seconds": round(self.audio.seconds, 3),
                "windows": len(self.audio.windows),
                "speech_tokens": len(self.audio.rows),
            }
            | ({"truncated": True} if self.audio.truncated else {}),
            "timings": {stage: round(seconds, 6) for stage, seconds in running().timeline.stages.items()},
        }
        return body | ({"token_ids": self.token_ids} if self.with_token_ids else {})


class SpeechService:
    """Answers native requests of the model `name`."""

    def __init__(self, engine: Engine, conversations: Conversations, prompts: Prompts, name: str) -> None:
        self._engine = engine
        self._conversations = conversations
        self._prompts = prompts
        self._name = name

    async def answer(self, request: SpeechRequest, recording: Recording) -> AsyncGenerator[dict[str, Any], None]:
        """Generates the reply to a recording that was heard: one `speech.delta` event for each step, then the whole `speech`.

        Closing the iterator ends the generation. Raises ApiError.
        """
        prompt = await self._prompt(request, recording.rows, recording.seconds)
        reply = Reply(self._name, recording, prompt.speech_tokens, request.return_token_ids)
        async with aclosing(self._engine.stream(prompt, request.sampling(), reply.id)) as deltas:
            async for delta in deltas:
                yield reply.add(delta)
        yield reply.body()

    async def prepare(self, request: SpeechRequest, rows: Tensor) -> None:
        """Computes the prompt of a recording that has begun with `rows` (n, llm_dim), so that its end has less to wait for.

        Raises what `answer` would raise.
        """
        prompt = await self._prompt(request, rows)
        await self._engine.prefill(prompt.through_speech(), f"prefill-{uuid.uuid4().hex}")

    async def _prompt(self, request: SpeechRequest, rows: Tensor, seconds: float = 0.0) -> Prompt:
        self._prompts.check_pieces(len(request.history), "history")
        history = await self._conversations.hear(parse_messages(request.history, "history"), seconds)
        question = Message("user", [request.instruction, Speech(rows)])
        return await self._prompts.build([*history, question], "history" if history else "instruction")
