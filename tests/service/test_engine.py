"""What the engine adds to vLLM's: an end to generations, and a count of the prompts that wait."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from service.engine import BlspLLM, _delta, _environment
from service.errors import DeadlineExceeded
from service.gate.admission import Admission, Limits, Queued


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> BlspLLM:
    """An engine whose vLLM gives one output as soon as `go` is set, and never another."""
    llm = BlspLLM.__new__(BlspLLM)
    llm.go, llm.aborted, llm.priorities = asyncio.Event(), False, []
    llm._running = Counter()

    async def generate(self: Any, *_: Any, priority: int, **__: Any) -> AsyncGenerator[SimpleNamespace, None]:
        self.priorities.append(priority)
        try:
            await self.go.wait()
            yield SimpleNamespace(outputs=[], finished=False, prompt_token_ids=[])
            await asyncio.Event().wait()
        finally:
            self.aborted = True

    monkeypatch.setattr(AsyncLLM, "generate", generate)
    return llm


PROMPT = {"prompt_token_ids": [1, 2, 3]}


async def test_prompts_wait_until_their_first_token(llm: BlspLLM) -> None:
    async with aclosing(llm.generate(PROMPT, None, "a")) as outputs:
        first = asyncio.create_task(anext(outputs))
        await asyncio.sleep(0)
        assert llm.queued_prompt_tokens == 3
        llm.go.set()
        await first
        assert llm.queued_prompt_tokens == 0
    assert llm.aborted


async def test_a_client_that_goes_waits_no_longer(llm: BlspLLM) -> None:
    async with aclosing(llm.generate(PROMPT, None, "a")) as outputs:
        first = asyncio.create_task(anext(outputs))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    assert llm.queued_prompt_tokens == 0
    assert llm.aborted


@pytest.mark.parametrize("begun", [False, True])
async def test_a_generation_has_a_deadline(llm: BlspLLM, begun: bool) -> None:
    llm.generation_seconds = 0.05
    if begun:
        llm.go.set()
    with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
        async for _ in llm.generate(PROMPT, None, "a"):
            pass
    assert llm.aborted
    assert llm.queued_prompt_tokens == 0


async def test_a_generation_comes_after_those_of_clients_with_fewer(llm: BlspLLM) -> None:
    llm.go.set()
    admission = Admission(Limits(0, 0, 0, 0, 0, 0), lambda: Queued(0, 0))
    async with AsyncExitStack() as stack:
        for client in ("alice", "alice", "bob", "alice"):
            with admission.admit(client):
                outputs = await stack.enter_async_context(aclosing(llm.generate(PROMPT, None, "a", priority=-7)))
                await anext(outputs)
    assert llm.priorities == [0, 1, 0, 2]
    assert not llm._running


def test_variables_for_the_engines_processes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "by the operator")
    monkeypatch.delenv("UNSET", raising=False)
    show = [sys.executable, "-c", "import os; print(os.environ['SET'], os.environ['UNSET'], sep=', ')"]
    with _environment(SET="by us", UNSET="by us"):
        said = subprocess.run(show, capture_output=True, text=True, check=True).stdout
    assert said == "by the operator, by us\n"
    assert os.environ["SET"] == "by the operator"
    assert "UNSET" not in os.environ


@pytest.mark.parametrize(
    ("last", "stop_reason", "texts"),
    [
        ((2, "</s>"), None, ["Hi"]),
        ((3, '"'), '"', ["Hi"]),
        ((4, '."'), '"', ["Hi", '."']),
        ((5, " there"), None, ["Hi", " there"]),
    ],
)
def test_what_is_no_text_is_none_of_its_tokens(
    last: tuple[int, str], stop_reason: str | None, texts: list[str]
) -> None:
    sampled = {1: "Hi", **dict([last])}
    found = [{id_: SimpleNamespace(decoded_token=text, logprob=-1.5)} for id_, text in sampled.items()]
    choice = SimpleNamespace(
        text="Hi", token_ids=list(sampled), logprobs=found, finish_reason="stop", stop_reason=stop_reason
    )
    output: Any = SimpleNamespace(outputs=[choice], prompt_token_ids=[1], num_cached_tokens=0)
    delta = _delta(output, {2})
    assert [token.text for token in delta.tokens] == texts
    assert delta.logprob == -3.0
