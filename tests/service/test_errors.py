"""The list of errors in docs/api.md: whole, and each that a request can cause caused by one."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import service.listening.batcher
from service.errors import ApiError, Overloaded
from tests.serving import Server
from tests.sounds import voice, wav

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
ROWS = re.findall(r"^\| ((?:`\w+`(?:, )?|none)+) \| (\d{3}) \|", PAGE, re.M)
LISTED = {code.strip("`"): int(status) for codes, status in ROWS for code in codes.split(", ")}
SOURCES = [path.read_text() for path in (Path(__file__).parents[2] / "service").rglob("*.py")]


def kinds(kind: type[ApiError] = ApiError) -> Iterator[type[ApiError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


def test_the_list_is_whole() -> None:
    assert service.listening.batcher.EncodingFailed in kinds()  # is imported
    ours = {(kind.code or "none"): kind.status for kind in kinds() if kind is not Overloaded}
    limits = {code for text in SOURCES for code in re.findall(r"Overloaded\([^)]*?code=\"(\w+)\"", text, re.S)} | {
        "body_bytes"
    }
    router = {"not_found": 404, "method_not_allowed": 405}
    assert ours | dict.fromkeys(limits, Overloaded.status) | router == LISTED


AUDIO = wav(voice(1.0))
SPOKEN = {"type": "input_audio", "input_audio": {"data": base64.b64encode(AUDIO).decode(), "format": "wav"}}
CAUSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "invalid_value": ("POST", "/v1/speech", {"content": AUDIO, "params": {"temperature": "hot"}}),
    "invalid_audio": ("POST", "/v1/speech", {"content": AUDIO[: len(AUDIO) // 2]}),
    "context_length_exceeded": (
        "POST",
        "/v1/speech",
        {"files": {"file": AUDIO}, "data": {"instruction": "long " * 5000}},
    ),
    "model_not_found": ("POST", "/v1/speech", {"content": AUDIO, "params": {"model": "nope"}}),
    "not_found": ("GET", "/v2/speech", {}),
    "method_not_allowed": ("PUT", "/v1/speech", {"content": AUDIO}),
    "upload_too_large": ("POST", "/v1/speech", {"content": bytes(9_000_000)}),
    "audio_too_long": ("POST", "/v1/speech", {"content": wav(voice(121.0))}),
    "unsupported_media_type": ("POST", "/v1/speech", {"content": b"This is a text. " * 100}),
}
ELSEWHERE = {
    *(
        "invalid_api_key",
        "origin_not_allowed",
        "upload_too_slow",
        "head_too_large",
        "encoding_failed",
        "none",
        "unavailable",
        "deadline_exceeded",
        "not_admin",
        "name_taken",
    ),
    *("requests", "client_requests", "rate", "audio_seconds", "prompt_tokens", "body_bytes", "connections"),
}  # need other settings, or a defect: test_guarded_server.py, test_realtime_api.py, test_limits_api.py, test_admission.py, and so on


def test_each_is_caused_here_or_elsewhere() -> None:
    assert CAUSES.keys() | ELSEWHERE == LISTED.keys()


@pytest.mark.parametrize("code", CAUSES)
def test_a_request_that_causes_it(server: Server, code: str) -> None:
    method, path, request = CAUSES[code]
    with server.client() as http:
        response = http.request(method, path, **request)
    assert (response.json()["error"]["code"], response.status_code) == (code, LISTED[code])
