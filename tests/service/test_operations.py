"""What operators see."""

import re

from tests.serving import Server
from tests.sounds import voice, wav

STAGES = ["upload", "decode", "features", "queue", "encode", "prefill", "generate"]
STAGES += ["ttft", "ttft_after_upload", "inter_token", "total"]


def test_every_stage_of_a_request_is_measured(server: Server) -> None:
    def counts() -> dict[str, float]:
        return {stage: server.metric("blsp_stage_seconds_count", stage=stage) for stage in STAGES}

    before, seconds, tokens = (
        counts(),
        server.metric("blsp_audio_seconds_total"),
        server.metric("blsp_speech_tokens_total"),
    )
    factors = server.metric("blsp_real_time_factor_count")
    ok = server.metric("blsp_requests_total", endpoint="/v1/speech", status="200")
    with server.client() as client:
        client.post("/v1/speech", files={"file": wav(voice(4.0))}, data={"max_tokens": "40", "min_tokens": "40"})
    after = counts()
    counted = {stage: after[stage] - before[stage] for stage in STAGES}
    assert 1 <= counted.pop("inter_token") <= 39  # vLLM hands over several tokens at once where the machine is busy
    assert counted == dict.fromkeys(counted, 1.0)
    assert server.metric("blsp_audio_seconds_total") == seconds + 4
    assert server.metric("blsp_speech_tokens_total") == tokens + 25
    assert server.metric("blsp_requests_total", endpoint="/v1/speech", status="200") == ok + 1
    assert server.metric("blsp_real_time_factor_count") == factors + 1
    assert server.metric("blsp_build_info", vllm="0.32.0", model=server.model) == 1
    assert server.metric("blsp_ready") == 1
    assert server.metric("vllm:generation_tokens_total", model_name=server.model) > 0


def test_health_readiness_and_version(server: Server) -> None:
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ready"}
        assert client.get("/version").json()["vllm"] == "0.32.0"


def test_the_documentation_names_every_field(server: Server) -> None:
    with server.client() as client:
        assert "swagger" in client.get("/docs").text
        document = client.get("/openapi.json").json()
    form = document["paths"]["/v1/speech"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {
        "file",
        "instruction",
        "model",
        "stream",
        "max_tokens",
        "temperature",
        "top_p",
        "stop",
        "seed",
        "history",
    } <= form["properties"].keys()
    assert {"/v1/chat/completions", "/v1/models", "/health", "/ready", "/metrics", "/version"} <= document[
        "paths"
    ].keys()


def test_loading_shows_its_progress(server: Server) -> None:
    steps = re.findall(r"blsp (Reading|Loading|Starting|Warming|Ready)", "".join(server.log))
    assert steps == ["Reading", "Loading", "Starting", "Warming", "Ready"]
