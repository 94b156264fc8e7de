"""The vLLM engine: prompts in, tokens out.

With `service/guide.py` and `service/answers/chat.py` this is all that imports vLLM, and it stands on internals of vLLM 0.32.0 (see
tests/service/test_seam.py).
Mixed prompts are vLLM's `embeds_input` with `is_token_ids`: rows where speech stands, token ids elsewhere.
"""

import asyncio
import itertools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import vllm
from pydantic import ValidationError
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError as VLLMClientError
from vllm.inputs import tokens_input
from vllm.inputs.engine import EngineInput, embeds_input
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from models import lora
from models.config import CheckpointError
from models.prompt import Prompt
from service import kernels
from service.errors import ApiError, ContextTooLong, DeadlineExceeded, InvalidRequest, OptionError, Unavailable
from service.gate.admission import current_client
from service.guide import Guide, JointDecoding
from service.request import running
from service.telemetry import metrics

log = logging.getLogger(__name__)

VLLM_VERSION: str = vllm.__version__
EMPTY_LORAS = 1  # places for LoRAs on a CPU in which there is none


@dataclass(frozen=True)
class Sampling:
    """How to generate; None leaves it to the model's generation config, for `max_tokens` to what the context still holds."""

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    guide: Guide | None = None
    """What the reply is held to, of an engine that `is_guided`."""


@dataclass(frozen=True)
class Token:
    """A token of a reply, and how likely the model found it; where a character needs several tokens, its last one has its text."""

    text: str
    logprob: float


@dataclass(frozen=True)
class Delta:
    """What one step of the engine added to a reply."""

    text: str
    token_ids: list[int]
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    logprob: float
    """The sum over `token_ids`, where the sampling asked for it, else 0."""
    tokens: Sequence[Token] = ()
    """Those that the text is made of, where the sampling asked for logprobs: none that is special, and not what ended the reply."""


