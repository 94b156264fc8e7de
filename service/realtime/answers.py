"""The answers of a session: one at a time in its conversation, others beside it; each a prompt of its items, and a generation."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from torch import Tensor

from models.prompt import Message, Prompt, Speech
from service.answers.prompting import Prompts
from service.engine import Engine, Sampling
from service.errors import ApiError, ContextTooLong
from service.gate.admission import Admission
from service.realtime.config import SessionConfig
from service.realtime.conversation import Conversation, Item
from service.realtime.protocol import RealtimeError, ResponseOptions
from service.realtime.response import CancelledBy, Emit, Response
from service.realtime.utterance import Ahead
from service.request import begin

RESERVE = 8  # a part of the context, one by that, is for the answer: older items make room for it
MAX_ASIDE = 16  # responses outside of the conversation at the same time

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
    response: Response
    task: asyncio.Task[None]


class Answers:
    """Gives the responses of a session whose settings `config` tells."""

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        admission: Admission,
        client: str,
        conversation: Conversation,
        config: Callable[[], SessionConfig],
        tell: Emit,
    ) -> None:
        self._engine, self._prompts = engine, prompts
        self._admission, self._client = admission, client
        self._conversation = conversation
        self._config = config
        self._tell = tell
        self._running: list[_Running] = []
        self._next: float | None = None  # when a turn ended whose answer waits for the end of the one that is given

    @property
    def _in_conversation(self) -> _Running | None:
        return next((running for running in self._running if running.response.is_in_conversation), None)

    def answer(self, asked: float) -> None:
        """Answers a turn that ended then (time.perf_counter), as soon as no other answer is being given."""
        if self._in_conversation:
            self._next = asked
        else:
            self._begin(ResponseOptions(), None, asked)

    async def make_way(self, options: ResponseOptions) -> None:
        """Waits for the end of a response that was cancelled. Raises RealtimeError where one that was not stands in the way."""
        if options.conversation == "auto" and (running := self._in_conversation):
            if not running.task.cancelling():
                raise RealtimeError(
                    "A response is being given; wait for its end, or cancel it.",
                    code="conversation_already_has_active_response",
                )
            await asyncio.wait([running.task])
        if len(self._running) > MAX_ASIDE:
            raise RealtimeError(f"{len(self._running)} responses are being given; wait.", code="too_many_responses")

    def create(self, options: ResponseOptions, context: list[Item] | None) -> None:
        """Gives a response that was asked for, to the conversation or to the items of a context of its own."""
        self._begin(options, context, time.perf_counter())

    def _begin(self, options: ResponseOptions, context: list[Item] | None, asked: float) -> None:
        limit = options.max_output_tokens or self._config().max_output_tokens
        conversation = self._conversation if options.conversation == "auto" else None
        response = Response(options, limit, conversation, self._tell, asked)
        items = self._conversation.items() if context is None else context
        running = _Running(response, asyncio.create_task(self._give(response, items)))
        self._running.append(running)
        running.task.add_done_callback(lambda _: self._ended(running))

    def _ended(self, running: _Running) -> None:
        self._running.remove(running)
        if running.task.cancelled():  # perhaps before it had begun
            running.response.cancel()
        elif error := running.task.exception():
            log.error("a response failed", exc_info=error)
            running.response.fail(ApiError("The server had an error while answering."))
        if self._next is not None and not self._in_conversation:
            asked, self._next = self._next, None
            self.answer(asked)

    async def _give(self, response: Response, items: Sequence[Item]) -> None:
        request = begin()
        options, config = response.options, self._config()
        limit = None if response.max_output_tokens == "inf" else response.max_output_tokens
        temperature = config.temperature if options.temperature is None else options.temperature
        instructions = config.instructions if options.instructions is None else options.instructions
        try:
            with self._admission.admit(self._client):
                prompt = await self._prompt(instructions, await _messages(items))
                response.read(prompt)
                sampling = Sampling(max_tokens=limit, temperature=temperature)
                async with aclosing(self._engine.stream(prompt, sampling, response.id)) as deltas:
                    async for delta in deltas:
                        response.add(delta)
            response.end()
        except ApiError as error:
            response.fail(error)
        finally:
            request.publish()

    async def _prompt(self, instructions: str, messages: list[Message]) -> Prompt:
        """The prompt; the oldest messages make room for the answer. Raises ContextTooLong where the last alone is too long."""
        system = [Message("system", [instructions])] if instructions else []
        if not messages or (self._prompts.format == "blsp" and messages[-1].role != "user"):
            messages = [*messages, Message("user", [""])]  # the model speaks first, or again
        context = self._engine.max_model_len
        messages = _last(messages, context)
        while True:
            try:
                prompt = await self._prompts.build([*system, *messages], "conversation")
                if len(prompt.token_ids) < context - context // RESERVE or len(messages) <= 1:
                    return prompt
            except ContextTooLong:
                if len(messages) <= 1:
                    raise
            messages = messages[1 + len(messages) // RESERVE :]

    def reader(self) -> Ahead:
        """What has the LLM read the rows (n, llm_dim) of an utterance that begins, while it goes on, behind what there is now."""
        items = self._conversation.items()

        async def read(rows: Tensor) -> None:
            if self._in_conversation:
                return  # its answer will stand before the utterance, and is not there yet
            said = Message("user", [Speech(rows)])
            prompt = await self._prompt(self._config().instructions, [*await _messages(items), said])
            await self._engine.prefill(prompt.through_speech(), f"prefill-{uuid.uuid4().hex}")

        return read

    def cancel(self, by: CancelledBy, response_id: str | None = None) -> None:
        """Ends a response, by default the one that is given to the conversation. Raises RealtimeError where there is none."""
        self._next = None
        running = (
            next((running for running in self._running if running.response.id == response_id), None)
            if response_id
            else self._in_conversation
        )
        if running is None:
            raise RealtimeError(
                "Cancellation failed: no such response is being given.", code="response_cancel_not_active"
            )
        if not running.task.cancelling():  # again, it would disturb what is being put in order
            running.response.cancelled_by = by
            running.task.cancel()

    def interrupt(self) -> None:
        """Ends what is given to the conversation: somebody speaks."""
        if self._in_conversation:
            self.cancel("turn_detected")

    async def wait(self) -> None:
        """Until none is being given."""
        while self._running:
            await asyncio.wait([running.task for running in self._running])

    async def close(self) -> None:
        """Ends all."""
        self._next = None
        tasks = [running.task for running in self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _messages(items: Sequence[Item]) -> list[Message]:
    """What the LLM reads of items: those that say something. Raises what became of the last, where that can't be heard."""
    messages: list[Message] = []
    for item in items:
        try:
            message = await item.message()
        except ApiError:
            if item is items[-1]:
                raise
            continue
        if any(isinstance(part, Speech) or part for part in message.parts):
            messages.append(message)
    return messages


def _last(messages: list[Message], context: int) -> list[Message]:
    """Those that have no more speech than a context has tokens, and the last one."""
    kept: list[Message] = []
    rows = 0
    for message in reversed(messages):
        rows += sum(len(part.rows) for part in message.parts if isinstance(part, Speech))
        if kept and rows > context:
            break
        kept.insert(0, message)
    return kept
