"""What the OpenAPI document says of single operations; test_openapi.py holds the server to all of it."""

from pathlib import Path
from typing import Any

import pytest

from service.http.app import create_app
from service.http.openapi import CHAT, HEALTH, METRICS, MODEL, SPEECH, TRANSCRIPTION
from service.loading import Service
from service.settings import ServeSettings


@pytest.mark.parametrize("operation", [SPEECH, TRANSCRIPTION, CHAT], ids=["speech", "transcription", "chat"])
def test_an_operation_tells_of_each_refusal(operation: dict[str, Any]) -> None:
    assert set(operation["responses"]) == {200, 400, 404, 408, 413, 415, 429, 503, 504}  # and 401 and 500, as any


def test_what_does_no_work_tells_of_its_own_alone() -> None:
    assert [set(operation["responses"]) for operation in (HEALTH, MODEL, METRICS)] == [{503}, {404}, {200}]


@pytest.mark.parametrize(
    ("operation", "kinds"),
    [
        (SPEECH, {"multipart/form-data", "application/json", "audio/*"}),
        (TRANSCRIPTION, {"multipart/form-data", "application/json"}),
    ],
    ids=["speech", "transcription"],
)
def test_a_recording_is_needed(operation: dict[str, Any], kinds: set[str]) -> None:
    body = operation["openapi_extra"]["requestBody"]
    assert body["required"] is True
    assert body["content"].keys() == kinds
    assert body["content"]["multipart/form-data"]["schema"]["required"] == ["file"]
    assert body["content"]["application/json"]["schema"]["required"] == ["input_audio"]


def test_adapters_are_loaded_only_where_there_is_a_folder(tmp_path: Path) -> None:
    async def never() -> Service:
        raise AssertionError

    def paths(**settings: Any) -> Any:
        return create_app(ServeSettings.model_validate({"model": "tiny"} | settings), never).openapi()["paths"]

    assert "/v1/adapters" not in paths()
    there = paths(adapter_folder=tmp_path)
    assert {"200", "400", "401", "403", "409", "500"} <= there["/v1/adapters"]["post"]["responses"].keys()
    assert {"200", "400", "401", "403", "404", "500"} <= there["/v1/adapters/{name}"]["delete"]["responses"].keys()
