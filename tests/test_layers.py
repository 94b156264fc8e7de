"""The rules of which part may import which."""

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("service/**/*.py"), *ROOT.glob("models/**/*.py")])

# A package on the left is imported by the files on the right and by no other.
ONLY = {
    "vllm": {"service/engine.py", "service/guide.py", "service/answers/chat.py"},
    "fastapi": {
        "service/http/adapters.py",
        "service/http/app.py",
        "service/http/json_route.py",
        "service/http/page.py",
        "service/http/realtime.py",
        "service/http/routes.py",
    },
    "starlette": {
        "service/http/app.py",
        "service/http/realtime.py",
        "service/http/routes.py",
        "service/http/door.py",
        "service/http/events.py",
        "service/http/middleware.py",
        "service/http/server.py",
    },
    "uvicorn": {"service/http/server.py"},
    "aiohttp": {"service/audio/fetch.py", "service/load/client.py", "service/load/bench.py"},
    "av": {"service/audio/decode.py", "service/audio/raw.py"},
    "silero_vad": {"service/listening/voice.py"},
    "prometheus_client": {"service/telemetry/metrics.py"},
    "opentelemetry": {"service/telemetry/tracing.py"},
    "watchfiles": {"service/watching.py"},
    "pythonjsonlogger": {"service/telemetry/logs.py"},
}

# Every file and folder of the two packages, from the lowest to the highest, and all that each imports of the others.
PARTS = {
    "models/config": set(),
    "models/markup": set(),
    "models/features": set(),
    "models/encoder": set(),
    "models/ctranslate2": set(),
    "models/manifest": {"models/features"},
    "models/prompt": {"models/config", "models/markup"},
    "models/spelling": {"models/encoder"},
    "models/lattice": {"models/spelling"},
    "models/adapter": {"models/config", "models/encoder", "models/spelling"},
    "models/packed": {"models/config", "models/features", "models/encoder", "models/adapter"},
    "models/graphs": {"models/features", "models/adapter", "models/packed"},
    "models/embedder": {
        *("models/config", "models/features", "models/encoder", "models/adapter", "models/packed", "models/graphs"),
    },
    "models/weights": {"models/config"},
    "models/gguf_llm": {"models/weights"},
    "models/updates": {"models/config", "models/weights"},
    "models/tokenizer": {"models/config"},
    "models/lora": {"models/config", "models/weights"},
    "models/pretrained": {"models/ctranslate2", "models/gguf_llm", "models/weights"},
    "models/official": {"models/config", "models/encoder", "models/adapter", "models/weights", "models/tokenizer"},
    "models/random_init": {"models/config", "models/encoder", "models/adapter", "models/weights"},
    "models/checkpoint": {
        *("models/config", "models/features", "models/encoder", "models/adapter", "models/embedder", "models/prompt"),
        *("models/weights", "models/updates", "models/lora", "models/pretrained", "models/official"),
    },
    "models/training": {
        *("models/config", "models/features", "models/encoder", "models/spelling", "models/adapter", "models/embedder"),
        *("models/manifest", "models/prompt", "models/weights", "models/updates", "models/checkpoint"),
    },
    "models/evaluation": {
        "models/features",
        "models/manifest",
        "models/prompt",
        "models/checkpoint",
        "models/training",
    },
    "models/smol": {
        *("models/config", "models/manifest", "models/prompt", "models/weights", "models/updates", "models/checkpoint"),
        "models/evaluation",
    },
    "service/errors": set(),
    "service/heap": set(),
    "service/kernels": set(),
    "service/lifeline": set(),
    "service/page": set(),
    "service/progress": set(),
    "service/telemetry": set(),
    "service/request": {"service/telemetry"},
    "service/gate": {"service/errors", "service/telemetry"},
    "service/settings": {"service/errors", "service/gate"},
    "service/adapters": {
        *("service/settings", "models/config", "models/encoder", "models/lora", "models/checkpoint", "models/embedder"),
    },
    "service/words": {"service/settings"},
    "service/memory": {"service/gate", "service/heap"},
    "service/audio": {"service/errors", "service/telemetry", "models/features", "models/manifest"},
    "service/self_check": {
        *("service/audio", "models/config", "models/manifest", "models/checkpoint", "models/evaluation"),
    },
    "service/listening": {
        *("service/errors", "service/request", "service/telemetry", "service/gate", "service/audio", "service/heap"),
        *("models/features", "models/encoder", "models/embedder"),
    },
    "service/guide": {"models/lattice"},
    "service/engine": {
        "service/guide",
        *("service/errors", "service/kernels", "service/request", "service/telemetry", "service/gate"),
        *("models/config", "models/lora", "models/prompt"),
    },
    "service/answers": {
        *(
            "service/errors",
            "service/request",
            "service/telemetry",
            "service/audio",
            "service/listening",
            "service/engine",
            "service/guide",
            "models/lattice",
            "models/spelling",
        ),
        *("models/config", "models/features", "models/prompt"),
    },
    "service/realtime": {
        *("service/errors", "service/request", "service/telemetry", "service/gate", "service/audio"),
        *("service/listening", "service/engine", "service/answers", "models/features", "models/prompt"),
    },
    "service/model": {
        *("service/settings", "service/adapters", "service/audio", "service/listening", "service/engine"),
        *("service/answers", "service/realtime", "service/errors", "service/request", "models/config"),
    },
    "service/watching": {
        *("service/errors", "service/settings", "service/memory", "service/model", "models/weights"),
    },
    "service/loading": {
        *("service/errors", "service/kernels", "service/gate", "service/settings", "service/adapters", "service/audio"),
        "service/watching",
        *("service/self_check", "service/listening", "service/engine", "service/answers", "service/model"),
        *("models/config", "models/features", "models/embedder"),
    },
    "service/http": {
        *(
            "service/errors",
            "service/request",
            "service/telemetry",
            "service/gate",
            "service/heap",
            "service/memory",
            "service/page",
            "service/settings",
            "service/audio",
        ),
        *("service/listening", "service/engine", "service/answers", "service/realtime", "service/model"),
        "service/loading",
    },
    "service/offline": {
        *("service/errors", "service/request", "service/audio", "service/listening", "service/engine"),
        *("service/answers", "service/model", "service/loading", "models/manifest"),
    },
    "service/alignment": {
        *(
            "service/errors",
            "service/progress",
            "service/settings",
            "service/audio",
            "service/engine",
            "service/offline",
        ),
        *(
            "models/config",
            "models/features",
            "models/manifest",
            "models/prompt",
            "models/checkpoint",
            "models/updates",
            "models/training",
        ),
        "models/evaluation",
    },
    "service/load": {"service/progress"},
    "service/cli": {
        *("service/words", "service/engine"),
        *("service/errors", "service/progress", "service/telemetry", "service/gate", "service/settings"),
        *("service/answers", "service/loading", "service/http", "service/offline", "service/alignment", "service/load"),
        *("models/config", "models/manifest", "models/official", "models/random_init"),
    },
}


