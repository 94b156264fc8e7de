"""Every setting of the server, declared once: flag, environment variable `BLSP_…`, config file and help text come from here.

A TOML config file is read where the environment variable BLSP_CONFIG names one.
"""

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    CliUnknownArgs,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

import models
from service.errors import OptionError
from service.gate.admission import Limits

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")  # of an adapter
DEFAULT_MODEL = Path(models.__file__).parent / "smol" / "checkpoint"  # what ships with the project


def default_cache() -> Path:
    """Where converted checkpoints are kept: $XDG_CACHE_HOME/blsp, by default ~/.cache/blsp."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blsp"


def model_name(model: str) -> str:
    """What a checkpoint is called where nobody names it: the last part of its path or id."""
    return "blsp-smol" if Path(model).resolve() == DEFAULT_MODEL.resolve() else Path(model).name


def check_name(name: str) -> None:
    """Raises OptionError for what can't be the name of an adapter in the API."""
    if not NAME.fullmatch(name):
        raise OptionError(f"The name {name!r} is not 1 to 64 letters, digits, '.', '_' or '-'.")


class ModelSettings(BaseSettings):
    """What is loaded, and how."""

    model_config = SettingsConfigDict(env_prefix="BLSP_", extra="forbid", protected_namespaces=())

    model: CliPositionalArg[str] = Field(
        str(DEFAULT_MODEL),
        description="folder or Hugging Face id of a checkpoint, in our layout or the official BLSP one",
    )
    adapter: list[str] = Field(
        [],
        description="a further model on the same engine, NAME=PATH of a checkpoint with the same LLM; may be given several times",
    )
    llm_name: str | None = Field(
        None,
        description="name of the LLM by itself, for text alone; default: the end of its own where there are adapters, else none",
    )
    dtype: Dtype = Field("auto", description="precision of encoder, adapter and LLM; auto: the LLM's own")
    device: str = Field("auto", description="where the encoder runs, e.g. cuda:0; auto: the first GPU, else the CPU")
    encoder_threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads of the encoder; default: half of the cores, and all up to 8 for a recording with nothing beside it",
    )
    max_batch_windows: int = Field(16, ge=1, description="most 30 s windows that are encoded in one batch")
    max_batch_seconds: float = Field(
        0,
        ge=0,
        description="most audio that is encoded in one batch; default: what max_batch_ms allows on a GPU, 10 s without",
    )
    max_batch_ms: float = Field(
        10, gt=0, description="how long a GPU may encode one batch, while tokens wait for it; measured at the start"
    )
    encoder_batches: int | None = Field(
        None, ge=1, description="most batches that are encoded at the same time; default: 1 on a GPU, 2 without"
    )
    embedding_cache_mib: int = Field(256, ge=0, description="memory for embeddings of recordings heard before; 0: none")
    encoder_memory_mib: int | None = Field(
        None,
        ge=0,
        description="memory for encoders that only adapters have; those used least recently leave until they are needed; default: all stay",
    )
    max_audio_seconds: float = Field(
        600.0, gt=0, description="longest audio of a request, all its recordings together, seconds"
    )
    max_uploads: int = Field(
        256,
        ge=1,
        description="recordings that are decoded at the same time; further ones wait, of clients that have none only from twice as many on",
    )
    self_check: Path | None = Field(
        None,
        description='JSON lines {"audio", "text"}: refuse to start where the LLM does not hear in them what it reads',
    )
    self_check_agreement: float = Field(
        0.6, ge=0, le=1, description="share of next tokens that must be the same, heard and read"
    )
    max_grammar_bytes: int = Field(
        32 << 10,
        ge=0,
        description="size of the JSON schemas, patterns, grammars or choices that a reply is held to, which the engine compiles",
    )
    tool_call_parser: str | None = Field(
        None, description="vLLM's parser of the LLM's tool calls, e.g. hermes or llama3_json; default: no tool calls"
    )
    transcribe_instruction: str | None = Field(
        None,
        description="what a transcription asks the model, the speech at its {speech} or behind it; default: the checkpoint's",
    )
    translate_instruction: str | None = Field(
        None, description="what a translation into English asks the model; default: what the checkpoint names"
    )
    decode_seconds: float = Field(
        30.0,
        ge=1,
        description="processor time that decoding a recording may take, and how long its decoder may be silent",
    )
    decode_memory_mib: int = Field(256, ge=16, description="memory that decoding a recording may take")
    encode_seconds: float = Field(
        120.0,
        gt=0,
        description="how long a recording may wait for a decoder, and for its embeddings once it is decoded",
    )
    generation_seconds: float = Field(600.0, gt=0, description="how long one generation may take")
    audio_url_hosts: list[str] = Field(
        [], description="hosts (HOST or HOST:PORT) from which http(s) audio_url parts may be fetched; default: none"
    )
    audio_url_max_bytes: int = Field(64 << 20, ge=1, description="largest file that is fetched")
    audio_url_seconds: float = Field(20.0, gt=0, description="how long a fetch may take")
    cache: Path = Field(default_factory=default_cache, description="folder for converted official checkpoints")
    vllm: CliUnknownArgs = Field([], description="further options are vLLM's engine options, e.g. --max-model-len 4096")

    def adapters(self) -> dict[str, str]:
        """The paths of further models by their names; raises OptionError for what is no NAME=PATH, or a name that is given twice."""
        found: dict[str, str] = {}
        for given in self.adapter:
            name, _, path = given.partition("=")
            check_name(name)
            if not path or name in found:
                raise OptionError(f"--adapter {given!r}: it is NAME=PATH, each name once.")
            found[name] = path
        return found

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags come before the environment, the environment before the config file."""
        toml = TomlConfigSettingsSource(settings_cls, os.environ.get("BLSP_CONFIG"))
        return init_settings, env_settings, toml


class ServeSettings(ModelSettings):
    """Serve a BLSP model over HTTP."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all interfaces")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    served_model_name: str | None = Field(
        None,
        description="name of the model in the API, or several with commas between: answers carry the first; default: the end of MODEL",
    )
    page: bool = Field(True, description="show a page at / from which a browser can record and ask")
    root_path: str = Field("", description="path below which a proxy offers the service, e.g. /speech")
    max_upload_bytes: int = Field(64 << 20, ge=1, description="largest request body, bytes")
    max_requests: int = Field(256, ge=0, description="requests that are answered at the same time; 0: no limit")
    max_body_bytes: int = Field(
        1 << 30, ge=0, description="bytes of all requests' bodies together that are held at the same time; 0: no limit"
    )
    max_queued_audio_seconds: float = Field(
        3600.0, ge=0, description="no request gets in while more audio waits for the encoder; 0: no limit"
    )
    max_queued_prompt_tokens: int = Field(
        262_144, ge=0, description="no request gets in while more tokens wait for the LLM; 0: no limit"
    )
    client_max_requests: int = Field(0, ge=0, description="requests of one client at the same time; 0: no limit")
    client_requests_per_minute: int = Field(0, ge=0, description="requests of one client in a minute; 0: no limit")
    max_sessions: int = Field(64, ge=0, description="sockets on which somebody talks at the same time; 0: no limit")
    session_seconds: float = Field(3600.0, gt=0, description="how long one may talk on a socket")
    session_idle_seconds: float = Field(600.0, gt=0, description="how long a socket may be open on which nothing comes")
    max_connections: int = Field(
        1024, ge=0, description="connections of clients at the same time, idle ones included; 0: no limit"
    )
    head_seconds: float = Field(20.0, gt=0, description="how long a request's head may take to arrive")
    send_seconds: float = Field(
        30.0,
        ge=0.001,
        le=86400,
        description="how long a client may take nothing of its answer; its connection then ends",
    )
    upload_seconds: float = Field(300.0, gt=0, description="how long a request's body may take to arrive")
    request_seconds: float = Field(1200.0, gt=0, description="how long a request may take in all")
    drain_seconds: float = Field(
        30.0,
        ge=0,
        description="how long running requests may go on after SIGTERM; those that still run end with an error",
    )
    keys_file: Path | None = Field(
        None, description="file with the API keys, lines that `blsp key NAME` prints; read again when it changes"
    )
    keys: str = Field("", description="API keys: the same lines, separated by commas; with neither, nobody needs a key")
    adapter_folder: Path | None = Field(
        None,
        description="folder below which POST /v1/adapters may load adapters; by default the endpoint does not exist",
    )
    watch_adapters: bool = Field(
        False, description="every folder in the adapter folder is a model while it is there, by the folder's name"
    )
    admins: list[str] = Field([], description="names of the keys with which adapters may be loaded and unloaded")
    open_endpoints: list[str] = Field(
        ["/health", "/ready", "/metrics"], description="paths that need no key where there are keys"
    )
    trusted_proxies: list[str] = Field(
        [],
        description="addresses or networks of proxies whose X-Forwarded-For says who asks, e.g. 10.0.0.0/8; by default nobody's does",
    )
    cors_origins: list[str] = Field(
        [],
        description="origins whose pages may call the service from a browser, e.g. https://example.org; by default none",
    )
    ssl_certfile: Path | None = Field(None, description="certificate chain (PEM); the service then speaks https")
    ssl_keyfile: Path | None = Field(None, description="the certificate's private key (PEM)")
    log_format: Literal["text", "json"] = Field("text", description="the form of the log on stderr")

    def names(self) -> tuple[str, ...]:
        """The model's names in the API; replies carry the first."""
        given = tuple(name.strip() for name in (self.served_model_name or "").split(",") if name.strip())
        return given or (model_name(self.model),)

    def watched_folder(self) -> Path | None:
        """The folder whose folders are models; raises OptionError where it is to be watched, and there is none."""
        if not self.watch_adapters:
            return None
        if self.adapter_folder is None or not self.adapter_folder.is_dir():
            raise OptionError("--watch-adapters watches the folder that --adapter-folder names; there is none.")
        return self.adapter_folder

    def admission(self) -> Limits:
        """What the service takes on at most."""
        return Limits(
            self.max_requests,
            self.max_body_bytes,
            self.max_queued_audio_seconds,
            self.max_queued_prompt_tokens,
            self.client_max_requests,
            self.client_requests_per_minute,
        )

    def session_admission(self) -> Limits:
        """How many sockets the service talks on at most; of one client as many as it may have requests."""
        return Limits(self.max_sessions, 0, 0, 0, self.client_max_requests, 0)
