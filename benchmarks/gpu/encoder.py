"""The encoder and adapter on a GPU: against its matrix rate, beside the plain way, and their rows against those of float32.

`python -m benchmarks.gpu.encoder SHAPE FILE` measures one of shapes.py, `--tiny` a tiny one, on the CPU where there is no GPU.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.encoder import operations
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.shapes import ENCODERS, INNER_DIM, KERNELS, TINY_ENCODER, EncoderShape
from models.adapter import ModalityAdapter
from models.config import AdapterSizes
from models.embedder import Embedder
from models.encoder import WhisperEncoder
from models.features import SAMPLE_RATE, n_frames
from models.graphs import STEP, Ladder, Work, climb, lengths, record
from models.packed import Packed, Strip

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ROUNDS = 9
MATRIX = 8192  # rows and columns of the matrices that the rate is measured with
MIXED = (1, 2, 3, 4, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27)  # seconds
BATCHES = (1, 2, 4, 8, 16, 32, 64)
WINDOWS = 16  # of a batch in the service
BATCH_MS = 10.0


def median_ms(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """How long work takes until the GPU has done it, after two first times."""
    times = []
    for _ in range(2 + rounds):
        begin = time.perf_counter()
        work()
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times[2:])


def build(shape: EncoderShape, device: torch.device, dtype: torch.dtype) -> Embedder:
    """Random weights."""
    torch.manual_seed(0)
    sizes = AdapterSizes(conv_kernel_sizes=KERNELS, inner_dim=INNER_DIM)
    with device:
        embedder = Embedder(WhisperEncoder(shape.config()), ModalityAdapter(shape.dim, shape.llm_dim, sizes), "exact")
    return embedder.to(dtype).eval().requires_grad_(False)


def noise(seconds: Sequence[float]) -> list[Tensor]:
    """Windows of so many seconds."""
    chance = np.random.default_rng(0)
    return [torch.from_numpy(chance.normal(0, 0.1, round(s * SAMPLE_RATE)).astype(np.float32)) for s in seconds]


class Bench:
    """One embedder in bfloat16, and the rate that it is held to."""

    def __init__(self, shape: EncoderShape, matrix: int) -> None:
        self.embedder = build(shape, DEVICE, torch.bfloat16)
        self.counted = build(shape, torch.device("meta"), torch.bfloat16)
        self.packed = Packed(self.embedder.encoder, self.embedder.adapter, "exact")
        self.stream = torch.cuda.Stream() if CUDA else None  # type: ignore[no-untyped-call]
        a = torch.randn(matrix, matrix, dtype=torch.bfloat16, device=DEVICE)
        self.rate = 2 * matrix**3 / median_ms(lambda: a @ a) * 1000

    def recorder(self) -> Callable[[Work], Work]:
        """Of graphs that share a pool; on the CPU work stays as it is."""
        if self.stream is None:
            return lambda work: work
        return partial(record, torch.cuda.graph_pool_handle(), self.stream)

    def start(self) -> dict[str, float]:
        """What the service does before the engine starts."""
        if not CUDA:
            return {}
        before, begin = torch.cuda.memory_reserved(), time.perf_counter()
        ladder = climb(self.packed, WINDOWS, None, BATCH_MS / 1000)
        torch.cuda.synchronize()
        took = time.perf_counter() - begin
        return {"climb_s": took, "batch_s": ladder.seconds, "mib": (torch.cuda.memory_reserved() - before) / (1 << 20)}

    @torch.inference_mode()
    def batch(self, seconds: Sequence[float]) -> dict[str, float]:
        """Milliseconds of a batch, in the service's own way, piece by piece, and in the plain one."""
        windows = noise(seconds)
        samples = [len(window) for window in windows]
        prepared = [self.packed.prepare(window) for window in windows]
        hops = lengths(max(STEP, self.packed.unit), sum(signal.shape[1] for signal in prepared))[-1]
        with torch.cuda.stream(self.stream):
            strip = Strip.empty(hops, max(WINDOWS, len(windows)), DEVICE)
            self.packed.fill(strip, prepared, samples)
            features = self.packed.features(strip)
            rows = self.packed.rows(strip, features)

            def make_features() -> None:
                features.copy_(self.packed.features(strip))

            def make_rows() -> None:
                rows.copy_(self.packed.rows(strip, features))

            recorder = self.recorder()
            replay_rows, replay_features = recorder(make_rows), recorder(make_features)
            found = {
                "features": median_ms(replay_features),
                "rows": median_ms(replay_rows),
                "rows_without_graph": median_ms(make_rows),
            }
        del replay_rows, replay_features
        ladder = Ladder(self.packed, strip.windows, [hops], self.recorder(), self.stream)
        found["whole"] = median_ms(lambda: ladder.embed(prepared, samples))  # copies in both directions, too
        plain = [self.embedder.features(window) for window in windows]
        found["plain_features"] = median_ms(lambda: [self.embedder.features(window) for window in windows], 3)
        found["plain_rows"] = median_ms(lambda: self.embedder.embed_features(plain, samples), 3)
        needed = {n: operations(self.counted, n_frames(n), n) for n in set(samples)}
        limit = 1000 * sum(needed[n] for n in samples) / self.rate
        return found | {"limit": limit, "share": limit / found["rows"]}


