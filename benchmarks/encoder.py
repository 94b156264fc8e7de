"""The encoder and adapter on one core, against their operations over the core's matrix rate. Prints one line of JSON."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.processes import answer_lines
from benchmarks.small import OURS
from models.checkpoint import open_checkpoint
from models.embedder import Embedder
from models.encoder import encoder_length
from models.features import SAMPLE_RATE, n_frames

ROUNDS = 7
MATRIX = 2048  # rows and columns of the matrices that the rate is measured with


def median_seconds(work: Callable[[], object]) -> float:
    """How long it takes, after a first time."""
    work()
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of one core's matrix product."""
    a = torch.randn(MATRIX, MATRIX).to(dtype)
    return 2 * MATRIX**3 / median_seconds(lambda: a @ a)


def operations(embedder: Embedder, features: list[torch.Tensor], samples: list[int]) -> float:
    """Of the matrix products of a batch, those of attention included; of an embedder in float32, where attention is no plain products."""
    with FlopCounterMode(display=False) as counter:
        embedder.embed_features(features, samples)
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    config = embedder.encoder.config
    attended = sum(encoder_length(n_frames(n)) ** 2 for n in samples)
    return float(counted + 4 * config.encoder_layers * config.d_model * attended)


def measure(embedder: Embedder, counted: Embedder, rate: float, seconds: int, batch: int) -> dict[str, float]:
    """Seconds for a clip in a batch of clips of `seconds`, what they would be at the matrix rate, and those for its features.

    The operations are those of `counted`.
    """
    samples = [seconds * SAMPLE_RATE] * batch
    windows = [torch.randn(n) * 0.1 for n in samples]
    with torch.inference_mode():
        features = [embedder.features(window) for window in windows]
        features_took = median_seconds(lambda: embedder.features(windows[0]))
    return {
        "seconds": seconds,
        "batch": batch,
        "took": median_seconds(lambda: embedder.embed_features(features, samples)) / batch,
        "limit": operations(counted, features, samples) / rate / batch,
        "features": features_took,
    }


def main(dtype: str) -> None:
    """Answers each line with milliseconds and share of the limit for clips of 5 s and 25 s, alone and in eights."""
    torch.set_num_threads(1)
    kind = getattr(torch, dtype)
    checkpoint = open_checkpoint(str(OURS), Path("build/cache"))
    embedder, counted = (checkpoint.load_embedder(dtype, torch.device("cpu")) for dtype in (kind, torch.float32))
    for _ in answer_lines():
        rate = matrix_rate(kind)
        rows = [measure(embedder, counted, rate, seconds, batch) for seconds in (5, 25) for batch in (1, 8)]
        print(json.dumps({"matrix_rate": rate, "rows": rows}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
