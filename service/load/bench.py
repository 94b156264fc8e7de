"""The command `blsp bench`: puts load on a running server and says how it did."""

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict
from rich.table import Table

from service.load.client import Api, Load, LoadError, Question, Sample, clips, first_model, summarize
from service.progress import console, progress_bar

ROWS = {
    "ttft": "first byte sent to first token",
    "ttft_after_upload": "last byte sent to first token",
    "gap": "between two tokens",
    "longest_gap": "longest gap of a request",
    "total": "first byte sent to end",
}


class Bench(BaseSettings):
    """Put load on a running server, this one or another that speaks OpenAI's chat completions, and measure it."""

    model_config = SettingsConfigDict(env_prefix="BLSP_BENCH_", extra="forbid", protected_namespaces=())

    url: CliPositionalArg[str] = Field(description="the server, e.g. http://127.0.0.1:8000")
    api: Api = Field("speech", description="endpoint: speech (/v1/speech) or chat (/v1/chat/completions)")
    model: str | None = Field(None, description="name of the model; default: the first that the server lists")
    api_key: str | None = Field(None, description="sent as a bearer token")
    requests: int = Field(100, ge=1, description="how many to send")
    clients: int = Field(8, ge=1, description="closed loop: how many send one request after the other")
    rate: float | None = Field(None, gt=0, description="open loop instead: requests per second, coming by chance")
    seconds: float = Field(5.0, gt=0, description="length of each recording")
    repeat: bool = Field(
        False, description="send the same few recordings again and again, instead of a new one each time"
    )
    realtime: bool = Field(False, description="send each recording as fast as it would be spoken")
    instruction: str = Field("Hi", description="what to do with each recording")
    tokens: int = Field(32, ge=1, description="length of each reply, exactly")
    seed: int | None = Field(None, description="of the recordings; default: another one each time")
    json_: Path | None = Field(None, alias="json", description="file for the summary and every request's times")

    def cli_cmd(self) -> None:
        """Prints the summary; exits with 1 where a request failed."""
        summary, samples = asyncio.run(self._run())
        console.print(_table(summary))
        if self.json_:
            measured = {"options": self.model_dump(mode="json", exclude={"api_key", "json_"}), "summary": summary}
            self.json_.write_text(json.dumps(measured | {"requests": [asdict(sample) for sample in samples]}))
        if summary["errors"]:
            console.print(
                f"[red]{summary['errors']} of {len(samples)} failed, the first with:[/red] {summary['first_error']}"
            )
            sys.exit(1)

    async def _run(self) -> tuple[dict[str, Any], list[Sample]]:
        try:
            model = self.model or await first_model(self.url, self.api_key)
        except (aiohttp.ClientError, LoadError) as error:
            raise OSError(f"{self.url} is no server that could be measured: {error}") from error
        question = Question(self.api, model, self.instruction, self.tokens, self.seconds if self.realtime else 0.0)
        recordings = clips(self.requests, self.seconds, unique=not self.repeat, seed=self.seed)
        with progress_bar() as bar:
            task = bar.add_task(f"{model}, {self.seconds:g} s recordings", total=self.requests)
            load = Load(self.url, question, api_key=self.api_key, heard=lambda _: bar.advance(task))
            if self.rate:
                samples = await load.open(recordings, self.rate)
            else:
                samples = await load.closed(recordings, self.clients)
        return summarize(samples), samples


def _table(summary: dict[str, Any]) -> Table:
    rates = (f"{summary.get(f'{name}_per_second', 0):.1f} {name}/s" for name in ("requests", "tokens"))
    table = Table("seconds", "median", "95 %", title=", ".join(rates), title_justify="left")
    for name, title in ROWS.items():
        if name in summary:
            table.add_row(title, *(f"{summary[name][key]:.3f}" for key in ("p50", "p95")))
    return table
