"""What the engine adds to vLLM's: an end to generations, and a count of the prompts that wait."""

import asyncio
import itertools
import json
import os
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
import torch
from vllm.lora.request import LoRARequest
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from models.checkpoint import open_checkpoint
from models.config import CheckpointError
from service.engine import BlspLLM, Engine, Plan, _delta, can_guide
from service.errors import DeadlineExceeded, OptionError, Unavailable
from service.gate.admission import Admission, Limits, Queued
from service.guide import JointDecoding


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


@pytest.fixture
def llm_folder(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small LLM; what a plan puts into the environment is taken back."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return open_checkpoint(str(official), tmp_path).llm


def test_a_plan_knows_the_dtype_before_the_engine_starts(llm_folder: Path) -> None:
    assert Plan.make(llm_folder, "tiny", "bfloat16", []).dtype == torch.bfloat16
    plan = Plan.make(llm_folder, "tiny", "float32", ["--max-model-len", "64", "--disable-log-stats"])
    assert plan.dtype == torch.float32
    assert plan.config.model_config.max_model_len == 64
    assert plan.config.model_config.served_model_name == "tiny"
    assert not plan.logs_stats


@pytest.mark.parametrize(
    ("options", "tools", "backend"),
    [
        ([], False, "guidance"),
        ([], True, "auto"),
        (["--structured-outputs-config.backend", "xgrammar"], False, "xgrammar"),
    ],
)
def test_forms_of_replies_are_followed_within_limits(
    llm_folder: Path, options: list[str], tools: bool, backend: str
) -> None:
    plan = Plan.make(llm_folder, "tiny", "float32", options, tools=tools)
    assert plan.config.structured_outputs_config.backend == backend
    assert plan.config.structured_outputs_config.disable_additional_properties == (backend == "guidance")


SPECULATIVE = ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}']


@pytest.mark.parametrize(
    ("options", "guided", "is_guided"), [([], False, False), ([], True, True), (SPECULATIVE, True, False)]
)
def test_replies_are_guided_where_the_llm_says_one_token_at_a_time(
    llm_folder: Path, options: list[str], guided: bool, is_guided: bool
) -> None:
    plan = Plan.make(llm_folder, "tiny", "float32", options, guided=guided)
    assert (plan.config.model_config.logits_processors == [JointDecoding]) is is_guided


