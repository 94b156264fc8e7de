"""The prompt: messages of text and speech to token ids and embedding rows.

The only place where prompt text is written; training and serving build their prompts here. Knows nothing about audio: a piece of speech
is its embeddings.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.config import PromptFormat

HUMAN = "###[Human]:"
ASSISTANT = "\n\n\n###[Assistant]:"
TURN_END = "\n\n\n"

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Speech:
    """A piece of speech in a message: its embeddings (n, llm_dim)."""

    rows: Tensor


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; text and speech stand in the order in which the LLM reads them."""

    role: Role
    parts: Sequence[str | Speech]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else a chat template reads of a message: `name`, `tool_calls`, `tool_call_id`."""


@dataclass(frozen=True)
class Prompt:
    """What the LLM reads.

    `token_ids` has 0 and `is_token` False where speech stands; `rows` (length, llm_dim) is zero where text stands.
    """

    token_ids: list[int]
    is_token: list[bool]
    rows: Tensor

    @property
    def speech_tokens(self) -> int:
        """How many positions are speech."""
        return len(self.is_token) - sum(self.is_token)


Segment = list[int] | Speech


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of one checkpoint."""

    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat
    llm_dim: int
    dtype: torch.dtype = field(default=torch.float32)

    def build(
        self,
        messages: Sequence[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        template_options: dict[str, Any] | None = None,
    ) -> Prompt:
        """Builds the prompt of a conversation that the assistant is to continue.

        `tools` and `template_options` go to the chat template. Raises ValueError for a conversation that the format cannot express.
        """
        if self.prompt_format == "blsp":
            if tools or any(message.role == "tool" or "tool_calls" in message.extra for message in messages):
                raise ValueError("tools need a model with a chat template; this one has the 'blsp' prompt format")
            return self.join(blsp_segments(self.tokenizer, messages))
        return self.join(template_segments(self.tokenizer, messages, tools, template_options or {}))

    def join(self, segments: Iterable[Segment]) -> Prompt:
        """Puts segments after each other."""
        token_ids: list[int] = []
        is_token: list[bool] = []
        speech: list[tuple[int, Tensor]] = []
        for segment in segments:
            if isinstance(segment, Speech):
                speech.append((len(token_ids), segment.rows))
                token_ids += [0] * len(segment.rows)
                is_token += [False] * len(segment.rows)
            else:
                token_ids += segment
                is_token += [True] * len(segment)
        rows = torch.zeros(len(token_ids), self.llm_dim, dtype=self.dtype)
        for start, embeddings in speech:
            rows[start : start + len(embeddings)] = embeddings
        return Prompt(token_ids, is_token, rows)


def blsp_segments(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[Segment]:
    """The paper's format, with the ids of the official code.

    One user message is what generate.py builds: instruction and "###[Human]:" are tokenized together. A longer conversation is what
    chat_demo.py builds: every piece of text is tokenized on its own. A system message is put in front of the first user message.
    """
    messages = _fold_system(messages)
    if not messages or messages[-1].role != "user":
        raise ValueError("the last message must be the user's")
    if len(messages) == 1:
        return [*_single_turn(tokenizer, messages[0]), _encode(tokenizer, ASSISTANT)]
    segments: list[Segment] = [[tokenizer.bos_token_id]]
    for message in messages:
        if message.role == "user":
            segments.append(_encode(tokenizer, HUMAN))
            segments += [part if isinstance(part, Speech) else _encode(tokenizer, part) for part in message.parts]
            segments.append(_encode(tokenizer, ASSISTANT))
        else:
            segments.append(_encode(tokenizer, _text(message) + TURN_END))
    return segments


def _single_turn(tokenizer: PreTrainedTokenizerBase, message: Message) -> list[Segment]:
    """BOS, then the text before the speech in one piece with the prefix, then the other parts."""
    instruction = "".join(takewhile(lambda part: isinstance(part, str), message.parts))  # type: ignore[arg-type]
    rest = dropwhile(lambda part: isinstance(part, str), message.parts)
    prefix = [tokenizer.bos_token_id, *_encode(tokenizer, HUMAN + instruction)]
    return [prefix, *(part if isinstance(part, Speech) else _encode(tokenizer, part) for part in rest)]


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """The blsp format has no system turn: its text goes, with a line break, in front of the first user message."""
    system = "".join(_text(message) + "\n" for message in messages if message.role == "system")
    turns = [message for message in messages if message.role != "system"]
    first = next((i for i, message in enumerate(turns) if message.role == "user"), None)
    if system and first is not None:
        turns[first] = Message("user", [system, *turns[first].parts])
    return turns


def _text(message: Message) -> str:
    if any(isinstance(part, Speech) for part in message.parts):
        raise ValueError(f"a {message.role} message can't hold audio; put it into a user message")
    return "".join(part for part in message.parts if isinstance(part, str))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def template_segments(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> list[Segment]:
    """The LLM's own chat template, with speech where the message has it.

    The parts of a message are put on lines of their own, as vLLM does. The template is rendered with a mark in place of each piece of
    speech, which no text of a user can contain, and cut there.
    """
    mark = f"<|speech-{uuid.uuid4().hex}|>"
    conversation = [
        {**m.extra, "role": m.role, "content": "\n".join(mark if isinstance(p, Speech) else p for p in m.parts if p)}
        for m in messages
    ]
    text: str = tokenizer.apply_chat_template(
        conversation, tools=tools, tokenize=False, **({"add_generation_prompt": True} | options)
    )
    speech = [part for message in messages for part in message.parts if isinstance(part, Speech)]
    texts = text.split(mark)
    if len(texts) != len(speech) + 1:
        raise ValueError(
            "the chat template drops or repeats a message that holds audio; put the audio into a user message"
        )
    segments: list[Segment] = [_encode(tokenizer, texts[0])]
    for piece, after in zip(speech, texts[1:], strict=True):
        segments += [piece, _encode(tokenizer, after)]
    return segments
