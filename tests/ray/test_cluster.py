"""Two replicas, each with an engine of its own, behind Ray's proxy: streams, sockets, caches, a death and an update."""

import base64
import itertools
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from service.settings import model_name
from tests.processes import descendants
from tests.ray import REPLICAS, TOKENS, Cluster, needs_ray, running
from tests.sounds import voice, wav

pytestmark = [needs_ray, pytest.mark.timeout(900)]

WINDOWS = "blsp_embedding_cache_windows_total"


@pytest.fixture(scope="module")
def cluster(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running() as cluster:
        settings = {"dtype": "float32", "vllm": ["--max-num-seqs", "32"]}
        cluster.settings = settings | {"model": str(official), "cache": str(tmp_path_factory.mktemp("cache"))}
        cluster.deploy()
        yield cluster


def recording(seed: int) -> bytes:
    return wav(voice(1.0 + seed % 3, seed))


def form(seed: int, text: str = "What is said?") -> dict[str, Any]:
    data = {"instruction": text, "stream": "true", "max_tokens": str(TOKENS)}
    return {"url": "/v1/speech", "data": data, "files": {"file": ("a.wav", recording(seed))}}


def raw(seed: int) -> dict[str, Any]:
    """A body in pieces, whose length nobody knows."""
    data = recording(seed)
    pieces = (data[begin : begin + 8000] for begin in range(0, len(data), 8000))
    return {"url": "/v1/speech", "params": {"stream": "true", "max_tokens": TOKENS}, "content": pieces}


def chat(seed: int, *more: str) -> dict[str, Any]:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(recording(seed)).decode(), "format": "wav"}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "What is said?"}, part]}]
    for text in more:
        messages += [{"role": "assistant", "content": "Words."}, {"role": "user", "content": text}]
    return {"url": "/v1/chat/completions", "json": {"messages": messages, "stream": True, "max_tokens": TOKENS}}


def text(seed: int, tokens: int = TOKENS) -> dict[str, Any]:
    body = {"prompt": f"Number {seed}", "stream": True, "max_tokens": tokens, "ignore_eos": True}
    return {"url": "/v1/completions", "json": body}


def transcription(seed: int) -> dict[str, Any]:
    return {
        "url": "/v1/audio/transcriptions",
        "data": {"stream": "true"},
        "files": {"file": ("a.wav", recording(seed))},
    }


KINDS = (form, raw, chat, text, transcription)


def outcome(http: httpx.Client, request: dict[str, Any]) -> str:
    """Whether a request was answered, ended by an error within its stream, or refused; anything else is a failure."""
    with http.stream("POST", **request) as reply:
        body = "".join(reply.iter_text())
    if reply.status_code != 200:
        assert reply.status_code in (429, 503), body
        assert json.loads(body)["error"]["message"]
        assert int(reply.headers.get("retry-after", "1")) > 0  # a service whose engine has died does not say when
        return "refused"
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    if events[-1] == "[DONE]":
        return "answered"
    assert json.loads(events[-1])["error"]["code"] == "unavailable", body
    return "ended"


def asked(cluster: Cluster, **request: Any) -> None:
    with cluster.client() as http:
        assert outcome(http, request) == "answered"


def test_there_are_two_replicas_that_are_ready(cluster: Cluster) -> None:
    assert len(cluster.replicas()) == REPLICAS
    assert cluster.metric("blsp_ready") == [1.0] * REPLICAS
    with cluster.client() as http:
        assert http.get("/ready").json() == {"status": "ready"}
        assert http.get("/v1/models").json()["data"][0]["id"] == model_name(cluster.settings["model"])


def test_every_kind_of_stream_comes_in_pieces(cluster: Cluster) -> None:
    with cluster.client() as http:
        for kind in KINDS:
            with http.stream("POST", **kind(100)) as reply:
                assert reply.headers["content-type"].startswith("text/event-stream"), reply.read()
                assert len(list(reply.iter_raw())) > 2, kind.__name__


def test_errors_are_the_services_own(cluster: Cluster) -> None:
    with cluster.client() as http:
        reply = http.post("/v1/speech", content=b"no sound")
        assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert http.post("/v1/completions", json={"model": "none", "prompt": "a"}).status_code == 404
        assert http.get("/nowhere").json()["error"]["code"] == "not_found"


def test_a_second_turn_finds_what_its_replica_has_heard(cluster: Cluster) -> None:
    """No recording is encoded twice, whichever endpoint is asked, and both replicas have their share."""
    seeds = range(200, 216)
    before = [cluster.metric(WINDOWS, result=result) for result in ("miss", "hit")]
    for seed in seeds:
        asked(cluster, **chat(seed))
    for seed in random.sample(seeds, len(seeds)):
        asked(cluster, **chat(seed, "And why?"))
    after = [cluster.metric(WINDOWS, result=result) for result in ("miss", "hit")]
    misses, hits = ([new - old for old, new in zip(*both, strict=True)] for both in zip(before, after, strict=True))
    assert sum(misses) == len(seeds)
    assert hits == misses
    assert min(misses) > 0


def test_a_key_of_the_clients_own_keeps_a_conversation_together(cluster: Cluster) -> None:
    """Recordings that differ, and whose lengths nobody knows."""
    before = cluster.metric(WINDOWS, result="miss")
    for seed in range(300, 308):
        asked(cluster, **raw(seed), headers={"x-session-id": "ours"})
    grown = [new - old for old, new in zip(before, cluster.metric(WINDOWS, result="miss"), strict=True)]
    assert sorted(grown) == [0, 8]


