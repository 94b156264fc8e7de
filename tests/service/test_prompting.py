"""What can't fit is refused unread, long texts are read in a thread, and either way the prompt is the builder's."""

import asyncio
import threading
from typing import Any

import pytest
import torch

from models.prompt import Message, Prompt, PromptBuilder, Speech
from models.random_init import byte_tokenizer
from service.answers.prompting import LONG, PIECE, Prompts
from service.errors import ContextTooLong, InvalidRequest

BUILDER = PromptBuilder(byte_tokenizer(300), "chat-template", 8)
LONGEST = 5  # "<unk>"


class Noted(PromptBuilder):
    """Says in which threads it builds."""

    def build(self, *args: Any, **options: Any) -> Prompt:
        THREADS.append(threading.current_thread())
        return super().build(*args, **options)


THREADS: list[threading.Thread] = []


@pytest.fixture
def prompts() -> Prompts:
    THREADS.clear()
    return Prompts(Noted(BUILDER.tokenizer, "chat-template", 8), LONG)


def said(length: int) -> list[Message]:
    return [Message("user", ["x" * (length // 2), Speech(torch.ones(3, 8)), "</s>" + "x" * (length - length // 2 - 4)])]


@pytest.mark.parametrize("length", [LONG - 4 * PIECE, LONG - 4 * PIECE + 1])
async def test_the_prompt_is_the_builders(prompts: Prompts, length: int) -> None:
    made, expected = await prompts.build(said(length), "messages"), BUILDER.build(said(length))
    assert (made.token_ids, made.is_token) == (expected.token_ids, expected.is_token)
    assert torch.equal(made.rows, expected.rows)
    assert (THREADS[0] is threading.main_thread()) == (length == LONG - 4 * PIECE)


async def test_long_prompts_do_not_disturb_short_ones(prompts: Prompts) -> None:
    """A tokenizer that two threads change at the same time raises, or spells wrongly."""
    long, short = said(2 * LONG), [Message("user", ["</s>Hi"])]
    expected = BUILDER.build(short).token_ids
    building = [asyncio.create_task(prompts.build(long, "messages")) for _ in range(20)]
    while not all(task.done() for task in building):
        assert (await prompts.build(short, "messages")).token_ids == expected
        await asyncio.sleep(0)
    assert {tuple((await task).token_ids) for task in building} == {tuple(BUILDER.build(long).token_ids)}


@pytest.mark.parametrize(
    "options",
    [
        {"messages": [Message("user", ["x" * (LONGEST * LONG + 1)])]},
        {"messages": [Message("user", ["Hi"], {"name": "x" * LONGEST * LONG})]},
        {"messages": [Message("user", ["Hi"])], "tools": [{"name": "x" * LONGEST * LONG}]},
        {"messages": [Message("user", ["Hi"])], "template_options": {"x": ["y" * LONGEST * LONG]}},
    ],
)
async def test_what_cannot_fit_is_not_even_read(prompts: Prompts, options: dict[str, Any]) -> None:
    with pytest.raises(ContextTooLong, match=f"can't hold more than {LONGEST * LONG}") as caught:
        await prompts.build(**options, param="messages")
    assert caught.value.param == "messages"
    assert not THREADS


@pytest.mark.parametrize("text", ["Hi", "Hi" * LONG])
async def test_what_the_format_cannot_express(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await Prompts(PromptBuilder(BUILDER.tokenizer, "blsp", 8), LONG).build(
            [Message("assistant", [text])], "history"
        )
    assert caught.value.param == "history"


async def test_more_messages_than_the_context_has_tokens_are_refused_unread(prompts: Prompts) -> None:
    with pytest.raises(ContextTooLong, match="messages and parts") as refusal:
        await prompts.build([Message("user", [""])] * (LONG // 2 + 1), "messages")
    assert refusal.value.param == "messages"
    assert not THREADS


async def test_many_messages_are_built_in_a_thread(prompts: Prompts) -> None:
    messages = [Message("user", [""])] * (LONG // PIECE // 2 + 1)
    assert (await prompts.build(messages, "messages")).token_ids == BUILDER.build(messages).token_ids
    assert THREADS[0] is not threading.main_thread()