def test_the_second_model_runner_knows_no_such_guides(llm_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Plan.make(llm_folder, "tiny", "float32", []).config
    assert can_guide(config)
    assert not issubclass(JointDecoding, V2LogitsProcessor)
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    assert not can_guide(config)
    assert "VLLM_USE_V2_MODEL_RUNNER=0" in caplog.text


@pytest.mark.parametrize(
    "options", [["--nonsense"], ["--max-num-seqs", "0"], ["--enable-lora", "--lora-target-modules", "q_proj"]]
)
def test_a_plan_takes_no_options_that_vllm_does_not_take(llm_folder: Path, options: list[str]) -> None:
    with pytest.raises(OptionError):
        Plan.make(llm_folder, "tiny", "float32", options)


@pytest.mark.parametrize(("left", "taken"), [(1.0, 0.9), (0.85, 0.85)])
def test_the_engine_takes_no_more_of_a_gpu_than_is_left(
    monkeypatch: pytest.MonkeyPatch, left: float, taken: float
) -> None:
    started = []

    def start(config: Any, disable_log_stats: bool) -> BlspLLM:
        started.append((config.cache_config.gpu_memory_utilization, disable_log_stats))
        return BlspLLM.__new__(BlspLLM)

    monkeypatch.setattr(BlspLLM, "from_vllm_config", start)
    plan = Plan(SimpleNamespace(cache_config=SimpleNamespace(gpu_memory_utilization=0.9)), logs_stats=True)
    engine = Engine.start(plan, drop_first_space=True, most_memory=left)
    assert started == [(taken, False)]
    assert engine.llm.drop_first_space


class FakeLLM:
    """As much of one as has to do with LoRAs; `error` is what it raises where it is given one."""

    def __init__(
        self, lora_config: Any = None, device: str = "cpu", has: int = 0, error: BaseException | None = None
    ) -> None:
        device_config = SimpleNamespace(device_type=device)
        self.vllm_config = SimpleNamespace(lora_config=lora_config, device_config=device_config)
        self.model_config = SimpleNamespace(max_model_len=64)
        self.loras = set(range(100, 100 + has))
        self.lora_numbers = itertools.count(1)
        self.error = error
        self.asked: list[Any] = []

    async def list_loras(self) -> set[int]:
        return self.loras

    async def add_lora(self, lora: LoRARequest) -> None:
        self.loras.add(lora.lora_int_id)
        if self.error:
            raise self.error

    async def remove_lora(self, number: int) -> None:
        self.loras.discard(number)

    async def generate(self, prompt: Any, *, lora_request: LoRARequest | None = None) -> AsyncGenerator[Any, None]:
        self.asked.append((prompt, lora_request))
        yield prompt

    async def prefill(self, prompt: Any, request_id: str, lora: LoRARequest | None = None) -> None:
        self.asked.append((prompt, lora))


def room_for(loras: int) -> SimpleNamespace:
    return SimpleNamespace(max_loras=loras + 1, max_cpu_loras=9, max_lora_rank=8)


@pytest.fixture
def lora_folder(tmp_path: Path) -> Path:
    config = {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("llm", "why"),
    [
        (FakeLLM(), "started with --enable-lora"),
        (FakeLLM(room_for(2), has=2), "has 2 LoRAs, as many as it takes"),
        (FakeLLM(room_for(2), "cuda", has=9), "has 9 LoRAs, as many as it takes"),
        (
            FakeLLM(SimpleNamespace(max_loras=2, max_cpu_loras=2, max_lora_rank=1)),
            "rank 8 is greater than max_lora_rank 1",
        ),
        (FakeLLM(room_for(1), error=Exception("no such modules")), "can't have the LoRA .*: no such modules"),
    ],
    ids=["none", "cpu", "gpu", "rank", "engine"],
)
async def test_a_lora_that_the_engine_can_not_have_is_refused(llm: Any, why: str, lora_folder: Path) -> None:
    before = set(llm.loras)
    with pytest.raises(CheckpointError, match=why):
        await Engine(llm).with_lora("a", lora_folder)
    assert llm.loras == before


@pytest.mark.parametrize(
    ("error", "told"), [(asyncio.CancelledError(), asyncio.CancelledError), (EngineDeadError(), Unavailable)]
)
async def test_that_nobody_waits_for_a_lora_is_no_fault_of_it(
    error: BaseException, told: type[BaseException], lora_folder: Path
) -> None:
    llm: Any = FakeLLM(room_for(1), error=error)
    with pytest.raises(told):
        await Engine(llm).with_lora("a", lora_folder)
    assert llm.loras == set() or told is Unavailable


async def test_an_engine_with_a_lora_asks_for_it_until_it_is_forgotten(lora_folder: Path) -> None:
    llm: Any = FakeLLM(room_for(1))
    engine = Engine(llm)
    for number in (1, 2):  # the prefix cache goes by names: no two are the same
        tuned = await engine.with_lora("a", lora_folder)
        lora = LoRARequest(f"a-{number}", number, str(lora_folder))
        assert [answer async for answer in tuned.llm.generate("p", lora_request=None)] == ["p"]
        await tuned.llm.prefill("q", "id")
        assert llm.asked == [("p", lora), ("q", lora)]
        assert [each.lora_int_id for _, each in llm.asked] == [number, number]
        assert tuned.max_model_len == 64
        await tuned.forget_lora()
        assert llm.loras == set()
        llm.asked.clear()
    assert [answer async for answer in engine.llm.generate("p")] == ["p"]
    assert llm.asked == [("p", None)]
    await engine.forget_lora()


@pytest.mark.parametrize(
    ("options", "places"),
    [([], None), (["--enable-lora"], (2, 2)), (["--enable-lora", "--max-loras=3", "--max-cpu-loras=9"], (4, 9))],
)
def test_one_place_for_loras_is_empty_on_a_cpu(
    llm_folder: Path, options: list[str], places: tuple[int, int] | None
) -> None:
    config = Plan.make(llm_folder, "tiny", "float32", options).config.lora_config
    assert (config and (config.max_loras, config.max_cpu_loras)) == places
    if config:
        linear = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
        assert config.target_modules == linear, "and none for embeddings, beside which there is speech"


@pytest.mark.parametrize("error", [None, EngineDeadError(), Exception("no method give_back")])
async def test_workers_are_asked_to_give_memory_back(llm_folder: Path, error: Exception | None) -> None:
    """By vLLM's own way of asking them; where they can't, nothing happens."""
    plan = Plan.make(llm_folder, "tiny", "float32", [])
    workers = resolve_obj_by_qualname(plan.config.parallel_config.worker_extension_cls)()
    llm = SimpleNamespace(collective_rpc=AsyncMock(side_effect=error))
    await Engine(cast(Any, llm)).give_back()
    llm.collective_rpc.assert_awaited_once()
    assert getattr(workers, llm.collective_rpc.await_args.args[0])() is None