class BlspLLM(AsyncLLM):
    """vLLM's engine; whichever endpoint asks, it books the time to the first token, between tokens, and in all, and sets an end to it.

    Of what waits, vLLM schedules first what comes from the client with the fewest generations: a hundred of one don't delay another's.
    With `drop_first_space`, replies start without the space that SentencePiece puts before a first word, as in the official code.
    """

    drop_first_space = False
    generation_seconds = math.inf
    queued_prompt_tokens = 0
    """Of all prompts whose reply has not begun."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lora_numbers = itertools.count(1)
        self._running: Counter[str] = Counter()  # generations of each client

    @property
    def generations(self) -> int:
        """How many replies are being generated, or wait for their first token."""
        return self._running.total()

    def __del__(self) -> None:
        """Engine.close has ended the processes; vLLM's own finalizer would try again and fail while Python exits."""

    async def generate(self, prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        """As AsyncLLM.generate. Raises DeadlineExceeded after `generation_seconds`."""
        queued = _n_tokens(prompt)
        self._add_queued(queued)
        end = asyncio.get_running_loop().time() + self.generation_seconds
        request = running()
        times = request.timeline
        kwargs["trace_headers"] = request.trace_headers or None
        client = current_client()
        kwargs["priority"] = self._running[client]  # least first
        self._running[client] += 1
        start = time.perf_counter()
        first = last = None
        finished = False
        begun: set[int] = set()  # choices whose text has begun
        try:
            async with aclosing(super().generate(prompt, *args, **kwargs)) as outputs:
                while (output := await self._next_before(end, outputs)) is not None:
                    self._add_queued(-queued)
                    queued = 0
                    now = time.perf_counter()
                    if first is None or last is None:
                        first = now
                        times.add("prefill", start, now)
                        times.first_token(now)
                        request.prompt_tokens += len(output.prompt_token_ids or ())
                    else:
                        metrics.STAGE_SECONDS.labels("inter_token").observe(now - last)
                    last = now
                    request.completion_tokens += sum(len(choice.token_ids) for choice in output.outputs)
                    if self.drop_first_space:
                        _drop_first_space(output, begun)
                    finished = output.finished
                    if finished:
                        times.add("generate", first, now)
                        times.last_token(now)
                    yield output
        except (GeneratorExit, asyncio.CancelledError):
            if not finished:
                metrics.ABORTED.inc()
            raise
        finally:
            self._add_queued(-queued)
            self._running -= Counter([client])  # which drops who has none left

    async def _next_before(self, end: float, outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput | None:
        try:
            async with asyncio.timeout_at(end) as clock:
                return await anext(outputs, None)
        except TimeoutError as error:
            if not clock.expired():
                raise
            raise DeadlineExceeded(f"The generation took longer than {self.generation_seconds:g} s.") from error

    def _add_queued(self, tokens: int) -> None:
        self.queued_prompt_tokens += tokens
        metrics.QUEUED_PROMPT_TOKENS.set(self.queued_prompt_tokens)

    async def prefill(self, engine_input: EngineInput, request_id: str, tuned: LoRARequest | None = None) -> None:
        """Computes a prompt, for the prefix cache; books nothing."""
        parameters = SamplingParams(max_tokens=1, output_kind=RequestOutputKind.FINAL_ONLY)
        priority = self._running[current_client()]
        async for _ in super().generate(engine_input, parameters, request_id, priority=priority, lora_request=tuned):
            pass


class Tuned:
    """A BlspLLM with a LoRA on its weights, whoever asks it, vLLM's serving classes too; in all else it is the LLM itself."""

    def __init__(self, llm: BlspLLM, by: LoRARequest) -> None:
        self._llm = llm
        self._lora = by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        """As BlspLLM.generate."""
        return self._llm.generate(*args, **kwargs | {"lora_request": self._lora})

    async def prefill(self, engine_input: EngineInput, request_id: str) -> None:
        """As BlspLLM.prefill."""
        await self._llm.prefill(engine_input, request_id, self._lora)


@dataclass(frozen=True)
class Plan:
    """What vLLM has made of its options, before it takes any memory."""

    config: VllmConfig
    logs_stats: bool

    @property
    def dtype(self) -> torch.dtype:
        """What the LLM will compute in, and the dtype that rows must have."""
        dtype: torch.dtype = self.config.model_config.dtype
        return dtype

    @classmethod
    def make(
        cls, model: Path, name: str, dtype: str, options: list[str], *, tools: bool = False, guided: bool = False
    ) -> "Plan":
        """For the LLM in the folder `model`, called `name` in the engine's metrics; with `tools`, replies may be held to calls of them.

        With `guided` they may be held to what was heard, if vLLM can do that as the options have it; else the log says why not.
        `options` are vLLM's engine flags. Raises OptionError for one that vLLM does not take, and what vLLM raises.
        """
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the engine's processes
        on_cpu = not torch.cuda.is_available()
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
            # The model runs in the engine's process. In one of its own, the engine would wait for it spinning, and take a core from the
            # encoder.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) - 1)))  # of the engine
        else:
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # a fork has no use of the encoder's CUDA
        parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(prog="blsp serve MODEL"))
        parser.set_defaults(
            model=str(model),
            served_model_name=[name],
            dtype=dtype,
            enable_prompt_embeds=True,
            scheduling_policy="priority",
            enforce_eager=on_cpu,
            worker_extension_cls="service.heap.InWorker",
            # Its work has limits, for compiling and for every token. With xgrammar, a pattern of 440 letters takes 1.5 s a token, in which
            # nobody gets one, and one of 3,600 half a minute to compile, which goes on when the client has left. But vLLM holds calls of
            # tools to forms that only xgrammar knows.
            structured_outputs_config=StructuredOutputsConfig(
                backend="auto" if tools else "guidance",
                disable_additional_properties=not tools,  # which a schema does not mention: as xgrammar has it
            ),
        )
        if on_cpu:
            # Instead of 128: the prefix cache gives whole blocks, and the rest is computed again.
            parser.set_defaults(block_size=32)
        try:
            args = AsyncEngineArgs.from_cli_args(parser.parse_args(options))
        except SystemExit as error:  # argparse has printed what is wrong
            raise OptionError(f"vLLM does not take the options {' '.join(options)}") from error
        if args.enable_lora:
            if args.lora_target_modules is not None:
                raise OptionError("--lora-target-modules can't be set: LoRAs are for all linear layers, and no others.")
            # Not for the embeddings: where there is speech, vLLM looks up those of the text alone, and would die of room for a LoRA there.
            args.lora_target_modules = lora.targets(model)
        if on_cpu:
            # There, vLLM 0.32 takes the last of its places for LoRAs for all that have none (vllm-project/vllm#48421). It stays empty.
            args.max_loras += EMPTY_LORAS
            args.max_cpu_loras = max(args.max_loras, args.max_cpu_loras or 0)
        try:
            config = args.create_engine_config(UsageContext.ENGINE_CONTEXT)
        except ValidationError as error:  # of vLLM's configuration
            raise OptionError("; ".join(item["msg"] for item in error.errors())) from error
        if guided and can_guide(config):
            config.model_config.logits_processors = [*(config.model_config.logits_processors or ()), JointDecoding]
        return cls(config, not args.disable_log_stats)


def can_guide(config: VllmConfig) -> bool:
    """Whether an engine with these options takes a JointDecoding; the log says why not.

    vLLM 0.32's second model runner, which GPUs have, knows processors of another kind.
    """
    if config.speculative_config is not None:
        reason = "with speculative decoding, replies can't be held to what was heard"
    elif config.use_v2_model_runner:
        reason = "vLLM's Model Runner V2 can't hold replies to what was heard; VLLM_USE_V2_MODEL_RUNNER=0 takes the first one"
    else:
        return True
    log.warning("Transcriptions are what the LLM repeats: %s.", reason)
    return False


class Engine:
    """One LLM in vLLM, with a LoRA on its weights or without."""

    def __init__(self, llm: BlspLLM, tuned: LoRARequest | None = None) -> None:
        self.llm = llm if tuned is None else cast(BlspLLM, Tuned(llm, tuned))
        self._lora = tuned

    @classmethod
    def start(cls, plan: Plan, *, drop_first_space: bool, most_memory: float = 1.0) -> "Engine":
        """Starts vLLM; takes half a minute.

        It takes at most the share `most_memory` of a GPU's memory, and less where the options say so. Raises what vLLM raises.
        """
        cache = plan.config.cache_config
        cache.gpu_memory_utilization = min(cache.gpu_memory_utilization, most_memory)
        kernels.keep_few()
        llm = BlspLLM.from_vllm_config(plan.config, disable_log_stats=not plan.logs_stats)
        assert isinstance(llm, BlspLLM)
        llm.drop_first_space = drop_first_space
        return cls(llm)

    async def with_lora(self, name: str, folder: Path) -> "Engine":
        """The same LLM, with a LoRA in PEFT's layout on its weights, until `forget_lora`.

        Raises CheckpointError where vLLM can't have it, or has no room.
        """
        config = self.llm.vllm_config.lora_config
        if config is None:
            raise CheckpointError("it names a LoRA, for which vLLM has to be started with --enable-lora")
        # Never more than vLLM keeps: it would read one again from its files in the midst of a step, and die where they are gone.
        room = config.max_loras - EMPTY_LORAS if _is_on_cpu(self.llm.vllm_config) else config.max_cpu_loras
        if len(await self.llm.list_loras()) >= room:
            raise CheckpointError(f"the engine has {room} LoRAs, as many as it takes; --max-loras says how many")
        number = next(self.llm.lora_numbers)
        # The prefix cache goes by name and path, and another LoRA may have had both.
        request = LoRARequest(f"{name}-{number}", number, str(folder))
        try:
            helper = await asyncio.to_thread(PEFTHelper.from_local_dir, request.lora_path, self.max_model_len)
            helper.validate_legal(config)
            await self.llm.add_lora(request)
        except EngineDeadError as error:
            raise as_api_error(error) from error
        except (
            BaseException
        ) as error:  # any Exception is what goes wrong in vLLM's engine; else nobody wants it any more
            await self.llm.remove_lora(number)  # what there is of it
            if not isinstance(error, Exception):
                raise
            raise CheckpointError(f"the engine can't have the LoRA {folder}: {error}") from error
        return Engine(self.llm, request)

    async def forget_lora(self) -> None:
        """Frees the memory of its LoRA, where it has one; nothing may be asked of it any more."""
        if self._lora is not None:
            await self.llm.remove_lora(self._lora.lora_int_id)

    @property
    def is_guided(self) -> bool:
        """Whether a sampling may have a guide."""
        return JointDecoding in (self.llm.model_config.logits_processors or ())

    @property
    def max_model_len(self) -> int:
        """The LLM's context, tokens."""
        return int(self.llm.model_config.max_model_len)

    @cached_property
    def _unsaid(self) -> frozenset[int]:
        """The tokens that are never text: what is marked as special, the ends of replies among it."""
        tokenizer = self.llm.renderer.tokenizer
        marked = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        return frozenset(marked.union(tokenizer.all_special_ids))

    @property
    def dtype(self) -> torch.dtype:
        """What the LLM computes in, and the dtype that rows must have."""
        dtype: torch.dtype = self.llm.model_config.dtype
        return dtype

    def input(self, prompt: Prompt, cache_salt: str | None = None) -> EngineInput:
        """vLLM's form of a prompt; one without speech is plain token ids. What is cached of it only prompts with its salt get to use.

        Raises ContextTooLong where no token would fit after it.
        """
        if len(prompt.token_ids) >= self.max_model_len:
            raise ContextTooLong(
                f"The prompt has {len(prompt.token_ids)} tokens, {prompt.speech_tokens} of them speech; with a token of reply it "
                f"must fit the model's context of {self.max_model_len} tokens."
            )
        if not prompt.speech_tokens:
            return tokens_input(prompt.token_ids, cache_salt=cache_salt)
        shape: Any = {"prompt_token_ids": prompt.token_ids, "is_token_ids": prompt.is_token}
        return embeds_input(prompt.rows, cache_salt=cache_salt, **shape)

    async def stream(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncGenerator[Delta, None]:
        """Generates; closing the iterator aborts the request in the engine.

        Raises ContextTooLong, InvalidRequest for sampling that vLLM refuses, Unavailable where the engine is dead.
        """
        engine_input = self.input(prompt)
        room = self.max_model_len - len(prompt.token_ids)
        try:
            parameters = SamplingParams(
                max_tokens=min(sampling.max_tokens or room, room),
                min_tokens=sampling.min_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop=list(sampling.stop),
                seed=sampling.seed,
                logprobs=0 if sampling.logprobs else None,
                extra_args=sampling.guide and sampling.guide.told(),
                output_kind=RequestOutputKind.DELTA,
            )
        except ValueError as error:
            raise as_api_error(error) from error
        try:
            async with aclosing(self.llm.generate(engine_input, parameters, request_id)) as outputs:
                async for output in outputs:
                    yield _delta(output, self._unsaid)
        except (VLLMClientError, EngineDeadError) as error:
            raise as_api_error(error) from error

    async def prefill(self, prompt: Prompt, request_id: str) -> None:
        """Computes a prompt ahead: of one that begins with it, vLLM's prefix cache then has all full blocks.

        Raises ContextTooLong, and what vLLM raises.
        """
        await self.llm.prefill(self.input(prompt), request_id)

    async def warm_up_logprobs(self) -> None:
        """Generates one token with its log-probabilities: the first such request compiles kernels for many seconds."""
        parameters = SamplingParams(max_tokens=1, logprobs=1, output_kind=RequestOutputKind.FINAL_ONLY)
        async for _ in self.llm.generate(tokens_input([0]), parameters, "warm-up"):
            pass

    async def check(self) -> None:
        """Raises Unavailable where the engine is dead."""
        try:
            await self.llm.check_health()
        except EngineDeadError as error:
            raise as_api_error(error) from error

    async def give_back(self) -> None:
        """Has its processes return the memory that they do not use, between two steps.

        Does nothing where the engine is dead, or its workers have another extension, by --worker-extension-cls.
        """
        with suppress(Exception):  # vLLM tells no more of what went wrong in a worker
            await self.llm.collective_rpc("give_back")

    async def close(self) -> None:
        """Ends the engine's processes."""
        if self.llm.output_handler is not None:
            self.llm.output_handler.cancel()  # else it reports the engine's end as an error
        await asyncio.to_thread(self.llm.shutdown)


def _is_on_cpu(config: VllmConfig) -> bool:
    return bool(config.device_config.device_type == "cpu")


def values_of(name: str) -> int | None:
    """How many values an option of vLLM's takes, as its own parser says, -1 for a list; None where it has none of that name."""
    for action in AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())._actions:
        if name.replace("_", "-") in action.option_strings:
            return 1 if action.nargs is None else action.nargs if isinstance(action.nargs, int) else -1
    return None


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error of vLLM's."""
    if isinstance(error, EngineDeadError):
        return Unavailable("The LLM engine has died; the service is restarting.")
    message = error.args[0] if error.args else error  # str() of vLLM's own repeats the parameter
    return InvalidRequest(str(message), param=getattr(error, "parameter", None))


def _n_tokens(prompt: Any) -> int:
    """The length of an engine input of ours or of vLLM's renderers."""
    token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    return len(token_ids or ())


def _drop_first_space(output: RequestOutput, begun: set[int]) -> None:
    for choice in output.outputs:
        if choice.text and choice.index not in begun:
            begun.add(choice.index)
            choice.text = choice.text.removeprefix(" ")


def _delta(output: RequestOutput, unsaid: Collection[int]) -> Delta:
    (choice,) = output.outputs
    sampled = [candidates[token] for token, candidates in zip(choice.token_ids, choice.logprobs or (), strict=False)]
    tokens = [
        Token(one.decoded_token or "", one.logprob)
        for token, one in zip(choice.token_ids, sampled, strict=False)
        if token not in unsaid
    ]
    if tokens and isinstance(choice.stop_reason, str) and tokens[-1].text.startswith(choice.stop_reason):
        tokens.pop()
    return Delta(
        text=choice.text,
        token_ids=list(choice.token_ids),
        finish_reason=choice.finish_reason,
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=output.num_cached_tokens or 0,
        logprob=sum(one.logprob for one in sampled),
        tokens=tokens,
    )
