"""The commands that make and measure an adapter: `blsp continue`, `align`, `evaluate`, `instruct`."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, CliUnknownArgs, SettingsConfigDict
from rich.console import Console
from rich.table import Table

from models.config import PromptFormat
from models.prompt import CONTINUE
from service.progress import console, progress_bar, resumed_progress
from service.settings import Dtype, default_cache

if TYPE_CHECKING:
    from models.evaluation.local import LocalModel
    from service.alignment.continuation import Writer

CACHE = Field(default_factory=default_cache, description="folder for converted official checkpoints")
HUGGING_FACE: Any = Field(
    [],
    description="further options, behind the folders, are Hugging Face's TrainingArguments, e.g. --learning_rate 1e-4",
)


class Continue(BaseSettings):
    """Let an LLM continue the transcripts of a manifest; a run that was killed goes on where it was."""

    model_config = SettingsConfigDict(env_prefix="BLSP_", extra="forbid", protected_namespaces=())

    manifest: CliPositionalArg[Path] = Field(
        description='JSON lines {"audio": path, "text": transcript}; a path may end in :start:frames'
    )
    out: CliPositionalArg[Path] = Field(description="file to write, or to complete")
    model: str = Field(description="folder or Hugging Face id of an LLM, or of a BLSP checkpoint whose LLM is meant")
    instruction: str = Field(CONTINUE, description="what the LLM is told")
    prompt_format: PromptFormat | None = Field(
        None, description="default: the checkpoint's; of an LLM, its chat template"
    )
    max_tokens: int = Field(64, ge=1, description="longest continuation, tokens")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = None
    shard: str = Field("0/1", description="i/n: every n-th line from line i on, into an output of its own")
    min_seconds: float = Field(0.1, ge=0, description="shorter audio is dropped")
    max_seconds: float = Field(30.0, gt=0, description="longer audio is dropped")
    max_prompt_tokens: int = Field(192, ge=1, description="lines with longer prompts are dropped")
    dtype: Dtype = Field("auto", description="precision of the LLM; auto: its own")
    cache: Path = CACHE
    vllm: CliUnknownArgs = Field([], description="further options are vLLM's engine options")

    def cli_cmd(self) -> None:
        """Writes the continuations and reports what was dropped."""
        counts = asyncio.run(self._write())
        table = Table("lines", "")
        for outcome, count in counts.most_common():
            table.add_row(str(count), outcome if outcome == "continued" else f"dropped: {outcome}")
        console.print(table)

    async def _write(self) -> Counter[str]:
        from service.alignment.continuation import Shard, write_continuations

        shard = Shard.parse(self.shard)
        with resumed_progress("Continuing") as show:
            asked = (self.manifest, self.out, self.instruction)
            return await write_continuations(*asked, self._writer, shard=shard, progress=show)

    @asynccontextmanager
    async def _writer(self) -> AsyncGenerator["Writer"]:
        """With an engine of its own."""
        from models.training.llm import open_llm
        from service.alignment.continuation import Limits, Writer
        from service.audio.recordings import read_samples
        from service.engine import Engine, Plan, Sampling

        llm, prompts = open_llm(self.model, self.cache, self.prompt_format)
        drop_first_space = prompts.prompt_format == "blsp"
        plan = await asyncio.to_thread(Plan.make, llm, llm.name, self.dtype, self.vllm)
        engine = await asyncio.to_thread(Engine.start, plan, drop_first_space=drop_first_space)
        sampling = Sampling(self.max_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        limits = Limits(self.min_seconds, self.max_seconds, self.max_prompt_tokens)
        try:
            yield Writer(engine.stream, sampling, prompts, read_samples, self.instruction, limits)
        finally:
            await engine.close()


class Align(BaseSettings):
    """Train the adapter of a checkpoint on continuations; a run that was killed goes on from its last checkpoint."""

    model_config = SettingsConfigDict(env_prefix="BLSP_", extra="forbid", protected_namespaces=())

    checkpoint: CliPositionalArg[str] = Field(
        description="checkpoint with encoder and LLM; without adapter.safetensors a new adapter is trained"
    )
    data: CliPositionalArg[Path] = Field(description="what `blsp continue` wrote: a file, or a folder of *.jsonl")
    out: CliPositionalArg[Path] = Field(description="folder for the trained checkpoint, logs and plot")
    loss: Literal["ce", "kl"] = Field(
        "ce", description="ce: cross-entropy of the continuation; kl: divergence from the LLM that reads the transcript"
    )
    instruction: str = Field(CONTINUE, description="what stands before the speech, of lines that don't say it")
    states: Path | None = Field(
        None,
        description="folder where the encoder's states of all recordings are kept (180 MB an hour), so that no step encodes",
    )
    cache: Path = CACHE
    trainer: CliUnknownArgs = HUGGING_FACE

    def cli_cmd(self) -> None:
        """Trains."""
        from models.checkpoint import open_checkpoint
        from models.features import SAMPLE_RATE
        from models.manifest import read_examples
        from models.training.align import align
        from models.training.arguments import ALIGN, training_arguments
        from service.audio.recordings import read_samples

        args = training_arguments(self.out, self.trainer, ALIGN)
        examples, passed_over = read_examples(self.data)
        if args.should_log:
            hours = sum(example.samples for example in examples) / SAMPLE_RATE / 3600
            step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            console.print(f"{len(examples)} examples, {hours:.2f} hours of speech; {step} examples a step")
            for reason, count in passed_over.most_common():
                console.print(f"lines passed over: {count} ({reason})")
        checkpoint = open_checkpoint(self.checkpoint, self.cache)
        with resumed_progress("Encoding") if self.states else nullcontext() as show:
            align(
                checkpoint,
                examples,
                read_samples,
                args,
                objective=self.loss,
                instruction=self.instruction,
                states=self.states,
                progress=show or (lambda done, total: None),
            )
        if args.should_log:
            console.print(f"Wrote {self.out}")


class WarmStart(BaseSettings):
    """Give an adapter its first steps without the LLM, by CTC against its token embeddings; a run that was killed goes on."""

    model_config = SettingsConfigDict(env_prefix="BLSP_", extra="forbid", protected_namespaces=())

    checkpoint: CliPositionalArg[str] = Field(
        description="checkpoint with encoder and LLM; without adapter.safetensors a new adapter is trained"
    )
    manifest: CliPositionalArg[Path] = Field(
        description='JSON lines {"audio": path:start:frames, "text": transcript}: a file, or a folder of *.jsonl'
    )
    out: CliPositionalArg[Path] = Field(description="folder for the checkpoint, which `blsp align` takes next")
    states: Path | None = Field(
        None, description="folder where the encoder's states are kept (180 MB an hour); default: in memory"
    )
    negatives: int | None = Field(
        None, ge=1, description="other tokens that a step scores beside its own; 2500 is right on CPUs; default: all"
    )
    masking: float = Field(0.1, ge=0, le=1, description="share of the states' channels that a step hides, at most")
    rank: int = Field(
        0, ge=0, description="train changes of this rank, which `blsp update` puts in a small file; 0: all weights"
    )
    cache: Path = CACHE
    trainer: CliUnknownArgs = HUGGING_FACE

    def cli_cmd(self) -> None:
        """Trains."""
        from models.checkpoint import open_checkpoint
        from models.manifest import read_transcripts
        from models.training.arguments import WARM_START, training_arguments
        from models.training.trainer import run
        from models.training.warm_start import prepare
        from service.audio.recordings import read_samples

        args = training_arguments(self.out, self.trainer, WARM_START)
        with resumed_progress("Encoding") as show:
            trainer = prepare(
                open_checkpoint(self.checkpoint, self.cache),
                read_transcripts(self.manifest, read_samples),
                read_samples,
                args,
                states=self.states,
                negatives=self.negatives,
                masking=self.masking,
                rank=self.rank,
                progress=show,
            )
        run(trainer)
        console.print(f"Wrote {self.out}")


class Update(BaseSettings):
    """Write what a training has changed of a checkpoint's adapter as an update: a small file that lies beside that adapter."""

    model_config = SettingsConfigDict(env_prefix="BLSP_", extra="forbid", protected_namespaces=())

    checkpoint: CliPositionalArg[Path] = Field(description="folder whose adapter.safetensors the update is for")
    trained: CliPositionalArg[Path] = Field(description="folder of what was trained from it")
    out: CliPositionalArg[Path] = Field(description="file to write; it counts as update.safetensors in CHECKPOINT")
    rank: int = Field(32, ge=1, description="of the changes of matrices; `blsp warm-start --rank` trains such changes")

    def cli_cmd(self) -> None:
        """Writes the file."""
        from models.updates import write_update

        write_update(self.checkpoint, self.trained, self.out, self.rank)
        console.print(f"Wrote {self.out}, {self.out.stat().st_size / 1e6:.2f} MB")


