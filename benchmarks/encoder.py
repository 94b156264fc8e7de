"""The encoder and adapter on one core, against their operations over the core's matrix rate. Prints one line of JSON."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.processes import answer_lines
from benchmarks.small import OURS
from models.checkpoint import open_checkpoint
from models.embedder import Embedder
from models.encoder import product
from models.features import SAMPLE_RATE

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


@torch.inference_mode()
def matrix_rate(dtype: torch.dtype) -> float:
    """Operations a second of one core's matrix product."""
    a = torch.randn(MATRIX, MATRIX).to(dtype)
    return 2 * MATRIX**3 / median_seconds(lambda: product(a, a))


def operations(embedder: Embedder, frames: int, n_samples: int) -> float:
    """Of the matrix products of a window, those of attention included; of an embedder on the meta device, where all are torch's own."""
    features = torch.empty(embedder.encoder.config.num_mel_bins, frames, device="meta")
    with FlopCounterMode(display=False) as counter:
        embedder.embed_features([features], [n_samples])
    return float(counter.get_total_flops())


def measure(embedder: Embedder, counted: Embedder, rate: float, seconds: int, batch: int) -> dict[str, float]:
    """Seconds for a clip in a batch of clips of `seconds`, what they would be at the matrix rate, and those for its features.

    `counted` is the embedder on the meta device.
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
        "limit": operations(counted, features[0].shape[1], samples[0]) / rate,
        "features": features_took,
    }


def main(dtype: str) -> None:
    """Answers each line, of a number of `threads`, with seconds and the limit for clips of 5 s and 25 s, alone and in eights."""
    kind = getattr(torch, dtype)
    checkpoint = open_checkpoint(str(OURS), Path("build/cache"))
    embedder = checkpoint.load_embedder(kind, torch.device("cpu"))
    counted = deepcopy(embedder).to("meta")
    for asked in answer_lines():
        torch.set_num_threads(asked.get("threads", 1))
        rate = matrix_rate(kind)
        rows = [measure(embedder, counted, rate, seconds, batch) for seconds in (5, 25) for batch in (1, 8)]
        print(json.dumps({"matrix_rate": rate, "rows": rows}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
