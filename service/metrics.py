"""What /metrics shows of the service itself; vLLM adds its own `vllm:*` to the same registry."""

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

STAGE_SECONDS = Histogram(
    "blsp_stage_seconds",
    "Time of one request in a stage: decode (bytes to samples, waiting for the bytes included), features (log-mel), queue (waiting for the "
    "encoder), encode (encoder and adapter), ttft (first byte of the request to first token), inter_token (gap between tokens), "
    "total (first byte to last token)",
    ["stage"],
    buckets=_SECONDS,
)
AUDIO_SECONDS = Counter("blsp_audio_seconds", "Seconds of audio that were decoded")
SPEECH_TOKENS = Counter("blsp_speech_tokens", "Speech embeddings that were made")
BATCH_WINDOWS = Histogram("blsp_batch_windows", "Windows in a batch of the encoder", buckets=(1, 2, 4, 8, 16, 32, 64))
CACHE = Counter("blsp_embedding_cache_windows", "Windows looked up among those encoded before", ["result"])
REQUESTS = Counter("blsp_requests", "Requests answered", ["endpoint", "status"])
ABORTED = Counter("blsp_aborted_generations", "Generations that were stopped because their client had gone")
REJECTIONS = Counter("blsp_rejections", "Requests that were refused at the door, by the limit they met", ["reason"])
QUEUED_AUDIO_SECONDS = Gauge("blsp_queued_audio_seconds", "Seconds of audio that wait for the encoder")
QUEUED_PROMPT_TOKENS = Gauge("blsp_queued_prompt_tokens", "Tokens of prompts that wait for their first token of reply")
DECODER_DEATHS = Counter("blsp_decoder_deaths", "Recordings whose decoder died of them or hung", ["how"])


def render() -> bytes:
    """The page in Prometheus' text format."""
    return generate_latest(REGISTRY)