class Evaluate(BaseSettings):
    """Ask a model the same questions in writing and in speech, and compare."""

    model_config = SettingsConfigDict(env_prefix="BLSP_", extra="forbid", protected_namespaces=())

    model: CliPositionalArg[str] = Field(description="checkpoint, or the URL of a server: http://127.0.0.1:8000")
    manifest: CliPositionalArg[Path] = Field(
        description='JSON lines {"audio", "text", "instruction", "reference", "task": "wer", "bleu", "exact" or "accuracy"}'
    )
    out: CliPositionalArg[Path] = Field(Path("evaluation"), description="folder for evaluation.json and evaluation.png")
    max_tokens: int = Field(128, ge=1, description="longest reply, tokens")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="precision of a local checkpoint")
    device: str = Field("cpu", description="where a local checkpoint runs, e.g. cuda")
    timeout: float = Field(120.0, gt=0, description="seconds that a server may take for a reply")
    api_key: str | None = Field(None, description="sent to a server as a bearer token")
    cache: Path = CACHE

    def cli_cmd(self) -> None:
        """Prints the table and writes the rest."""
        import httpx

        from models.evaluation.scores import Question
        from models.manifest import read_manifest
        from service.alignment import evaluation
        from service.audio.recordings import read_samples

        questions = read_manifest(self.manifest, Question)
        url = self.model if "://" in self.model else ""
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=self.timeout) as client:
            model = evaluation.ServedModel(client, read_samples) if url else self._local()
            with progress_bar() as bar:
                task = bar.add_task("Asking", total=evaluation.work(questions, model))
                base = self.manifest.parent.absolute()
                result = evaluation.evaluate(
                    self.model, model, questions, base, self.max_tokens, lambda n: bar.advance(task, n)
                )
        evaluation.write_results(result, self.out)
        Console().print(evaluation.table(result))

    def _local(self) -> "LocalModel":
        import torch

        from models.checkpoint import open_checkpoint
        from models.evaluation.local import LocalModel
        from service.audio.recordings import read_samples

        checkpoint = open_checkpoint(self.model, self.cache)
        return LocalModel(checkpoint, read_samples, getattr(torch, self.dtype), self.device)