def test_a_busy_replica_does_not_keep_its_own(cluster: Cluster) -> None:
    """All with one key, all at once: more than `busy_requests`, none of which ends before the last has begun."""
    before = cluster.metric("blsp_requests_total", endpoint="/v1/completions", status="200")
    with cluster.client() as http, ThreadPoolExecutor(60) as pool:
        requests = [text(seed, 256) | {"headers": {"x-session-id": "one"}} for seed in range(60)]
        outcomes = list(pool.map(lambda request: outcome(http, request), requests))
    assert outcomes == ["answered"] * 60
    after = cluster.metric("blsp_requests_total", endpoint="/v1/completions", status="200")
    assert min(new - old for old, new in zip(before, after, strict=True)) > 0


@contextmanager
def talking(cluster: Cluster) -> Iterator[ClientConnection]:
    """A socket that a replica has taken."""
    address = f"{cluster.url.replace('http', 'ws', 1)}/v1/realtime?model={model_name(cluster.settings['model'])}"
    with connect(address, open_timeout=60) as socket:
        assert json.loads(socket.recv(timeout=60))["type"] == "session.created"
        yield socket


def test_a_talk(cluster: Cluster) -> None:
    """Over the proxy's socket: text in, text out."""
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]}
    with talking(cluster) as socket:
        socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 8}}))
        told = [json.loads(socket.recv(timeout=60))]
        while told[-1]["type"] != "response.done":
            told.append(json.loads(socket.recv(timeout=60)))
    assert "response.output_text.delta" in {event["type"] for event in told}
    assert told[-1]["response"]["status"] in ("completed", "incomplete")


def test_a_replica_dies_among_two_hundred_streams_and_comes_back(cluster: Cluster) -> None:
    """Every request is answered, ended by an error that says so, or refused; none hangs or breaks off. Sockets are told to come again."""
    begun = threading.Semaphore(0)
    victim = min(cluster.replicas())

    def ask(number: int) -> str:
        begun.release()
        with cluster.client() as http:
            return outcome(http, KINDS[number % len(KINDS)](400 + number % 50))

    with ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        sockets = [stack.enter_context(talking(cluster)) for _ in range(8)]
        results = [pool.submit(ask, number) for number in range(200)]
        for _ in range(80):
            begun.acquire(timeout=120)
        os.kill(victim, signal.SIGKILL)
        outcomes = Counter(result.result(timeout=300) for result in results)
        codes = Counter(code_of(socket) for socket in sockets)
    assert outcomes.total() == 200
    # All but what ran at the replica just then, and few that came before the proxy knew.
    assert outcomes["answered"] >= 200 - 16 - 16
    assert outcomes["answered"] < 200, "nothing ran on the replica that died"
    assert codes.keys() == {None, 1012}, codes
    cluster.wait_for(lambda: cluster.ready() == REPLICAS)
    assert victim not in cluster.replicas()
    assert len(cluster.replicas()) == REPLICAS


@contextmanager
def asking_on(cluster: Cluster, *kinds: Callable[[int], dict[str, Any]]) -> Iterator[Counter[str]]:
    """Asks for streams without a break, one client a kind, until the block is left; how they ended is complete then."""
    enough = threading.Event()
    outcomes: Counter[str] = Counter()

    def ask(kind: Callable[[int], dict[str, Any]]) -> None:
        numbers = itertools.cycle(range(500, 520))
        while not enough.is_set():
            with cluster.client() as http:
                outcomes[outcome(http, kind(next(numbers)))] += 1

    with ThreadPoolExecutor(len(kinds)) as pool:
        asking = [pool.submit(ask, kind) for kind in kinds]
        try:
            yield outcomes
        finally:
            enough.set()
        for thread in asking:
            thread.result()


def code_of(socket: ClientConnection) -> int | None:
    """What a socket was closed with; None where it is open."""
    try:
        socket.recv(timeout=1)
    except TimeoutError:
        return None
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 0
    raise AssertionError("nobody has said anything")


def test_a_replica_whose_engine_dies_is_replaced(cluster: Cluster) -> None:
    victim = min(cluster.replicas())
    (engine,) = descendants(victim, "VLLM::EngineCore")
    os.kill(engine, signal.SIGKILL)
    outcomes: Counter[str] = Counter()
    with cluster.client() as http:
        while victim in cluster.replicas():
            outcomes[outcome(http, text(600))] += 1
    assert outcomes["answered"] > 0  # by the other one
    cluster.wait_for(lambda: cluster.ready() == REPLICAS)


def test_an_update_fails_no_request(cluster: Cluster) -> None:
    """With other settings, every replica is replaced, while streams run all the time."""
    old = cluster.replicas()
    cluster.settings["served_model_name"] = "renewed"
    with asking_on(cluster, form, chat, text, transcription) as outcomes:
        cluster.deploy()
        cluster.wait_for(lambda: not old & cluster.replicas())
    assert set(outcomes) == {"answered"}
    with cluster.client() as http:
        names = {http.get("/v1/models").json()["data"][0]["id"] for _ in range(10)}
    assert names == {"renewed"}


def test_there_are_as_many_replicas_as_the_requests_in_flight_ask_for(cluster: Cluster) -> None:
    scaling = {"min_replicas": 1, "target_ongoing_requests": 2, "upscale_delay_s": 1, "downscale_delay_s": 1}
    cluster.deploy({**scaling, "look_back_period_s": 5, "metrics_interval_s": 1})
    cluster.wait_for(lambda: len(cluster.replicas()) == 1)
    with asking_on(cluster, *2 * (form, chat, text, transcription)) as outcomes:
        cluster.wait_for(lambda: cluster.ready() == REPLICAS)
    assert set(outcomes) == {"answered"}
