"""The service on a Ray cluster of this machine; Ray is in an environment of its own, which sees the service's."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import descendants

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "ray"
BIN = ROOT / "build" / "ray" / "bin"
REPLICAS = 2
TOKENS = 32

needs_ray = pytest.mark.skipif(not (BIN / "serve").exists(), reason="no Ray: run make build/ray")

ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray.proxy:middlewares",
}


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on."""
    probes = [socket.socket() for _ in range(n)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclass
class Cluster:
    """A cluster of one node, whose Serve listens at `url`."""

    address: str
    url: str
    metrics_port: int
    process: subprocess.Popen[bytes]
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120)

    def deploy(self, scaling: Mapping[str, float] = MappingProxyType({}), **settings: Any) -> None:
        """Runs deploy/ray/serve.yaml, with two replicas or this `scaling`, its own settings and these; returns when they answer."""
        config = yaml.safe_load((FOLDER / "serve.yaml").read_text())
        config["http_options"]["port"] = httpx.URL(self.url).port
        (application,) = config["applications"]
        application["args"] = {"metrics_port": self.metrics_port, "encoder_threads": 1, **self.settings, **settings}
        (deployment,) = application["deployments"]
        deployment["ray_actor_options"] = {"num_cpus": 1}
        deployment["autoscaling_config"] |= {"min_replicas": REPLICAS, "max_replicas": REPLICAS, **scaling}
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [BIN / "serve", "run", "--non-blocking", "--address", self.address, file],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.wait_for(lambda: self.ready() == deployment["autoscaling_config"]["min_replicas"])

    def replicas(self) -> set[int]:
        """The processes that serve."""
        return descendants(self.process.pid, "ray::ServeReplica")

    def pages(self) -> list[str]:
        """What each replica shows of its metrics; those that are gone are left out."""
        found = []
        for port in range(self.metrics_port, self.metrics_port + 2 * REPLICAS):
            try:
                found.append(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text)
            except httpx.TransportError:
                continue
        return found

    def metric(self, name: str, **labels: str) -> list[float]:
        """The value of one sample at each replica; 0 where it is not there yet."""
        return [_value(page, name, labels) for page in self.pages()]

    def ready(self) -> float:
        """How many replicas have answered a first request."""
        return sum(self.metric("blsp_ready"))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Asks again and again until something has come about that the cluster does by itself, five minutes at most."""
        end = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < end, "it has not come about"
            time.sleep(0.2)


def _value(page: str, name: str, labels: dict[str, str]) -> float:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0


@contextmanager
def running() -> Iterator[Cluster]:
    """Starts a cluster, and ends all of it."""
    port, http, metrics = free_ports(3)
    # Not pytest's own folder: paths of Unix sockets have a limit.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        options = ["--head", "--block", "--disable-usage-stats", "--include-dashboard=false"]
        options += ["--num-cpus=4", "--num-gpus=0", f"--object-store-memory={100 << 20}"]
        options += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}/ray"]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "ray", "start", *options],
                env=os.environ | ENVIRONMENT,
                stdout=log,
                stderr=log,
            )
        try:
            yield Cluster(f"127.0.0.1:{port}", f"http://127.0.0.1:{http}", metrics, process, Path(folder))
        finally:
            family = descendants(process.pid, "")
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            for pid in family & descendants(1, ""):  # what it has left behind
                os.kill(pid, signal.SIGKILL)
