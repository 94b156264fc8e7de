"""The command `blsp`."""

import asyncio
import logging
import math
import os
import resource
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, CliSubCommand, SettingsConfigDict
from rich.markup import escape

from models.config import CheckpointError, PaddingPolicy, PromptFormat
from models.manifest import InputError
from service.alignment.commands import Align, Continue, Evaluate, Instruct, Update, WarmStart
from service.errors import ApiError, OptionError
from service.gate.keys import key_line, new_key
from service.load.bench import Bench
from service.progress import console, resumed_progress
from service.settings import DEFAULT_MODEL, ModelSettings, ServeSettings, model_name
from service.telemetry import logs
from service.words import model_first

LINES_FAILED = 3  # exit status of `blsp batch`
OPEN_FILES = 65_536
log = logging.getLogger("service")


def _progress(step: str) -> None:
    console.print(f"[dim]blsp[/dim] {escape(step)} …")


def _allow_open_files() -> None:
    """Each connection and each decoder takes a few; what a shell allows by default is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, OPEN_FILES)), hard))


def _quiet_libraries() -> None:
    """vLLM and transformers report by the page; what they call errors stays."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")


class Serve(ServeSettings):
    """Serve a BLSP model over HTTP."""

    def cli_cmd(self) -> None:
        """Runs until SIGTERM or SIGINT; exits with 1 where the model can't be loaded or its engine dies."""
        from service.http.app import create_app
        from service.http.server import Server
        from service.loading import Service, load

        watch = self.watched_folder()
        in_json = self.log_format == "json"
        progress = log.info if in_json else _progress
        scheme = "https" if self.ssl_certfile else "http"

        async def load_model() -> Service:
            service = await load(self, self.names(), progress, watch)
            ready = f"Ready: {self.names()[0]!r} on {scheme}://{self.host}:{self.port} (docs at /docs)"
            log.info(ready) if in_json else console.print(f"[bold]blsp[/bold] {ready}")
            return service

        def stop() -> None:
            server.should_exit = True

        logs.configure(self.log_format)
        _allow_open_files()
        app = create_app(self, load_model, stop)
        server = Server(app, app.state.drain, self)
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises them again when it has drained; that is a clean end
            signal.signal(number, lambda *_: None)
        server.run()
        if app.state.failure is not None:
            raise app.state.failure


class Key(BaseSettings):
    """Make an API key: its line for the server's key file goes to stdout, the key itself, shown once, to stderr."""

    name: CliPositionalArg[str] = Field(description="whose key it is; the name stands in logs and metrics")

    def cli_cmd(self) -> None:
        """Prints both."""
        key = new_key()
        sys.stdout.write(key_line(self.name, key) + "\n")
        console.print(f"The key of {self.name}, to be kept by whoever asks: {key}", soft_wrap=True)


class Ask(ModelSettings):
    """Ask a model about a recording, in this process; the reply streams to the terminal."""

    audio: CliPositionalArg[Path] = Field(description="the recording")
    instruction: CliPositionalArg[str] = Field("", description="what to do with it")
    model: str = Field(str(DEFAULT_MODEL), description="folder or Hugging Face id of a checkpoint")
    max_tokens: int | None = Field(None, ge=1, description="most tokens to generate")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy")

    def cli_cmd(self) -> None:
        """Prints the reply."""
        asyncio.run(self._ask())

    async def _ask(self) -> None:
        from service.answers.speech import SpeechRequest
        from service.loading import load

        service = await load(self, (model_name(self.model),), _progress)
        try:
            with self.audio.open("rb") as file:
                recording = await service.models.first.listener.hear(file)
            request = SpeechRequest(
                instruction=self.instruction, max_tokens=self.max_tokens, temperature=self.temperature
            )
            async for event in service.models.first.speech.answer(request, recording):
                sys.stdout.write(event.get("delta", "\n"))
                sys.stdout.flush()
        finally:
            await service.close()


class Batch(ModelSettings):
    """Answer a file of requests, in this process; a run that was stopped goes on where it was. Status 3: some lines failed."""

    source: CliPositionalArg[Path] = Field(
        description='JSON lines {"audio": path, "instruction": text}, or an OpenAI batch file; paths are relative to its folder'
    )
    out: CliPositionalArg[Path] = Field(description="file to write, or to complete")
    model: str = Field(str(DEFAULT_MODEL), description="folder or Hugging Face id of a checkpoint")
    instruction: str = Field("", description="for lines that have audio but no instruction")
    max_tokens: int | None = Field(None, ge=1, description="most tokens to generate; OpenAI's form has its own")
    temperature: float = Field(0.0, ge=0, le=2, description="0 is greedy; OpenAI's form has its own")
    concurrency: int = Field(256, ge=1, description="lines in work at the same time")
    max_uploads: int = Field(
        2 * (os.cpu_count() or 1), ge=1, description="recordings that are decoded at the same time; further ones wait"
    )
    encode_seconds: float = Field(math.inf, gt=0, description="how long a line's audio may wait for its embeddings")
    generation_seconds: float = Field(math.inf, gt=0, description="how long one generation may take")

    def cli_cmd(self) -> None:
        """Reports lines that fail as they do, and at last the counts."""
        counts = asyncio.run(self._answer())
        failed = {code: count for code, count in counts.items() if code != "answered"}
        details = ", ".join(f"{count} {code}" for code, count in sorted(failed.items()))
        summary = f"{self.out}: {counts['answered']} answered, {sum(failed.values())} failed"
        console.print(f"{summary} ({details})" if failed else summary, markup=False, soft_wrap=True)
        if failed:
            sys.exit(LINES_FAILED)

    async def _answer(self) -> Counter[str]:
        from service.answers.speech import SpeechRequest
        from service.loading import load
        from service.offline.batch import open_batch
        from service.offline.clerk import Clerk

        with open_batch(self.source, self.out) as batch:
            if len(batch.done) == batch.total:
                return batch.counts
            defaults = SpeechRequest(
                instruction=self.instruction, max_tokens=self.max_tokens, temperature=self.temperature
            )
            service = await load(self, (model_name(self.model),), _progress)
            try:
                clerk = Clerk(service, self.source.parent.absolute(), defaults)
                with resumed_progress("Answering") as show:
                    await batch.run(clerk.answer, concurrency=self.concurrency, progress=show, report=self._report)
            finally:
                await service.close()
        return batch.counts

    def _report(self, line: int, error: dict[str, Any]) -> None:
        console.print(f"{self.source}:{line}: {error['message']}", markup=False, soft_wrap=True)