class Instruct(BaseSettings):
    """Instruction-tune an LLM on a file in Alpaca's form, the paper's first stage; a killed run goes on."""

    model_config = SettingsConfigDict(env_prefix="BLSP_", extra="forbid", protected_namespaces=())

    model: CliPositionalArg[str] = Field(description="folder or Hugging Face id of an LLM")
    data: CliPositionalArg[Path] = Field(description='JSON list or lines of {"instruction", "input", "output"}')
    out: CliPositionalArg[Path] = Field(description="folder for the tuned LLM, logs and plot")
    lora_rank: int = Field(
        0, ge=0, description="train a LoRA of this rank, a checkpoint's llm_lora; 0: all weights, as published"
    )
    prompt_format: PromptFormat | None = Field(None, description="default: the LLM's chat template, if it has one")
    cache: Path = CACHE
    trainer: CliUnknownArgs = HUGGING_FACE

    def cli_cmd(self) -> None:
        """Trains."""
        from models.training.arguments import INSTRUCT, training_arguments
        from models.training.instruct import MAX_TOKENS, instruct, read_alpaca, with_room
        from models.training.llm import open_llm

        args = training_arguments(self.out, self.trainer, INSTRUCT)
        lessons = read_alpaca(self.data)
        llm, prompts = open_llm(self.model, self.cache, self.prompt_format)
        fitting = with_room(lessons, prompts)
        if args.should_log and (too_long := len(lessons) - len(fitting)):
            console.print(f"lessons passed over: {too_long} (no room for an answer in {MAX_TOKENS} tokens)")
        instruct(llm, prompts, fitting, args, self.lora_rank)
        if args.should_log:
            console.print(f"Wrote {self.out}")
