"""A real Prometheus scrapes the server; every query of the dashboard and every alert rule has data or is quiet there."""

import json
import math
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.serving import Server
from tests.sounds import voice, wav

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "blsp.json").read_text())


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus with the deployed configuration, but for the address of the service and the time between scrapes."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [server.url.removeprefix("http://")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=log, stdout=log)
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", timeout=10) as client:
            server.wait_for(lambda: is_up(client))
            yield client
    finally:
        process.terminate()
        process.wait(timeout=30)


def is_up(client: httpx.Client) -> bool:
    try:
        return bool(values(client, 'up{job="blsp"} == 1'))
    except (httpx.TransportError, KeyError, ValueError):
        return False


def values(client: httpx.Client, query: str) -> list[float]:
    """The numbers that a query gives now."""
    result: list[Any] = client.get("/query", params={"query": query}).json()["data"]["result"]
    numbers = [float(sample["value"][1]) for sample in result]
    return [number for number in numbers if not math.isnan(number)]


def queries() -> dict[str, str]:
    """The dashboard's queries by title and legend, over all instances and half a minute."""
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        .replace("$__rate_interval", "30s")
        .replace("$instance", ".*")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    }


def use(client: httpx.Client, seed: int) -> None:
    """A bit of everything: heard, heard again, refused, given up."""
    heard = {"file": wav(voice(1.0, seed))}
    for _ in range(2):
        client.post("/v1/speech", files=heard, data={"max_tokens": "3", "min_tokens": "3"})
    client.post("/v1/audio/transcriptions", files=heard)
    client.post("/v1/speech", files={"file": b"no audio"})
    with client.stream("POST", "/v1/speech", files=heard, data={"stream": "true", "min_tokens": "500"}) as stream:
        next(stream.iter_lines())


def test_every_query_of_the_dashboard_has_data(server: Server, prometheus: httpx.Client) -> None:
    missing = queries()
    assert len(missing) > 20
    end = time.monotonic() + 60
    with server.client() as client:
        for seed in range(1000, 2000):
            use(client, seed)
            missing = {name: query for name, query in missing.items() if not values(prometheus, query)}
            if not missing or time.monotonic() > end:
                break
    assert missing == {}


def test_the_alert_rules_are_loaded_and_evaluate(prometheus: httpx.Client) -> None:
    rules = prometheus.get("/rules").json()["data"]["groups"][0]["rules"]
    assert len(rules) == len(yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"])
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def scaling_queries() -> dict[str, str]:
    """What KEDA asks, without the label that Kubernetes gives."""
    spec = yaml.safe_load((DEPLOY / "kubernetes" / "scaling" / "scaledobject.yml").read_text())["spec"]
    return {
        trigger["name"]: trigger["metadata"]["query"].replace(', namespace="blsp"', "") for trigger in spec["triggers"]
    }


@pytest.mark.parametrize("name", scaling_queries())
def test_the_autoscaler_gets_one_number(server: Server, prometheus: httpx.Client, name: str) -> None:
    """KEDA takes neither more nor, while replicas are there, less."""
    query = scaling_queries()[name]
    assert "namespace" not in query
    with server.client() as client:
        use(client, seed=3000)
    server.wait_for(lambda: len(values(prometheus, query)) == 1)


def test_requests_that_nobody_has_made_are_none(prometheus: httpx.Client) -> None:
    query = scaling_queries()["requests"].replace("/v1/.*", "/v1/nothing")
    assert values(prometheus, query) == [0]


def test_the_dashboard_asks_only_the_data_source_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    used = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if "datasource" in panel}
    assert used == {source["uid"]}
