"""What every request passes through, with the application itself but no model behind it."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY
from starlette.types import Message, Receive, Scope, Send

from service.gate.keys import Keys, key_line, new_key
from service.http.app import create_app
from service.http.middleware import KeyRequired
from service.loading import Service
from service.settings import ServeSettings
from service.telemetry import logs

KEY = new_key()


async def never() -> Service:
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def client(*, broken: Callable[[], None] = lambda: None, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with these settings, and a path /broken that calls a function."""
    app = create_app(ServeSettings.model_validate({"model": "tiny"} | settings), never)

    @app.get("/broken")
    async def call() -> None:
        broken()

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


def guarded(**settings: Any) -> dict[str, Any]:
    return {"keys": key_line("alice", KEY)} | settings


def count(**labels: str) -> float:
    return REGISTRY.get_sample_value("blsp_requests_total", {"model": "", **labels}) or 0.0


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_without_keys_everything_is_open() -> None:
    async with client() as http:
        assert (await http.get("/v1/models")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/speech", "/docs", "/openapi.json", "/version", "/nowhere"])
async def test_with_keys_what_is_not_open_needs_one(path: str) -> None:
    async with client(**guarded()) as http:
        refusals = [await http.get(path), await http.get(path, headers=bearer(new_key()))]
        refusals.append(await http.get(path, headers={"Authorization": f"Basic {KEY}"}))
        assert (await http.get(path, headers=bearer(KEY))).status_code != 401
        assert (await http.get(path, headers={"api-key": KEY})).status_code != 401  # as Azure's clients send it
    for refusal in refusals:
        assert refusal.status_code == 401
        error = refusal.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "invalid_api_key"
        assert "Authorization: Bearer" in error["message"]
    assert [refusal.headers["www-authenticate"] for refusal in refusals] == [
        'Bearer realm="blsp"',
        'Bearer realm="blsp", error="invalid_token"',
        'Bearer realm="blsp"',
    ]


async def test_probes_are_open_by_default_and_what_is_open_is_a_setting() -> None:
    async with client(**guarded()) as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
        assert (await http.get("/ready")).status_code == 503  # loading
    async with client(**guarded(open_endpoints=["/v1/models"])) as http:
        assert (await http.get("/v1/models")).status_code == 200
        assert (await http.get("/metrics")).status_code == 401


async def test_a_keys_name_is_the_client_in_metrics_and_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    labels = {"endpoint": "/v1/models", "status": "200", "client": "alice"}
    before = count(**labels)
    async with client(**guarded(open_endpoints=["/health"])) as http:
        await http.get("/v1/models", headers=bearer(KEY))
        await http.get("/v1/models")
    assert count(**labels) == before + 1
    lines = [record for record in caplog.records if record.name == "service.access"]
    assert [(line.status, line.client, line.endpoint) for line in lines] == [  # type: ignore[attr-defined]
        (200, "alice", "/v1/models"),
        (401, "anonymous", "/v1/models"),
    ]
    assert KEY not in caplog.text


async def test_metrics_that_are_open_tell_no_names() -> None:
    labels = {"endpoint": "/v1/models", "status": "200"}
    alice, untold = count(**labels, client="alice"), count(**labels, client="authenticated")
    async with client(**guarded()) as http:
        await http.get("/v1/models", headers=bearer(KEY))
    assert count(**labels, client="alice") == alice
    assert count(**labels, client="authenticated") == untold + 1


@pytest.mark.parametrize("path", ["/health/x", "/metrics/../v1/models", "/ready2", "//health"])
async def test_what_is_beside_an_open_path_needs_a_key(path: str) -> None:
    async with client(**guarded()) as http:
        assert (await http.get(f"http://test{path}")).status_code == 401


async def test_cross_origin_is_refused_unless_its_origin_is_allowed() -> None:
    preflight = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
    allowed = "access-control-allow-origin"
    async with client() as http:
        assert allowed not in (await http.get("/health", headers=preflight)).headers
        assert (await http.options("/v1/speech", headers=preflight)).status_code == 405
    async with client(**guarded(cors_origins=["https://good.example"])) as http:
        answer = await http.options("/v1/speech", headers=preflight)  # a browser sends no key with it
        assert answer.status_code == 200
        assert answer.headers[allowed] == "https://good.example"
        refused = await http.get("/v1/models", headers=preflight)
        assert refused.status_code == 401
        assert refused.headers[allowed] == "https://good.example"  # so that the page can read what is wrong
        assert allowed not in (await http.get("/health", headers={"Origin": "https://evil.example"})).headers


async def test_a_requests_id_is_its_clients_where_it_is_harmless() -> None:
    async with client(**guarded()) as http:
        for path in ("/health", "/v1/models", "/nowhere"):
            assert (await http.get(path, headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
        new = [(await http.get("/health", headers={"x-request-id": bad})).headers for bad in ("", "a b", "x" * 129)]
        new.append((await http.get("/health")).headers)
    assert len({headers["x-request-id"] for headers in new}) == 4
    assert all(len(headers["x-request-id"]) == 32 for headers in new)


async def test_a_defect_is_a_500_with_an_id_and_a_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    def refused() -> float:
        return REGISTRY.get_sample_value("blsp_refusals_total", {"reason": "internal_error"}) or 0.0

    before, refused_before = count(endpoint="other", status="500", client="anonymous"), refused()
    async with client(broken=fail) as http:
        answer = await http.get("/broken", headers={"x-request-id": "abc-2"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "defect" not in answer.text
    assert answer.headers["x-request-id"] == "abc-2"
    assert count(endpoint="other", status="500", client="anonymous") == before + 1
    assert refused() == refused_before + 1
    assert "RuntimeError: a defect" in caplog.text


async def test_unknown_paths_make_no_time_series() -> None:
    before = count(endpoint="other", status="404", client="anonymous")
    async with client() as http:
        await http.get("/a-path-that-nobody-knows")
        await http.get("/v1/models/nobody")
    assert count(endpoint="other", status="404", client="anonymous") == before + 1
    assert "a-path-that-nobody-knows" not in str([metric.samples for metric in REGISTRY.collect()])
    assert "nobody'" not in str([metric.samples for metric in REGISTRY.collect()])


@pytest.mark.parametrize("form", ["text", "json"])
async def test_one_line_a_request(form: logs.Form) -> None:
    stream = io.StringIO()
    handler = logs.handler(form, stream)
    log = logging.getLogger("service.access")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        async with client() as http:
            await http.get("/v1/models", headers={"x-request-id": "abc-3"})
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    (line,) = stream.getvalue().splitlines()
    if form == "text":
        assert "INFO service.access [abc-3] GET /v1/models 200 in " in line
        return
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record.pop("seconds") >= 0
    assert record.pop("message").startswith("GET /v1/models 200 in ")
    assert record == {
        "level": "INFO",
        "logger": "service.access",
        "request_id": "abc-3",
        "method": "GET",
        "endpoint": "/v1/models",
        "status": 200,
        "audio_seconds": 0.0,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "client": "anonymous",
        "model": "",
    }


async def test_a_wrong_method_is_told_the_right_ones() -> None:
    async with client() as http:
        answer = await http.put("/v1/speech")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("key", "expected"),
    [(KEY, ["alice"]), (new_key(), ["websocket.http.response.start", "websocket.http.response.body"])],
)
async def test_a_websocket_needs_a_key_too(key: str, expected: list[str]) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["state"]["client"])

    async def send(message: Message) -> None:
        seen.append(message["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    required = KeyRequired(app, Keys(key_line("alice", KEY)), ["/health"])
    of_program = {"headers": [(b"authorization", f"Bearer {key}".encode())]}
    of_browser = {"headers": [], "subprotocols": ["realtime", f"openai-insecure-api-key.{key}"]}
    for brought in (of_program, of_browser):
        await required({"type": "websocket", "path": "/v1/realtime", **brought}, receive, send)
        assert seen == expected
        seen.clear()


@pytest.mark.parametrize("path", ["/version", "/version/", "/v1/models/", "/v1/models/tiny", "/health"])
async def test_head_is_answered_wherever_get_is(path: str) -> None:
    async with client() as http:
        head, get = await http.head(path), await http.get(path)
    assert (head.status_code, head.headers["content-length"]) == (200, get.headers["content-length"])


@pytest.mark.parametrize("prefix", ["/speech", ""])
async def test_a_path_below_a_proxys(prefix: str) -> None:
    async with client(**guarded(root_path="/speech")) as http:
        assert (await http.get(f"{prefix}/health")).status_code == 200
        assert (await http.get(f"{prefix}/v1/models")).status_code == 401
        page = await http.get(f"{prefix}/docs", headers=bearer(KEY))
        assert "/speech/openapi.json" in page.text
        document = await http.get(f"{prefix}/openapi.json", headers=bearer(KEY))
        assert document.json()["servers"] == [{"url": "/speech"}]


@pytest.mark.parametrize(
    "path", ["/openai/models?api-version=2024-10-21", "/openai/v1/models/", "/speech/openai/v1/models/tiny"]
)
async def test_azures_paths(path: str) -> None:
    labels = {"endpoint": "/v1/models/{model:path}" if "tiny" in path else "/v1/models", "status": "200"}
    before = count(**labels, client="authenticated")
    async with client(**guarded(root_path="/speech")) as http:
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers={"api-key": KEY})).status_code == 200
    assert count(**labels, client="authenticated") == before + 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/openai/deployments/tiny/chat/completions", 503),  # there, and loading
        ("/openai/deployments/a/model/chat/completions", 503),
        ("/openai/deployments/tiny/audio/transcriptions", 503),
        ("/openai/deployments/tiny/embeddings", 404),
        ("/openai/deployments/tiny/health", 404),
        ("/openai/deployments//chat/completions", 404),
        ("/openai", 404),
    ],
)
async def test_azures_deployments(path: str, status: int) -> None:
    async with client() as http:
        assert (await http.post(path, json={"messages": []})).status_code == status


async def test_compressed_bodies_are_refused() -> None:
    async with client() as http:
        response = await http.post("/v1/speech", content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"
    assert "'gzip'; send it as it is" in response.json()["error"]["message"]


async def test_all_names_of_the_model_are_listed() -> None:
    async with client(served_model_name="smol, whisper-1") as http:
        cards = (await http.get("/v1/models")).json()["data"]
        assert [card["id"] for card in cards] == ["smol", "whisper-1"]
        assert (await http.get("/v1/models/whisper-1")).json()["id"] == "whisper-1"
        missing = await http.get("/v1/models/tiny")
    assert missing.status_code == 404
    assert "this server has 'smol', 'whisper-1'" in missing.json()["error"]["message"]