def imports(file: Path) -> set[str]:
    """The names of all modules that a file imports, wherever in it, and of what it takes out of them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_follow_the_rules(file: Path) -> None:
    path = str(file.relative_to(ROOT))
    packages = {name.partition(".")[0] for name in imports(file)}
    if path.startswith("models/"):
        assert "service" not in packages
    for package, allowed in ONLY.items():
        assert package not in packages or path in allowed, f"{path} may not import {package}"


def part_of(names: Sequence[str]) -> str:
    """The part that a module lies in: the first two names of its path."""
    return "/".join(names[:2])


def files_of(part: str) -> list[Path]:
    """A part's files; those of the packages themselves are no part."""
    found = [(file, file.relative_to(ROOT).with_suffix("").parts) for file in SOURCES]
    return [file for file, names in found if names[1] != "__init__" and part_of(names) == part]


def imported_parts(part: str) -> set[str]:
    """The other parts that a part imports from."""
    modules = [name.split(".") for file in files_of(part) for name in imports(file)]
    return {part_of(names) for names in modules if names[0] in {"models", "service"} and len(names) > 1} - {part}


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_only_what_is_below_them(part: str) -> None:
    assert imported_parts(part) == PARTS[part]
    below = list(PARTS)[: list(PARTS).index(part)]
    assert PARTS[part] <= set(below), "no part may stand on one that stands on it"


def test_every_file_is_in_a_part() -> None:
    assert sorted(file for part in PARTS for file in files_of(part)) == [
        file for file in SOURCES if file.parent.parent != ROOT or file.stem != "__init__"
    ]


def test_the_diagram_is_todays() -> None:
    from tests.diagram import PAGE, drawn

    assert PAGE.read_text() == drawn(PAGE.read_text()), "`make diagram` draws it"
