"""Bringing a checkpoint up: from its name to everything that answers requests."""

import asyncio
import gc
import io
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.config import CheckpointError
from models.embedder import Embedder
from models.features import SAMPLE_RATE
from service import kernels
from service.adapters import Adapter, load_adapter, read_checkpoint
from service.answers.prompting import Prompts
from service.answers.speech import SpeechRequest
from service.audio.decoders import Decoders
from service.audio.fetch import Fetcher
from service.audio.recordings import as_wav
from service.engine import Engine, Plan
from service.errors import OptionError
from service.gate.admission import Queued
from service.listening.listener import Listener
from service.listening.voice import Detector
from service.model import Models, Shared
from service.settings import ModelSettings, model_name
from service.watching import WatchedFolder

BATCH_SECONDS = 10  # of audio in a batch of the encoder on a CPU
GPU_MARGIN = 1 << 30  # bytes of a GPU's memory that the engine's own process takes before it looks for what is free
THREADS_ALONE = 8  # of the encoder on a CPU where nothing else is to be done: more are no use to one window

Progress = Callable[[str], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """Models that are loaded, the first of which has answered a first request, and what they share."""

    models: Models
    engine: Engine
    prompts: Prompts
    listener: Listener
    """The first model's; those of others hear with its decoders and in its batches."""
    detector: Detector
    watched: WatchedFolder | None

    def queued(self) -> Queued:
        """What waits for the encoder and for the LLM."""
        return Queued(self.listener.queued_seconds, self.engine.llm.queued_prompt_tokens)

    async def close(self) -> None:
        """Ends the watch, the encoder's threads and the engine's process."""
        if self.watched:
            await self.watched.close()
        self.detector.close()
        await self.listener.close()
        await self.engine.close()


async def load(settings: ModelSettings, names: Sequence[str], progress: Progress, watch: Path | None = None) -> Service:
    """Loads everything; `progress` hears of each step before it starts. `names` are those of the first model.

    The adapters in the folder `watch` are models while they are there. Raises CheckpointError where the checkpoint does not fit together,
    OptionError for a name that is given twice, and whatever vLLM raises. An adapter that can't be loaded is logged, and left out.
    """
    kernels.keep_few()
    paths = settings.adapters()
    progress(f"Reading checkpoint {settings.model}")
    checkpoint = await asyncio.to_thread(read_checkpoint, settings.model, settings)
    if checkpoint.lora is not None:
        raise CheckpointError(
            f"{checkpoint.folder} names a `lora`, which adapters beside a first model may do; a first model's is its `llm_lora`"
        )
    llm_name = settings.llm_name or (model_name(checkpoint.config.llm) if paths else "")
    _check_distinct([*names, *paths, *filter(None, [llm_name])])
    device = torch.device(
        settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    )
    torch.set_num_threads(_encoder_threads(settings)[0])
    if settings.self_check is not None:
        from service.self_check import self_check  # transformers' models, which a server has no other use for

        progress(f"Checking the adapter with {settings.self_check}")
        await asyncio.to_thread(
            self_check, checkpoint, settings.self_check, settings.self_check_agreement, device, progress
        )
    tools = settings.tool_call_parser is not None
    guided = bool(checkpoint.config.transcribe_expecting)
    options = (settings.dtype, settings.vllm)
    plan = await asyncio.to_thread(Plan.make, checkpoint.llm, names[0], *options, tools=tools, guided=guided)
    progress(f"Loading encoder and adapter on {device}")
    embedder = await asyncio.to_thread(checkpoint.load_embedder, plan.dtype, device)
    own = Adapter(checkpoint, embedder)
    adapters = await asyncio.to_thread(_load_adapters, paths, settings, own, progress)
    batch_seconds = settings.max_batch_seconds or BATCH_SECONDS
    most_memory = 1.0
    if device.type == "cuda":
        # Before the engine starts, which looks for free memory then, and takes it.
        progress("Recording the encoder's work on the GPU")
        batch_seconds, most_memory = await asyncio.to_thread(_accelerate, embedder, settings, adapters.values())
    progress("Starting the vLLM engine")
    blsp_format = checkpoint.config.prompt_format == "blsp"
    engine = await asyncio.to_thread(Engine.start, plan, drop_first_space=blsp_format, most_memory=most_memory)
    try:
        detector = await asyncio.to_thread(Detector)
        listener = _listener(settings, embedder, engine, detector, batch_seconds)
        prompts = await asyncio.to_thread(Prompts, checkpoint.prompt_builder(engine.dtype), engine.max_model_len)
        fetcher = Fetcher(
            settings.audio_url_hosts, max_bytes=settings.audio_url_max_bytes, seconds=settings.audio_url_seconds
        )
        models = Models(Shared(settings, engine, prompts, fetcher, detector), names, own, listener)
        if llm_name:
            models.add_llm(llm_name)
        for name, adapter in adapters.items():
            try:
                await models.add_adapter(name, adapter)
            except CheckpointError as error:
                log.error("%s", error)
        watched = None if watch is None else WatchedFolder(watch, models)
        service = Service(models, engine, prompts, listener, detector, watched)
        progress("Warming up with a first request")
        await _warm_up(service)
        # Only now, for the first generation compiles kernels.
        engine.llm.generation_seconds = settings.generation_seconds
        if watched:
            progress(f"Loading the adapters in {watch}")
            await watched.start()
    except BaseException:
        await engine.close()
        raise
    # What was loaded stays. If the collector went through it, every request would wait for half a second.
    gc.collect()
    gc.freeze()
    return service


def _check_distinct(names: Sequence[str]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise OptionError(
                f"Two models would have the name {name!r}; --served-model-name, --adapter and --llm-name give others."
            )


def _load_adapters(
    paths: Mapping[str, str], settings: ModelSettings, first: Adapter, progress: Progress
) -> dict[str, Adapter]:
    """Those of further models that can be loaded; of others the log says why not."""
    adapters: dict[str, Adapter] = {}
    for name, path in paths.items():
        progress(f"Loading adapter {name}")
        try:
            adapters[name] = load_adapter(name, path, settings, [first, *adapters.values()])
        except CheckpointError as error:
            log.error("%s", error)
    return adapters


def _encoder_threads(settings: ModelSettings) -> tuple[int, int]:
    """CPU threads of a batch of the encoder, beside other work and where it has none beside it."""
    cores = len(os.sched_getaffinity(0))
    threads = settings.encoder_threads or max(1, cores // 2)
    return threads, settings.encoder_threads or max(threads, min(cores, THREADS_ALONE))


def _accelerate(embedder: Embedder, settings: ModelSettings, adapters: Iterable[Adapter]) -> tuple[float, float]:
    """Takes what the encoder needs of its GPU; how much audio a batch may have, and what share of the memory is left.

    What is not left has room for the encoders that adapters bring: as much as the settings say, by default for those of `adapters`.
    """
    seconds = embedder.accelerate(
        settings.max_batch_windows, settings.max_batch_seconds or None, settings.max_batch_ms / 1000
    )
    encoders = {adapter.embedder.encoder for adapter in adapters if adapter.load_encoder}
    room = sum(encoder.nbytes for encoder in encoders)
    if settings.encoder_memory_mib is not None:
        room = settings.encoder_memory_mib << 20
    free, total = torch.cuda.mem_get_info(embedder.device)
    return settings.max_batch_seconds or seconds, (free - GPU_MARGIN - room) / total


def _listener(
    settings: ModelSettings, embedder: Embedder, engine: Engine, detector: Detector, batch_seconds: float
) -> Listener:
    """The ears, with the settings' limits; a batch has at most `batch_seconds` of audio."""
    on_gpu = embedder.device.type == "cuda"
    return Listener(
        embedder,
        Decoders(
            max_seconds=settings.max_audio_seconds,
            seconds=settings.decode_seconds,
            memory_bytes=settings.decode_memory_mib << 20,
        ),
        max_windows=settings.max_batch_windows,
        batches_at_a_time=settings.encoder_batches or (1 if on_gpu else 2),
        encoder_threads=_encoder_threads(settings),
        speech=detector.speech,
        answered=lambda: engine.llm.generations,
        context=engine.max_model_len,
        max_batch_seconds=batch_seconds,
        max_uploads=settings.max_uploads,
        encode_seconds=settings.encode_seconds,
        cache_bytes=settings.embedding_cache_mib << 20,
        encoder_bytes=math.inf if settings.encoder_memory_mib is None else settings.encoder_memory_mib << 20,
    )


async def _warm_up(service: Service) -> None:
    """Sends one second of noise all the way through."""
    noise = 0.03 * torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))
    recording = await service.listener.hear(io.BytesIO(as_wav(noise)))
    async for _ in service.models.first.speech.answer(SpeechRequest(max_tokens=2), recording):
        pass
    await service.engine.warm_up_logprobs()
