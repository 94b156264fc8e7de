"""The application's life, with an engine that stands for vLLM's."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import REGISTRY

from service.errors import Unavailable
from service.gate.admission import Limits, Queued
from service.http import app as application
from service.loading import Service
from service.settings import ServeSettings


class Engine:
    dead = False

    async def check(self) -> None:
        if self.dead:
            raise Unavailable("The LLM engine has died.")


async def test_the_death_of_the_engine_turns_the_probes_and_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "CHECK_SECONDS", 0.01)
    engine, stopped, running = Engine(), asyncio.Event(), asyncio.Event()

    async def close() -> None:
        pass

    async def load() -> Service:
        return SimpleNamespace(engine=engine, close=close, queued=lambda: Queued(0, 0))  # type: ignore[return-value]

    app = application.create_app(ServeSettings.model_validate({"model": "tiny"}), load, stopped.set)

    @app.post("/forever")
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        while (await http.get("/ready")).status_code == 503:  # loading
            await asyncio.sleep(0)
        assert (await http.get("/health")).status_code == 200
        assert REGISTRY.get_sample_value("blsp_ready") == 1
        request = asyncio.create_task(http.post("/forever"))
        await running.wait()
        engine.dead = True
        for path in ("/ready", "/health", "/health"):
            response = await http.get(path)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "unavailable"
        await stopped.wait()
        assert REGISTRY.get_sample_value("blsp_ready") == 0
        assert isinstance(app.state.failure, Unavailable)
        response = await request
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "The LLM engine has died."


@pytest.mark.parametrize(
    ("queued", "code"), [(Queued(3600.0, 0), "audio_seconds"), (Queued(0, 262_144), "prompt_tokens")]
)
async def test_what_waits_inside_closes_the_door(queued: Queued, code: str) -> None:
    async def close() -> None:
        pass

    async def load() -> Service:
        return SimpleNamespace(engine=Engine(), close=close, queued=lambda: queued)  # type: ignore[return-value]

    app = application.create_app(ServeSettings.model_validate({"model": "tiny"}), load)
    running, end = asyncio.Event(), asyncio.Event()

    @app.post("/v1/wait")
    async def wait() -> None:
        running.set()
        await end.wait()

    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        while (await http.get("/ready")).status_code == 503:  # loading
            await asyncio.sleep(0)
        first = asyncio.create_task(
            http.post("/v1/wait")
        )  # of a client with nothing running: let in beyond every limit
        await running.wait()
        asyncio.get_running_loop().call_later(10, end.set)  # of a second one that was let in
        refused = await http.post("/v1/wait")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == code
        end.set()
        assert (await first).status_code == 200


async def test_the_end_closes_the_service_and_sends_the_last_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def close() -> None:
        ended.append("service")

    async def load() -> Service:
        return SimpleNamespace(engine=Engine(), close=close, queued=lambda: Queued(0, 0))  # type: ignore[return-value]

    traces = SimpleNamespace(shutdown=lambda: ended.append("traces"))
    monkeypatch.setattr("service.http.app.tracing.start", lambda version: traces)
    app = application.create_app(ServeSettings.model_validate({"model": "tiny"}), load)
    async with app.router.lifespan_context(app):
        while app.state.service is None:
            await asyncio.sleep(0)
        assert not ended
    assert ended == ["service", "traces"]


def test_each_limit_at_the_door_is_its_own_setting() -> None:
    settings = ServeSettings.model_validate(
        {
            "model": "tiny",
            "max_requests": 1,
            "max_body_bytes": 2,
            "max_queued_audio_seconds": 3,
            "max_queued_prompt_tokens": 4,
            "client_max_requests": 5,
            "client_requests_per_minute": 6,
        }
    )
    assert settings.admission() == Limits(
        requests=1,
        body_bytes=2,
        audio_seconds=3,
        prompt_tokens=4,
        client_requests=5,
        client_requests_per_minute=6,
    )