class Import(BaseSettings):
    """Convert a checkpoint of the official BLSP release to this project's layout."""

    source: CliPositionalArg[Path] = Field(description="folder of the official checkpoint")
    target: CliPositionalArg[Path] = Field(description="folder to write; must not exist")

    def cli_cmd(self) -> None:
        """Converts, one tensor at a time."""
        from models.official import import_official, is_official

        if not is_official(self.source):
            raise CheckpointError(
                f"{self.source}: not an official BLSP checkpoint (config.json with whisper_config and llama_config)"
            )
        if self.target.exists():
            raise CheckpointError(f"{self.target} exists already")
        with console.status("Converting …") as status:
            import_official(self.source, self.target, lambda name: status.update(f"Converting {name}"))
        console.print(f"Wrote {self.target}")


class Init(BaseSettings):
    """Make a checkpoint with random weights, for benchmarks and tests; its replies mean nothing."""

    target: CliPositionalArg[Path] = Field(description="folder to write; must not exist")
    encoder_dim: int = Field(64, gt=0, description="width of the Whisper encoder")
    encoder_layers: int = Field(2, gt=0)
    encoder_heads: int = Field(4, gt=0)
    n_mels: int = Field(80, gt=0, description="mel bands of the features")
    llm_dim: int = Field(64, gt=0, description="width of the Llama")
    llm_layers: int = Field(2, gt=0)
    llm_heads: int = Field(
        2, gt=0, description="attention heads; vLLM on the CPU wants a head size of 32, 64, 80, 96, 112 or 128"
    )
    llm_ffn_dim: int = Field(172, gt=0)
    vocabulary: int = Field(640, ge=260, description="tokens; the first 259 are special tokens and bytes")
    context: int = Field(2048, gt=0, description="longest sequence of the LLM, tokens")
    conv_kernel_sizes: tuple[int, ...] = Field((5, 5, 5), description="widths of the subsampler's convolutions")
    adapter_inner_dim: int = Field(32, gt=0)
    padding: PaddingPolicy = "exact"
    prompt_format: PromptFormat = "blsp"
    seed: int = 0

    def cli_cmd(self) -> None:
        """Writes the checkpoint."""
        from models.random_init import init_checkpoint

        if self.target.exists():
            raise CheckpointError(f"{self.target} exists already")
        init_checkpoint(**self.model_dump())
        console.print(f"Wrote {self.target}")


class Blsp(BaseSettings):
    """BLSP: gives an LLM ears. Serve speech models through vLLM."""

    model_config = SettingsConfigDict(cli_prog_name="blsp", cli_kebab_case=True, cli_implicit_flags=True)

    serve: CliSubCommand[Serve] = Field(description="serve a model over HTTP")
    key: CliSubCommand[Key] = Field(description="make an API key")
    ask: CliSubCommand[Ask] = Field(description="ask a model about a recording, in this process")
    batch: CliSubCommand[Batch] = Field(description="answer a file of requests, in this process")
    import_: CliSubCommand[Import] = Field(alias="import", description="convert an official BLSP checkpoint")
    continue_: CliSubCommand[Continue] = Field(alias="continue", description="let an LLM continue transcripts")
    warm_start: CliSubCommand[WarmStart] = Field(description="begin to train an adapter, without the LLM")
    align: CliSubCommand[Align] = Field(description="train an adapter")
    update: CliSubCommand[Update] = Field(description="write what a training changed as a small file")
    evaluate: CliSubCommand[Evaluate] = Field(description="compare replies to text and to speech")
    instruct: CliSubCommand[Instruct] = Field(description="instruction-tune an LLM")
    bench: CliSubCommand[Bench] = Field(description="put load on a running server and measure it")
    init: CliSubCommand[Init] = Field(description="make a checkpoint with random weights")

    def cli_cmd(self) -> None:
        """Runs the subcommand."""
        _quiet_libraries()
        CliApp.run_subcommand(self)


def _words(words: list[str]) -> list[str]:
    """The command line; that of `serve` with MODEL in front."""
    if words[:1] != ["serve"]:
        return words

    def values_of(name: str) -> int | None:
        from service.engine import values_of

        _quiet_libraries()
        return values_of(name)

    return ["serve", *model_first(words[1:], values_of)]


def main() -> None:
    """Entry point; errors that a user can mend are one line and exit status 1."""
    try:
        CliApp.run(Blsp, cli_args=_words(sys.argv[1:]))
    except (CheckpointError, InputError, OptionError, ApiError, OSError) as error:
        console.print(f"[red]blsp: error:[/red] {escape(str(error))}")
        sys.exit(1)
