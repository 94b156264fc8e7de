"""The rules of which part may import which."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("models/**/*.py")])

# A package on the left is imported by the files on the right and by no other.
ONLY = {
    "vllm": {"service/engine.py", "service/chat.py"},
    "fastapi": {"service/app.py", "service/routes.py"},
    "starlette": {
        "service/app.py",
        "service/routes.py",
        "service/door.py",
        "service/events.py",
        "service/middleware.py",
    },
    "uvicorn": {"service/cli.py"},
    "aiohttp": {"service/load.py", "service/bench.py"},
    "av": {"service/audio.py"},
    "prometheus_client": {"service/metrics.py"},
    "opentelemetry": {"service/tracing.py"},
    "pythonjsonlogger": {"service/logs.py"},
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
