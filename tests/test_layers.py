"""The rules of which part may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("models/**/*.py")])

# A package on the left is imported by the files on the right and by no other.
ONLY = {
    "vllm": {"service/engine.py", "service/answers/chat.py"},
    "fastapi": {"service/http/app.py", "service/http/json_route.py", "service/http/routes.py"},
    "starlette": {
        "service/http/app.py",
        "service/http/routes.py",
        "service/http/door.py",
        "service/http/events.py",
        "service/http/middleware.py",
        "service/http/server.py",
    },
    "uvicorn": {"service/http/server.py"},
    "aiohttp": {"service/load/client.py", "service/load/bench.py"},
    "av": {"service/audio/decode.py"},
    "prometheus_client": {"service/telemetry/metrics.py"},
    "opentelemetry": {"service/telemetry/tracing.py"},
    "pythonjsonlogger": {"service/telemetry/logs.py"},
}

# Parts of the service, and all that each imports of the others; cli.py brings them together.
PARTS = {
    "telemetry": set(),
    "gate": {"errors", "telemetry"},
    "audio": {"errors", "telemetry"},
    "listening": {"errors", "telemetry", "gate", "audio"},
    "engine": {"errors", "telemetry", "gate"},
    "answers": {"errors", "telemetry", "listening", "engine"},
    "http": {"errors", "telemetry", "gate", "audio", "listening", "engine", "answers", "loading", "settings"},
    "offline": {"errors", "telemetry", "audio", "listening", "engine", "answers", "loading"},
    "alignment": {"errors", "audio", "engine", "offline", "progress", "settings"},
    "self_check": {"audio"},
    "settings": {"gate"},
    "loading": {"gate", "audio", "listening", "engine", "answers", "settings", "self_check"},
    "load": {"progress"},
}


def imports(file: Path) -> set[str]:
    """The names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_rules(file: Path) -> None:
    path = str(file.relative_to(ROOT))
    packages = {name.partition(".")[0] for name in imports(file)}
    if path.startswith("models/"):
        assert "service" not in packages
    for package, allowed in ONLY.items():
        assert package not in packages or path in allowed, f"{path} may not import {package}"


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_the_service_import_only_what_is_below_them(part: str) -> None:
    files = [file for file in SOURCES if file.relative_to(ROOT).with_suffix("").parts[:2] == ("service", part)]
    names = set().union(*map(imports, files))
    assert files
    assert {name.split(".")[1] for name in names if name.startswith("service.")} - {part} == PARTS[part]
