"""The prompt: messages of text and speech to token ids and embedding rows.

The only place where prompt text is written; training and serving build their prompts here. Knows nothing about audio: a piece of speech
is its embeddings. What a message says is text: where it names a token that a chat template could use as markup (see markup.py), that is
spelled out, so that nobody ends a turn or begins another from inside a message. What an assistant has said may hold the markup that models
write themselves, which is not marked as special (`<think>`, `<tool_call>`): templates look for it.
"""

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from itertools import dropwhile, takewhile
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.config import PromptFormat
from models.markup import Words

CONTINUE = "Continue the following text in a coherent and engaging style with less than 40 words."
"""The published instruction for continuations (paper, section 2.1)."""

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
    between: str = "\n"
    """What a chat template gets between the parts."""


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

    def through_speech(self) -> "Prompt":
        """Its beginning, through the last piece of speech; empty where there is none."""
        end = max((i + 1 for i, is_token in enumerate(self.is_token) if not is_token), default=0)
        return Prompt(self.token_ids[:end], self.is_token[:end], self.rows[:end])


PLACE = "{speech}"


def about(instruction: str, speech: Speech) -> Message:
    """The user's message of an instruction and the speech that it is about: at its `PLACE`, or behind it."""
    if PLACE not in instruction:
        return Message("user", [instruction, speech])
    before, after = instruction.split(PLACE, 1)
    return Message("user", [before, speech, after], between="")


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
        begun: str = "",
    ) -> Prompt:
        """Builds the prompt of a conversation that the assistant is to continue, whose reply has `begun`.

        `tools` and `template_options` go to the chat template. Raises ValueError for a conversation that the format cannot express.
        """
        reply = [self._words.encode(begun)] if begun else []
        if self.prompt_format == "blsp":
            if tools or any(message.role == "tool" or "tool_calls" in message.extra for message in messages):
                raise ValueError("tools need a model with a chat template; this one has the 'blsp' prompt format")
            return self.join([*blsp_segments(self._words, messages), *reply])
        return self.join([*template_segments(self._words, messages, tools, template_options or {}), *reply])

    def longest_token(self) -> int:
        """The characters of the longest token: no text has fewer tokens than its length by this."""
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def _words(self) -> Words:
        return Words(self.tokenizer)

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


def blsp_segments(words: Words, messages: Sequence[Message]) -> list[Segment]:
    """The paper's format, with the ids of the official code.

    One user message is what generate.py builds: instruction and "###[Human]:" are tokenized together. A longer conversation is what
    chat_demo.py builds: every piece of text is tokenized on its own. A system message is put in front of the first user message.
    """
    messages = _fold_system(messages)
    if not messages or messages[-1].role != "user":
        raise ValueError("the last message must be the user's")
    if len(messages) == 1:
        return [*_single_turn(words, messages[0]), words.encode(ASSISTANT)]
    segments: list[Segment] = [[words.tokenizer.bos_token_id]]
    for message in messages:
        if message.role == "user":
            segments.append(words.encode(HUMAN))
            segments += [part if isinstance(part, Speech) else words.spell(part) for part in message.parts]
            segments.append(words.encode(ASSISTANT))
        else:
            segments.append(words.spell(_text(message) + TURN_END))
    return segments


def _single_turn(words: Words, message: Message) -> list[Segment]:
    """BOS, then the text before the speech in one piece with the prefix, then the other parts."""
    instruction = "".join(takewhile(lambda part: isinstance(part, str), message.parts))  # type: ignore[arg-type]
    rest = dropwhile(lambda part: isinstance(part, str), message.parts)
    has_markup = words.markup.search(instruction)
    prefix = [*words.encode(HUMAN), *words.spell(instruction)] if has_markup else words.encode(HUMAN + instruction)
    parts = [part if isinstance(part, Speech) else words.spell(part) for part in rest]
    return [[words.tokenizer.bos_token_id, *prefix], *parts]


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


def template_segments(
    words: Words,
    messages: Sequence[Message],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> list[Segment]:
    """The LLM's own chat template, with speech where the message has it.

    The parts of a message are put on lines of their own, as vLLM does. The template is rendered with a mark in place of each piece of
    speech, and of each piece of markup that a message, a tool or an option names; the rendered text is cut at the marks.
    """
    for name in options:
        if name in _TEMPLATE_ARGUMENTS:
            raise ValueError(f"{name!r} is no option of a chat template that a request may set")
    marks = _Marks()

    def shown(part: str | Speech, role: Role) -> str:
        if isinstance(part, Speech):
            return marks.put(part)
        text: str = marks.shield(part, words.special if role == "assistant" else words.markup)
        return text

    conversation = [
        {
            **marks.shield(m.extra, words.markup),
            "role": m.role,
            "content": m.between.join(shown(p, m.role) for p in m.parts if p),
        }
        for m in messages
    ]
    arguments = {"add_generation_prompt": True} | marks.shield(options, words.markup)
    try:
        text: str = words.tokenizer.apply_chat_template(
            conversation, tools=marks.shield(tools, words.markup), tokenize=False, **arguments
        )
    except Exception as error:  # a template is a program: it raises what it likes, and what its values make it raise
        raise ValueError(f"the chat template does not take this conversation: {error}") from error
    segments = marks.cut(text, words)
    speech = [id(part) for message in messages for part in message.parts if isinstance(part, Speech)]
    if [id(segment) for segment in segments if isinstance(segment, Speech)] != speech:
        raise ValueError(
            "the chat template drops or repeats a message that holds audio; put the audio into a user message"
        )
    return segments


_TEMPLATE_ARGUMENTS = set(signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"add_generation_prompt"}


class _Marks:
    """Marks that stand in a template's text for what is not the template's; no text of a user can contain one."""

    def __init__(self) -> None:
        self._name = f"mark{uuid.uuid4().hex}"
        self._stands_for: list[Speech | str] = []

    def put(self, item: Speech | str) -> str:
        """A mark for speech, or for text that is to stay text."""
        self._stands_for.append(item)
        return f"{self._name}x{len(self._stands_for) - 1}x"

    def shield(self, value: Any, markup: re.Pattern[str]) -> Any:
        """The same value with marks for the markup in its texts."""
        if isinstance(value, str):
            return markup.sub(lambda found: self.put(found.group()), value)
        if isinstance(value, Mapping):
            return {self.shield(key, markup): self.shield(item, markup) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.shield(item, markup) for item in value]
        return value

    def cut(self, text: str, words: Words) -> list[Segment]:
        """What the text is made of: token ids, and at the marks what they stand for."""
        segments: list[Segment] = []
        for i, piece in enumerate(re.split(f"{self._name}x([0-9]+)x", text)):
            if i % 2 == 0:
                segments.append(words.encode(piece))
                continue
            item = self._stands_for[int(piece)]
            segments.append(item if isinstance(item, Speech) else words.spell(item))
        return segments
