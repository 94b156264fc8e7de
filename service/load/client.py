"""A load client: sends recordings to a server and notes when each byte left and each token came.

It speaks `POST /v1/speech` and OpenAI's chat completions, so it measures any server that does. It knows nothing about how the server works.
"""

import asyncio
import base64
import io
import json
import random
import statistics
import time
import wave
from asyncio import sleep
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import aiohttp
import numpy as np

Api = Literal["speech", "chat"]
Clock = Callable[[], float]

SAMPLE_RATE = 16_000  # samples per second of the recordings that are sent
PIECE = 1 << 16  # bytes of a body that are handed to the socket at once
WAV_HEAD = 44  # bytes before the samples
REPEATED = 8  # clips, where they repeat


@dataclass(frozen=True)
class Question:
    """What is asked about each recording; the reply has exactly `tokens` tokens."""

    api: Api = "speech"
    model: str | None = None
    instruction: str = "Hi"
    tokens: int = 32
    upload_seconds: float = 0.0
    """How long sending the recording takes, as if it were being spoken; 0: as fast as the network takes it."""
    recording_first: bool = False
    """In a chat message: the recording before the instruction, so that the next question can reuse what the LLM has read."""
    next_turn: str = ""
    """In chat: what is asked in the turn after the recording's, which has been answered."""
    patience: float | None = None
    """Seconds after which the client goes away."""


@dataclass
class Sample:
    """One request: when its first and last byte were sent, when each token came, and its end, in seconds of one clock; its status."""

    first_sent: float = 0.0
    last_sent: float = 0.0
    tokens: list[float] = field(default_factory=list)
    end: float = 0.0
    status: int | None = None
    error: str | None = None

    @property
    def gaps(self) -> list[float]:
        """Seconds between one token and the next."""
        return [later - earlier for earlier, later in pairwise(self.tokens)]

    def measures(self) -> dict[str, float]:
        """What a report shows of a request that succeeded, in seconds."""
        return {
            "ttft": self.tokens[0] - self.first_sent,
            "ttft_after_upload": self.tokens[0] - self.last_sent,
            "longest_gap": max(self.gaps, default=0.0),
            "total": self.end - self.first_sent,
        }


class Load:
    """Asks `question` about recordings at the server `url`; `heard` is told of each sample when it is complete."""

    def __init__(
        self,
        url: str,
        question: Question,
        *,
        api_key: str | None = None,
        heard: Callable[[Sample], None] = lambda sample: None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._url = url.rstrip("/")
        self._question = question
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._heard = heard
        self._clock = clock

    async def closed(self, clips: Iterable[bytes], clients: int, ramp: float = 0.0) -> list[Sample]:
        """As many requests at a time as there are `clients`, each sending the next one when it has its reply.

        They begin one after the other, evenly over `ramp` seconds, so that they need not go in step.
        """
        samples: list[Sample] = []
        waiting = iter(clips)

        async def client(number: int) -> None:
            await sleep(ramp * number / clients)
            for clip in waiting:
                samples.append(await self.ask(session, clip))

        async with self.session() as session, asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(number))
        return samples

    async def open(self, clips: Iterable[bytes], rate: float, seed: int = 0) -> list[Sample]:
        """Requests that come by chance, `rate` a second on average, whether or not the server keeps up."""
        chance = random.Random(seed)
        async with self.session() as session, asyncio.TaskGroup() as group:
            tasks = []
            due = self._clock()
            for clip in clips:
                await sleep(due - self._clock())
                tasks.append(group.create_task(self.ask(session, clip)))
                due += chance.expovariate(rate)
        return [task.result() for task in tasks]

    def session(self) -> aiohttp.ClientSession:
        """Connections without a limit in number; to be used as a context manager."""
        connector = aiohttp.TCPConnector(limit=0)
        return aiohttp.ClientSession(self._url, connector=connector, headers=self._headers)

    async def ask(self, session: aiohttp.ClientSession, clip: bytes, question: Question | None = None) -> Sample:
        """Sends one recording (a wav file) and reads the reply; what goes wrong is the sample's error."""
        question = question or self._question
        sample = Sample()
        path, query, headers, body = _request(question, clip)
        try:
            sending = self._send(body, question.upload_seconds, sample)
            timeout = aiohttp.ClientTimeout(total=question.patience, sock_connect=30)
            async with session.post(path, params=query, headers=headers, data=sending, timeout=timeout) as response:
                sample.status = response.status
                if response.status != 200:
                    raise LoadError(f"HTTP {response.status}: {(await response.text())[:500]}")
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        self._receive(json.loads(line[6:]), sample)
            if not sample.tokens:
                raise LoadError("The reply held no tokens.")
        except TimeoutError:
            sample.error = "The client went away." if question.patience else "The server can't be reached."
        except (LoadError, aiohttp.ClientError, OSError, ValueError) as error:
            sample.error = str(error) or type(error).__name__
        sample.end = self._clock()
        self._heard(sample)
        return sample

    async def _send(self, body: bytes, seconds: float, sample: Sample) -> AsyncIterator[bytes]:
        """The body in pieces, evenly over `seconds`; books when the first and the last of it were sent."""
        sample.first_sent = sample.last_sent = self._clock()
        size = min(PIECE, max(1, round(len(body) / (10 * seconds)))) if seconds else PIECE  # ten pieces a second
        for start in range(0, len(body), size):
            if seconds:
                due = sample.first_sent + seconds * min(start + size, len(body)) / len(body)
                await sleep(due - self._clock())
            yield body[start : start + size]
            sample.last_sent = self._clock()

    def _receive(self, event: dict[str, Any], sample: Sample) -> None:
        if "error" in event:
            raise LoadError(str(event["error"].get("message", event["error"])))
        if event.get("object") == "speech.delta" or any(map(_is_token, event.get("choices", ()))):
            sample.tokens.append(self._clock())


