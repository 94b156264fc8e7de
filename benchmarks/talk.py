"""How soon an answer begins when somebody has spoken: on a socket, and where the recording is posted afterwards."""

import asyncio
import base64
import json
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import aiohttp
import numpy as np
import torch

from models.features import SAMPLE_RATE
from service.audio.decode import decode
from service.audio.raw import Samples, encode
from service.audio.recordings import as_wav
from service.load.client import Load, Question
from service.settings import DEFAULT_MODEL

SECONDS = (3, 10, 30)
EVENT_SECONDS = 0.1
SILENCE_MS = 500  # after which the server takes a turn for ended
AUDIBLE = 0.02  # of full scale: what is quieter before and behind a recording is cut off
RATE = 24000
TOKENS = 8
LAST = {
    "id": "last",
    "type": "message",
    "role": "system",
    "content": [{"type": "input_text", "text": "."}],
}  # said behind all
ROUNDS = 2  # utterances of each length, of one person; of many, one each
SPREAD = 3.0  # seconds over which the sessions begin
QUIET_SECONDS = 0.3  # at the end of an utterance: who has finished lets go of the button a moment after the last word
ANSWER_SECONDS = 60  # within which an answer must begin


def speech(seconds: float, seed: int) -> Samples:
    """People's recordings one behind the other, from a random place on, quiet at the end.

    Noise that nobody hears is added: no two are the same.
    """
    files = sorted((DEFAULT_MODEL.parent / "samples").glob("*.flac"))
    rng = np.random.default_rng(seed)
    parts: list[Samples] = []
    while sum(map(len, parts)) < (seconds + 1) * SAMPLE_RATE:
        with files[rng.integers(len(files))].open("rb") as file:
            samples = np.concatenate(list(decode(file, max_seconds=60)))
            audible = np.flatnonzero(np.abs(samples) > AUDIBLE)
            parts.append(samples[audible[0] : audible[-1]])
    n_samples = round(seconds * SAMPLE_RATE)
    begin = rng.integers(SAMPLE_RATE // 2)
    said = np.concatenate(parts)[begin : begin + n_samples]
    said[-round(QUIET_SECONDS * SAMPLE_RATE) :] = 0
    return (said + 1e-4 * rng.normal(size=n_samples)).astype(np.float32)


def cut_off(said: Samples) -> Samples:
    """Without the quiet at its end: it ends in the middle of a word."""
    return said[: -round(QUIET_SECONDS * SAMPLE_RATE)]


async def talked(url: str, said: Samples, told_by_server: bool) -> float:
    """Says it at the pace of speech; seconds from the end of the turn, which the client or the server tells, to the first text."""
    quiet = np.zeros(SAMPLE_RATE if told_by_server else 0, np.float32)
    detection = {"type": "server_vad", "silence_duration_ms": SILENCE_MS} if told_by_server else None
    session = {"max_output_tokens": TOKENS, "audio": {"input": {"turn_detection": detection}}}
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/v1/realtime") as socket:
        await socket.send_json({"type": "session.update", "session": session})
        answered = asyncio.create_task(_answered(socket))
        await say(socket, np.concatenate([said, quiet]))
        ended = perf_counter()
        if not told_by_server:
            await socket.send_json({"type": "input_audio_buffer.commit"})
            await socket.send_json({"type": "response.create"})
        await socket.send_json({"type": "conversation.item.create", "item": LAST})
        stopped, first = await answered
        return first - (stopped if told_by_server else ended)


async def say(socket: aiohttp.ClientWebSocketResponse, said: Samples) -> None:
    """Sends it at the pace of speech."""
    data, size, began = encode(said, "pcm_s16le", RATE), round(2 * RATE * EVENT_SECONDS), perf_counter()
    for number, begin in enumerate(range(0, len(data), size), 1):
        await asyncio.sleep(began + number * EVENT_SECONDS - perf_counter())
        audio = base64.b64encode(data[begin : begin + size]).decode()
        await socket.send_json({"type": "input_audio_buffer.append", "audio": audio})


async def _answered(socket: aiohttp.ClientWebSocketResponse) -> tuple[float, float]:
    """When the server told the end of the last turn, and when its answer began: a speaker may have paused for as long as an end before."""
    stopped = first = 0.0
    is_last = False
    async for message in socket:
        event, now = json.loads(message.data), perf_counter()
        match event["type"]:
            case "input_audio_buffer.speech_stopped":
                stopped, first = now, 0.0
            case "response.output_text.delta":
                first = first or now
            case "response.done" if event["response"]["status"] != "cancelled":
                first = first or now  # random weights may say nothing
            case "conversation.item.done":
                is_last = is_last or event["item"]["id"] == LAST["id"]
        if is_last and first:
            return stopped, first
        if event["type"] == "error":
            raise RuntimeError(f"no answer: {event}")
    raise RuntimeError("the socket was closed")


async def posted(url: str, said: Samples, api: Any) -> float:
    """Posts it when it has been said; seconds to the first token."""
    await asyncio.sleep(len(said) / SAMPLE_RATE)
    load = Load(url, Question(api, tokens=TOKENS))
    async with load.session() as session:
        sample = await load.ask(session, as_wav(torch.from_numpy(said)))
    if sample.error:
        raise RuntimeError(sample.error)
    return sample.tokens[0] - sample.first_sent


async def sessions(number: int, seconds: int, seed: int, answer: Callable[[Samples], Awaitable[float]]) -> list[float]:
    """So many people, who begin one after the other: how long each waits."""

    async def one(i: int) -> float:
        said = await asyncio.to_thread(speech, seconds, seed + i)
        await asyncio.sleep(i * SPREAD / number)
        async with asyncio.timeout(seconds + ANSWER_SECONDS):
            return await answer(said)

    return await asyncio.gather(*map(one, range(number)))


def waits(number: int, seed: int, answer: Callable[[Samples], Awaitable[float]]) -> dict[str, float]:
    """The median of what so many people wait, by the length of what they say."""
    found = {}
    for seconds in SECONDS:
        rounds = [
            asyncio.run(sessions(number, seconds, seed + 100 * i + seconds, answer))
            for i in range(max(1, ROUNDS // number))
        ]
        found[str(seconds)] = statistics.median(wait for waited in rounds for wait in waited)
    return found
