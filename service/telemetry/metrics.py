"""What /metrics shows of the service itself; vLLM adds its own `vllm:*` to the same registry. deploy/METRICS.md explains each."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Info, disable_created_metrics, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

disable_created_metrics()  # type: ignore[no-untyped-call]  # a further time series for each counter, which nobody asks for

STAGE_SECONDS = Histogram(
    "blsp_stage_seconds", "Seconds of one request in a stage (see deploy/METRICS.md)", ["stage"], buckets=_SECONDS
)
REQUEST_SECONDS = Histogram(
    "blsp_request_seconds", "Seconds from a request's first byte to its answer's last", ["endpoint"], buckets=_SECONDS
)
REAL_TIME_FACTOR = Histogram(
    "blsp_real_time_factor",
    "Seconds from first byte to last token by seconds of audio, of one request",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
AUDIO_SECONDS = Counter("blsp_audio_seconds", "Seconds of audio that were decoded")
SPEECH_TOKENS = Counter("blsp_speech_tokens", "Speech embeddings that were made")
BATCH_WINDOWS = Histogram("blsp_batch_windows", "Windows in a batch of the encoder", buckets=(1, 2, 4, 8, 16, 32, 64))
QUEUE_WINDOWS = Gauge("blsp_encoder_queue_windows", "Windows that wait for the encoder")
CACHE = Counter("blsp_embedding_cache_windows", "Windows looked up among those encoded before", ["result"])
CACHE_BYTES = Gauge("blsp_embedding_cache_bytes", "Memory that embeddings of recordings heard before take")
ENCODERS = Gauge("blsp_encoders", "Encoders in memory that only adapters have")
ENCODER_LOADS = Counter("blsp_encoder_loads", "Times that one of these was loaded")
REQUESTS = Counter("blsp_requests", "Requests answered", ["endpoint", "status", "client", "model"])
IN_FLIGHT = Gauge("blsp_requests_in_flight", "Requests that are being answered", ["endpoint"])
CONNECTIONS = Gauge("blsp_connections", "Connections of clients, idle ones included")
REFUSALS = Counter("blsp_refusals", "Requests that were refused or failed, by the code of the error", ["reason"])
ABORTED = Counter("blsp_aborted_generations", "Generations that were stopped because their client had gone")
QUEUED_AUDIO_SECONDS = Gauge("blsp_queued_audio_seconds", "Seconds of audio that wait for the encoder")
QUEUED_PROMPT_TOKENS = Gauge("blsp_queued_prompt_tokens", "Tokens of prompts that wait for their first token of reply")
DECODER_DEATHS = Counter("blsp_decoder_deaths", "Recordings whose decoder died of them or hung", ["how"])
for _how in ("died", "hung"):
    DECODER_DEATHS.labels(_how)
REALTIME_SESSIONS = Gauge("blsp_realtime_sessions", "Sockets on which somebody talks")
REALTIME_FIRST_TOKEN = Histogram(
    "blsp_realtime_first_token_seconds",
    "Seconds from the end of a turn to the first token of its answer",
    buckets=_SECONDS,
)
REALTIME_AUDIO_SECONDS = Counter(
    "blsp_realtime_audio_seconds",
    "Seconds of speech on sockets, by whether they were encoded when it ended",
    ["encoded"],
)
for _encoded in ("ahead", "after"):
    REALTIME_AUDIO_SECONDS.labels(_encoded)
REALTIME_RESPONSES = Counter("blsp_realtime_responses", "Responses on sockets, by how they ended", ["status"])
for _status in ("completed", "cancelled", "incomplete", "failed"):
    REALTIME_RESPONSES.labels(_status)
READY = Gauge("blsp_ready", "1 from when a first request has gone all the way through until the engine dies, else 0")
BUILD = Info("blsp_build", "Versions of what serves")


def render() -> bytes:
    """The page in Prometheus' text format."""
    return generate_latest(REGISTRY)