def _is_token(choice: dict[str, Any]) -> bool:
    """Whether a chunk's choice brings a token, be it one without text of its own: not who speaks, nor only why the reply ends."""
    delta = choice["delta"]
    return delta.get("content") is not None and "role" not in delta


class LoadError(Exception):
    """A reply that is not what was asked for."""


def _request(question: Question, clip: bytes) -> tuple[str, dict[str, str], dict[str, str], bytes]:
    """Path, query, headers and body."""
    options: dict[str, Any] = {"max_tokens": question.tokens, "min_tokens": question.tokens, "temperature": 0}
    if question.model:
        options["model"] = question.model
    if question.api == "speech":
        query = {name: str(value) for name, value in options.items()}
        query |= {"instruction": question.instruction, "stream": "true"}
        return "/v1/speech", query, {"Content-Type": "audio/wav", "Content-Length": str(len(clip))}, clip
    audio = {"data": base64.b64encode(clip).decode(), "format": "wav"}
    content = [{"type": "text", "text": question.instruction}, {"type": "input_audio", "input_audio": audio}]
    content = content[::-1] if question.recording_first else content
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if question.next_turn:
        messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": question.next_turn}]
    body = json.dumps(options | {"stream": True, "messages": messages}).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return "/v1/chat/completions", {}, headers, body


async def first_model(url: str, api_key: str | None = None) -> str:
    """The name of the first model that a server lists. Raises aiohttp.ClientError or LoadError where it lists none."""
    async with Load(url, Question(), api_key=api_key).session() as session, session.get("/v1/models") as response:
        response.raise_for_status()
        models = (await response.json())["data"]
    if not models:
        raise LoadError("The server lists no models.")
    return str(models[0]["id"])


def clips(number: int, seconds: float, *, unique: bool = True, seed: int | None = None) -> Iterator[bytes]:
    """Wav files of `seconds` of noise: each different, so that no cache of the server's knows it, or a few that repeat.

    They share most of their samples, so that making them costs the client nothing. Without a `seed` they are others each time.
    """
    seed = random.getrandbits(32) if seed is None else seed
    samples = np.random.default_rng(seed).normal(0, 3000, round(seconds * SAMPLE_RATE)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE)
        wav.writeframes(samples.tobytes())
    noise = file.getvalue()
    for i in range(number):
        mark = np.random.default_rng([seed, i if unique else i % REPEATED]).integers(-3000, 3000, 800).astype("<i2")
        start = mark.tobytes()[: len(noise) - WAV_HEAD]
        yield noise[:WAV_HEAD] + start + noise[WAV_HEAD + len(start) :]


def summarize(samples: list[Sample]) -> dict[str, Any]:
    """Rates per second, errors, and median and 95th percentile of each measure in seconds."""
    good = [sample for sample in samples if sample.error is None]
    errors = [sample.error for sample in samples if sample.error is not None]
    summary: dict[str, Any] = {"requests": len(samples), "errors": len(errors), "first_error": next(iter(errors), None)}
    if not good:
        return summary
    seconds = max(s.end for s in samples) - min(s.first_sent for s in samples)
    summary |= {
        "seconds": seconds,
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": sum(len(s.tokens) for s in good) / seconds,
        "gap": _spread([gap for s in good for gap in s.gaps]),
    }
    measures = [s.measures() for s in good]
    return summary | {name: _spread([m[name] for m in measures]) for name in measures[0]}


def _spread(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {"p50": sum(values), "p95": sum(values)}
    return {"p50": statistics.median(values), "p95": statistics.quantiles(values, n=20, method="inclusive")[-1]}
