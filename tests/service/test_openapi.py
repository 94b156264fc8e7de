"""The OpenAPI document, and the server held to it by generated requests."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Server

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", "tests/schemathesis.toml", "run"]


@pytest.fixture(scope="module")
def document(server: Server) -> Any:
    with server.client() as client:
        return client.get("/openapi.json").json()


def operations(document: Any) -> dict[str, Any]:
    return {
        f"{method} {path}": operation for path, item in document["paths"].items() for method, operation in item.items()
    }


def test_every_operation_says_what_it_does_and_what_it_may_answer(document: Any) -> None:
    for name, operation in operations(document).items():
        assert operation["description"], name
        answers = operation["responses"]
        assert {"200", "401", "500"} <= answers.keys(), name
        assert "422" not in answers, name
        assert all(answer["content"] and "x-request-id" in answer["headers"] for answer in answers.values()), name
        for status, answer in answers.items():
            if status != "200":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorBody"}, (name, status)


def test_generated_requests_find_no_defect_and_nothing_undocumented(server: Server) -> None:
    options = ["--phases", "coverage", "--generation-deterministic", "--no-color", "--max-time", "60"]
    command = [*SCHEMATHESIS, f"{server.url}/openapi.json", *options]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=200)
    assert done.returncode == 0, done.stdout[-5000:].decode(errors="replace")
    assert b"No issues found" in done.stdout or b"passed" in done.stdout
