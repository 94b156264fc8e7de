"""The processes that are measured: servers, and workers that answer lines on standard output."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.small import BUILD, CONTEXT, OURS, PEER

ROOT = Path(__file__).parents[1]
_SCRIPTS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
BLSP = shutil.which("blsp", path=_SCRIPTS) or "blsp"
START_SECONDS = 240
GENERATION = {"cpu family": "family", "model": "model"}  # of /proc/cpuinfo


@dataclass
class Process:
    """A running process and its children."""

    popen: "subprocess.Popen[str]"
    started: float = field(default_factory=time.perf_counter)

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        parent = psutil.Process(self.popen.pid)
        return [parent, *parent.children(recursive=True)]

    def resident_mib(self) -> dict[str, int]:
        """Resident memory by process name, of those that hold more than 100 MiB."""
        sizes = [(p.name(), p.memory_info().rss >> 20) for p in self.family()]
        return {name: size for name, size in sizes if size > 100}

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time used so far by process name."""
        used: dict[str, float] = {}
        for process in self.family():
            with suppress(psutil.NoSuchProcess):  # a decoder that has just ended
                times, name = process.cpu_times(), process.name()
                used[name] = used.get(name, 0.0) + times.user + times.system
        return used


@dataclass
class Server(Process):
    """A server that is ready."""

    url: str = ""
    ready_after: float = 0.0


@dataclass
class Worker(Process):
    """A process that answers JSON lines with JSON lines."""

    def ask(self, **question: Any) -> Any:
        """Sends one question; returns the answer."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(json.dumps(question) + "\n")
        self.popen.stdin.flush()
        for answer in self.popen.stdout:
            if answer.startswith("{"):  # else a library has printed it
                return json.loads(answer)
        raise RuntimeError(f"the worker ended with {self.popen.wait()}; see {BUILD}/*.log")


def answer_lines() -> Iterator[dict[str, Any]]:
    """In a worker: the questions; each must be answered with one printed line of JSON."""
    for line in sys.stdin:
        yield json.loads(line)


@contextmanager
def ours(dtype: str, *options: str, checkpoint: Path = OURS, root: Path = ROOT) -> Iterator[Server]:
    """`blsp serve` of a checkpoint, by default the small one, with the code in `root`."""
    port = free_port()
    command = [BLSP, "serve", checkpoint, "--port", str(port), "--dtype", dtype, *options]
    with _run([str(part) for part in command], f"ours-{dtype}", root=root) as popen:
        yield _ready(popen, port, "/ready")


@contextmanager
def peer(dtype: str, *options: str, checkpoint: Path = PEER) -> Iterator[Server]:
    """vLLM's own server with an Ultravox model, by default that of the small one's shapes; without options, as it is on a CPU."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--load-format", "dummy", "--trust-remote-code", "--dtype", dtype, "--max-model-len", str(CONTEXT)]
    command += ["--host", "127.0.0.1", "--port", str(port), *(options or ["--enforce-eager"])]
    command += [
        "--media-io-kwargs",
        '{"audio": {"audio_backend": "pyav"}}',
    ]  # else it first tries one that is not there
    with _run(command, f"peer-{dtype}", root=ROOT) as popen:
        yield _ready(popen, port, "/health")


@contextmanager
def worker(module: str, *arguments: str, name: str = "", root: Path = ROOT) -> Iterator[Worker]:
    """A module of this package, as it is in `root`, that answers lines; its log has a `name`, by default of module and arguments."""
    name = name or "-".join([module, *arguments])
    with _run([sys.executable, "-m", module, *arguments], name, piped=True, root=root) as popen:
        yield Worker(popen)


@contextmanager
def _run(command: list[str], name: str, *, root: Path, piped: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """Runs a command in `root` with its output in build/NAME.log, of other roots with theirs in the name; ends it and its children."""
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment |= {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": path}
    BUILD.mkdir(parents=True, exist_ok=True)
    log_name = name if root == ROOT else f"{name}-{root.name}"
    with (BUILD / f"{log_name}.log").open("w") as log:
        pipe = subprocess.PIPE if piped else None
        popen = subprocess.Popen(
            command, cwd=root, stdin=pipe, stdout=pipe or log, stderr=log, text=True, env=environment
        )
        try:
            yield popen
        finally:
            popen.terminate()
            popen.wait(60)


def _ready(popen: "subprocess.Popen[str]", port: int, path: str) -> Server:
    server = Server(popen, url=f"http://127.0.0.1:{port}")
    while time.perf_counter() - server.started < START_SECONDS:
        try:
            urllib.request.urlopen(server.url + path, timeout=10).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if popen.poll() is not None:
                break
            time.sleep(0.5)
        else:
            server.ready_after = time.perf_counter() - server.started
            return server
    raise RuntimeError(f"{popen.args!r} did not get ready; its log is in {BUILD}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine() -> str:
    """The processor and how many cores there are of it; family and model too, for some names stand for many generations."""
    with open("/proc/cpuinfo") as info:
        lines = (line.partition(":") for line in info)
        facts = {name.strip(): value.strip() for name, _, value in lines}
    name = facts.get("model name", platform.machine())
    generation = ", ".join(f"{word} {facts[key]}" for key, word in GENERATION.items() if key in facts)
    return f"{name}{f' ({generation})' if generation else ''}, {os.cpu_count()} cores"