def worst(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    """The largest difference of two lists of rows."""
    return max((a.float().cpu() - b.float().cpu()).abs().max().item() for a, b in zip(these, those, strict=True))


def parity(shape: EncoderShape) -> dict[str, float]:
    """Differences between the plain way on the CPU in float32 and each way on the GPU; rows have a norm of the root of their width."""
    windows = noise((0.01, 0.5, 3, 5, 11.3, 30))
    samples = [len(window) for window in windows]
    found = {}
    expected = build(shape, torch.device("cpu"), torch.float32).embed(windows)
    for dtype in (torch.float32, torch.bfloat16):
        embedder = build(shape, torch.device("cpu"), torch.float32).to(DEVICE, dtype)
        found[f"{dtype} plain"] = worst(embedder.embed(windows), expected)
        packed = Packed(embedder.encoder, embedder.adapter, "exact")
        prepared = [packed.prepare(window) for window in windows]
        with torch.inference_mode():
            strip = Strip.empty(sum(signal.shape[1] for signal in prepared), len(windows), DEVICE)
            places = packed.fill(strip, prepared, samples)
            rows = packed(strip)
            found[f"{dtype} packed"] = worst([rows[place] for place in places], expected)
        if CUDA:
            ladder = climb(packed, len(windows), 80.0, 0.0)
            found[f"{dtype} graph"] = worst(ladder.embed(prepared, samples), expected)
            alone = [ladder.embed([signal], [n])[0] for signal, n in zip(prepared, samples, strict=True)]
            found[f"{dtype} graph, alone"] = worst(alone, expected)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=[*ENCODERS, "parity"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    figures = Figures(arguments.file)
    if arguments.shape == "parity":
        for name, shape in ({"tiny": TINY_ENCODER} if arguments.tiny else ENCODERS).items():
            figures.attempt(name, partial(parity, shape))
        return
    bench = Bench(TINY_ENCODER if arguments.tiny else ENCODERS[arguments.shape], 256 if arguments.tiny else MATRIX)
    figures.add(what="matrix rate", tflops=bench.rate / 1e12)
    figures.attempt("start", bench.start)
    batches = BATCHES[:2] if arguments.tiny else BATCHES
    for number in batches:
        figures.attempt(f"{number} x 5 s", partial(bench.batch, [5] * number))
    figures.attempt("16 of 1 to 27 s", partial(bench.batch, MIXED[:4] if arguments.tiny else MIXED))
    for number in batches:
        figures.attempt(f"{number} x 30 s", partial(bench.batch, [30] * number))


if __name__ == "__main__":
    main()
