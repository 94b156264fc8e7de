"""What happens when parts of the service die."""

import json
import os
import resource
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.processes import descendants
from tests.serving import Server, serve, told_until_closed
from tests.sounds import voice, wav

CLIENTS = 32


def test_sigterm_lets_running_streams_and_talks_finish_and_takes_nothing_new(official: Path, tmp_path: Path) -> None:
    def listen(client: httpx.Client, seed: int) -> list[str]:
        request: dict[str, Any] = {
            "files": {"file": wav(voice(1.0, seed=seed))},
            "data": {"stream": "true", "min_tokens": "400", "max_tokens": "400"},
        }
        with client.stream("POST", "/v1/speech", **request) as response:
            return [line for line in response.iter_lines() if line]

    with (
        serve(official, tmp_path) as server,
        server.client() as client,
        ThreadPoolExecutor(CLIENTS) as threads,
        connect(f"{server.url.replace('http', 'ws', 1)}/v1/realtime") as idle,
        connect(f"{server.url.replace('http', 'ws', 1)}/v1/realtime") as talking,
    ):
        streams = [threads.submit(listen, client, seed) for seed in range(CLIENTS)]
        server.wait_for(lambda: server.metric("blsp_requests_in_flight", endpoint="/v1/speech") == CLIENTS)
        talking.send('{"type": "response.create", "response": {"max_output_tokens": 200}}')
        told = json.loads(talking.recv(timeout=60))
        while told["type"] != "response.output_text.delta":
            told = json.loads(talking.recv(timeout=60))
        server.process.send_signal(signal.SIGTERM)
        for talk, last in ((idle, "session.created"), (talking, "response.done")):
            assert told_until_closed(talk)[-1]["type"] == last
            assert talk.close_code == 1012  # after which clients come again
        received = [stream.result() for stream in streams]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        assert {lines[-1] for lines in received} == {"data: [DONE]"}
        assert min(map(len, received)) > 300
        assert server.process.wait(timeout=60) == 0


# As systemd's Restart=on-failure, with few open files as a shell allows them; what it runs ends with it.
SUPERVISOR = """
ulimit -S -n 256
trap 'kill -KILL $!; exit' TERM
until "$@" & wait $!; do echo "ended with $?" >&2; done
"""


@pytest.fixture(scope="module")
def supervised(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is started again until it ends well, as in the last of the tests."""
    options = ("--drain-seconds", "2", "--max-num-seqs", "5")
    under = ("sh", "-c", SUPERVISOR, "supervisor")
    with serve(official, tmp_path_factory.mktemp("cache"), *options, under=under) as server:
        yield server


def served_by(server: Server) -> int:
    """The process below the supervisor, when it is ready."""
    again = ["--retry", "120", "--retry-delay", "1", "--retry-all-errors"]
    subprocess.run(["curl", "--silent", "--fail", "--output", "/dev/null", *again, f"{server.url}/ready"], check=True)
    supervisor = server.process.pid
    (process,) = descendants(supervisor, "") - descendants(supervisor, "", children=False)
    return process


def ends(process: int) -> bool:
    """Waits until a process has ended that may be anybody's child, a minute at most."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process)
        try:
            return bool(select.select([descriptor], [], [], 60)[0])
        finally:
            os.close(descriptor)
    return True


LONG = {"stream": True, "ignore_eos": True}
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/speech": {"files": {"file": wav(voice(1.0))}, "data": {"stream": "true", "min_tokens": "1900"}},
    "/v1/chat/completions": {"json": LONG | {"messages": [{"role": "user", "content": "Hi"}]}},
    "/v1/completions": {"json": LONG | {"prompt": "Hi", "max_tokens": 1900}},
    "/v1/responses": {"json": LONG | {"input": "Hi"}},
}
WHOLE: dict[str, Any] = {"json": {"prompt": "Hi", "max_tokens": 1900, "ignore_eos": True}}
UPLOAD = b"POST /v1/speech HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\nContent-Length: 1000000\r\n\r\n" + wav(
    voice(1.0)
)


@contextmanager
def every_kind_of_work(server: Server) -> Iterator[Callable[[str], list[str]]]:
    """Streams, two requests without a stream, of which one waits for the engine, and an upload, all of them running.

    Yields what collects their ends, all of which must be errors with a given message; it returns the last lines of each stream.
    """
    url = httpx.URL(server.url)
    with ExitStack() as stack:
        client, threads = stack.enter_context(server.client()), stack.enter_context(ThreadPoolExecutor(2))
        streams = [stack.enter_context(client.stream("POST", path, **STREAMS[path])) for path in STREAMS]
        replies = [response.iter_lines() for response in streams]
        assert all(next(lines).startswith(("data: {", "event: response.created")) for lines in replies)
        whole = [threads.submit(client.post, "/v1/completions", **WHOLE) for _ in range(2)]
        server.wait_for(lambda: server.metric("vllm:num_requests_running") == 5)
        server.wait_for(lambda: server.metric("vllm:num_requests_waiting") == 1)
        upload = stack.enter_context(socket.create_connection((url.host, url.port or 0), timeout=60))
        upload.sendall(UPLOAD)
        server.wait_for(lambda: server.metric("blsp_requests_in_flight", endpoint="/v1/speech") == 2)

        def errors(message: str) -> list[str]:
            texts = ["\n".join(line for line in lines if line and line != "data: [DONE]") for lines in replies]
            last = [text[-400:] for text in texts]
            assert all('"code": "unavailable"' in event and message in event for event in last), last
            for response in (request.result() for request in whole):
                assert response.status_code == 503
                assert message in response.json()["error"]["message"]
            answer = upload.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert message.encode() in answer
            return last

        yield errors


def is_gone(server: Server, path: str) -> bool:
    try:
        return httpx.get(f"{server.url}{path}").status_code == 503
    except httpx.TransportError:
        return True


def test_a_dead_engine_ends_all_requests_and_the_process_which_comes_back(supervised: Server) -> None:
    process = served_by(supervised)
    assert resource.prlimit(process, resource.RLIMIT_NOFILE)[0] > 256
    (engine,) = descendants(process, "VLLM::EngineCor")
    with every_kind_of_work(supervised) as errors:
        os.kill(engine, signal.SIGKILL)
        start = time.monotonic()
        *_, responses = errors("engine has died")
        supervised.wait_for(lambda: is_gone(supervised, "/ready") and is_gone(supervised, "/health"))
        assert time.monotonic() - start < 5
    assert "event: error\n" in responses
    assert ends(process)
    assert served_by(supervised) != process
    log = "".join(supervised.log)
    assert "engine has died" in log
    assert "ended with 1\n" in log


def test_after_kill_9_nothing_is_left_and_it_comes_back(supervised: Server) -> None:
    process = served_by(supervised)
    below = descendants(process, "")
    assert descendants(process, "VLLM::EngineCor")
    os.kill(process, signal.SIGKILL)
    assert all(map(ends, [process, *below]))
    assert served_by(supervised) != process
    assert "ended with 137\n" in "".join(supervised.log)
    with supervised.client() as client:
        assert client.post("/v1/speech", **STREAMS["/v1/speech"] | {"data": {"max_tokens": "2"}}).status_code == 200


def test_what_still_runs_at_the_end_of_the_drain_gets_an_error(supervised: Server) -> None:
    process = served_by(supervised)
    with every_kind_of_work(supervised) as errors:
        os.kill(process, signal.SIGTERM)
        start = time.monotonic()
        errors("shutting down")
    assert ends(process)
    assert time.monotonic() - start < 17  # 2 s, and what deploy/README.md tells operators to add
    assert supervised.process.wait(60) == 0
