"""From messages to a prompt, without keeping other requests waiting: what can't fit is not read at all, and what is long in a thread."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from models.config import PromptFormat
from models.prompt import Message, Prompt, PromptBuilder
from service.errors import ContextTooLong, InvalidRequest

LONG = 20_000  # characters; what is shorter takes some milliseconds, and is not worth a thread
QUOTE = '"'
PIECE = 64  # characters that take as long as a message or a part of one does


class Prompts:
    """Builds the prompts of a checkpoint for an LLM whose context has `context` tokens. Belongs to one event loop."""

    def __init__(self, builder: PromptBuilder, context: int) -> None:
        self._builder = builder
        self._context = context
        self.max_characters = context * builder.longest_token()
        """No longer text fits, whatever its tokens are."""
        self._aside = replace(builder, tokenizer=deepcopy(builder.tokenizer))  # a tokenizer may be in one thread only
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    @cached_property
    def quotes(self) -> tuple[int, ...]:
        """The LLM's tokens that end a text in quotation marks, the mark alone in front."""
        vocabulary = self._builder.tokenizer.get_vocab()
        ends = [token for token in vocabulary if token.lstrip("Ġ▁.,?!").startswith(QUOTE)]
        return tuple(vocabulary[token] for token in sorted(ends, key=lambda token: (len(token), token)))

    @property
    def format(self) -> PromptFormat:
        """How the checkpoint's prompts are written."""
        return self._builder.prompt_format

    async def build(
        self,
        messages: Sequence[Message],
        param: str,
        *,
        tools: list[dict[str, Any]] | None = None,
        template_options: dict[str, Any] | None = None,
        begun: str = "",
    ) -> Prompt:
        """As PromptBuilder.build.

        Raises ContextTooLong for more text, or more messages, than any prompt could hold, InvalidRequest for a conversation that the format
        cannot express; both name `param`.
        """
        pieces = sum(1 + len(message.parts) for message in messages)
        self.check_pieces(pieces, param)
        length = _characters([[message.parts, message.extra] for message in messages])
        length += _characters(tools) + _characters(template_options)
        self.check_length(length, param)
        build = partial(self._builder.build, messages, tools=tools, template_options=template_options, begun=begun)
        try:
            if length + PIECE * pieces <= LONG:
                return build()
            build = partial(self._aside.build, *build.args, **build.keywords)
            return await asyncio.get_running_loop().run_in_executor(self._thread, build)
        except ValueError as error:
            raise InvalidRequest(str(error), param=param) from error

    def check_pieces(self, pieces: int, param: str) -> None:
        """Raises ContextTooLong for so many messages and parts that they can't fit, whatever they say: each takes a token at least."""
        if pieces > self._context:
            raise ContextTooLong(
                f"The conversation has {pieces} messages and parts; the model's context of {self._context} tokens can't hold as many.",
                param=param,
            )

    def check_length(self, characters: int, param: str) -> None:
        """Raises ContextTooLong for a text so long that it can't fit, whatever its tokens are."""
        if characters > self.max_characters:
            raise ContextTooLong(
                f"The text has {characters} characters; the model's context of {self._context} tokens can't hold more than "
                f"{self.max_characters}.",
                param=param,
            )


def _characters(value: Any) -> int:
    """How much text is in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(key) + _characters(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return 0
