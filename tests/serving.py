"""A real server for the end-to-end tests: `blsp serve` as its own process, with its own vLLM engine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from service.settings import model_name

BLSP = Path(sys.executable).with_name("blsp")
SHARED = Path(__file__).parents[2] / "shared"


@dataclass
class Server:
    """A running server; `log` grows while it runs."""

    url: str
    model: str
    checkpoint: Path
    cache: Path
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples on /metrics that have these labels; 0 where there is none yet."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(float(sample.value) for sample in samples if labels.items() <= sample.labels.items())

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Asks the server again and again until something has come about that it does by itself, a minute at most."""
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "it has not come about"


def told_until_closed(socket: ClientConnection, says: str = "") -> list[dict[str, Any]]:
    """The rest of what a socket tells its client, who says something whenever it is told something."""
    told = []
    with suppress(ConnectionClosed):
        while True:
            told.append(json.loads(socket.recv(timeout=60)))
            if says:
                with suppress(ConnectionClosed):  # there may still be something to hear
                    socket.send(says)
    return told


@contextmanager
def serve(
    checkpoint: Path,
    cache: Path,
    *options: str,
    env: Mapping[str, str] = MappingProxyType({}),
    under: Sequence[str] = (),
) -> Iterator[Server]:
    """Starts a server on a free port, `under` a command that runs its own arguments, and waits until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [*under, BLSP, "serve", checkpoint, "--port", str(port), "--dtype", "float32", "--cache", cache, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200", **env},
    )
    scheme = "https" if "--ssl-certfile" in options else "http"
    server = Server(f"{scheme}://127.0.0.1:{port}", model_name(str(checkpoint)), checkpoint, cache, process)
    assert process.stderr is not None
    for line in process.stderr:
        server.log.append(line)
        if "Ready" in line:
            break
    else:
        raise AssertionError(f"the server ended with {process.wait()}:\n{''.join(server.log)}")
    drain = threading.Thread(target=server.log.extend, args=(process.stderr,))
    drain.start()
    try:
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        drain.join(timeout=10)
        process.stderr.close()
