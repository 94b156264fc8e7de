"""What happens when parts of the service die."""

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving import serve
from tests.sounds import voice, wav


def engine_core(server: int) -> int:
    """The process id of the vLLM engine below a server's process."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    family = {str(server)}
    for _ in rows:  # a child may stand before its parent
        family |= {pid for pid, parent, _ in rows if parent in family}
    return next(int(pid) for pid, _, name in rows if pid in family and name.startswith("VLLM::EngineCor"))


LONG = {"stream": True, "ignore_eos": True}
STREAMS: dict[str, dict[str, Any]] = {
    "/v1/speech": {"files": {"file": wav(voice(1.0))}, "data": {"stream": "true", "min_tokens": "1900"}},
    "/v1/chat/completions": {"json": LONG | {"messages": [{"role": "user", "content": "Hi"}]}},
    "/v1/completions": {"json": LONG | {"prompt": "Hi", "max_tokens": 1900}},
    "/v1/responses": {"json": LONG | {"input": "Hi"}},
}


def test_a_dead_engine_ends_the_running_streams_and_the_process(official: Path, tmp_path: Path) -> None:
    with serve(official, tmp_path) as server, server.client() as client:
        with ExitStack() as stack:
            streams = [stack.enter_context(client.stream("POST", path, **STREAMS[path])) for path in STREAMS]
            replies = [response.iter_lines() for response in streams]
            assert all(next(lines).startswith(("data: {", "event: response.created")) for lines in replies)
            os.kill(engine_core(server.process.pid), signal.SIGKILL)
            events = [[line for line in lines if line and line != "data: [DONE]"] for lines in replies]
        assert all('"code": "unavailable"' in lines[-1] for lines in events), [lines[-1] for lines in events]
        assert events[-1][-2] == "event: error"
        assert server.process.wait(timeout=60) == 1
        with pytest.raises(httpx.ConnectError):
            client.get("/health")
    assert "engine has died" in "".join(server.log)


CLIENTS = 32


def test_sigterm_lets_running_streams_finish_and_takes_nothing_new(official: Path, tmp_path: Path) -> None:
    def listen(client: httpx.Client, seed: int) -> list[str]:
        request: dict[str, Any] = {
            "files": {"file": wav(voice(1.0, seed=seed))},
            "data": {"stream": "true", "min_tokens": "400", "max_tokens": "400"},
        }
        with client.stream("POST", "/v1/speech", **request) as response:
            return [line for line in response.iter_lines() if line]

    with serve(official, tmp_path) as server, server.client() as client, ThreadPoolExecutor(CLIENTS) as threads:
        streams = [threads.submit(listen, client, seed) for seed in range(CLIENTS)]
        server.wait_for(lambda: server.metric("blsp_requests_in_flight", endpoint="/v1/speech") == CLIENTS)
        server.process.send_signal(signal.SIGTERM)
        received = [stream.result() for stream in streams]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
        assert {lines[-1] for lines in received} == {"data: [DONE]"}
        assert min(map(len, received)) > 300
        assert server.process.wait(timeout=60) == 0
