"""deploy/METRICS.md and the page that it explains."""

import re
from pathlib import Path
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Server
from tests.sounds import voice, wav

DOCUMENT = (Path(__file__).parents[2] / "deploy" / "METRICS.md").read_text()


class Described(NamedTuple):
    kind: str
    labels: frozenset[str]
    buckets: tuple[float, ...]


def described() -> dict[str, Described]:
    """The document's table."""
    found: dict[str, Described] = {}
    buckets: tuple[float, ...] = ()
    for name, kind, labels, unit, _ in re.findall(
        r"^\| `(blsp_\w+)` \| (\w+) \| (.*?)\| (.*?) \| (.*) \|$", DOCUMENT, re.M
    ):
        if kind == "histogram" and "as above" not in unit:
            buckets = tuple(map(float, unit.partition(";")[2].split()))
        found[name] = Described(kind, frozenset(re.findall(r"`(\w+)`", labels)), buckets if kind == "histogram" else ())
    return found


def shown(server: Server) -> dict[str, Described]:
    """The page's families of this service, as far as they have samples."""
    found: dict[str, Described] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        if family.name.startswith("blsp_"):
            labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
            bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = Described(family.type, labels, tuple(sorted(bounds - {float("inf")})))
    return found


def test_the_document_describes_the_page(server: Server) -> None:
    with server.client() as client:  # so that everything has happened once
        for _ in range(2):
            client.post("/v1/speech", files={"file": wav(voice(1.0))}, data={"max_tokens": "2"})
        client.post("/v1/speech", files={"file": b"no audio"})
    assert shown(server) == described()


def test_the_document_describes_every_stage(server: Server) -> None:
    with server.client() as client:
        client.post("/v1/speech", files={"file": wav(voice(1.5))}, data={"max_tokens": "2", "min_tokens": "2"})
    page = httpx.get(f"{server.url}/metrics").text
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| [^|]* \|$", DOCUMENT, re.M)
    assert set(rows) == set(re.findall(r'blsp_stage_seconds_count{stage="(\w+)"}', page))
