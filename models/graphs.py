"""The packed networks recorded as CUDA graphs: a batch is then one launch, where its kernels by themselves would wait for the host.

A graph has fixed shapes. So there is a ladder of strips, each at most an eighth longer than the one before, and a batch takes the shortest
that it fits on. All share their buffers and one pool of memory: nothing may run on two of them at a time.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.adapter import ModalityAdapter
from models.features import HOP_LENGTH, N_SAMPLES, SAMPLE_RATE
from models.packed import Packed, Strip

STEP = 128  # hops, the least from one rung to the next: products are cut into tiles of 64 positions or more
TIMES = 3  # that a batch is timed, of which the shortest counts
PRIORITY = -1  # above the default's: a batch is short, and its windows' replies have not begun

Work = Callable[[], None]


def lengths(step: int, most: int) -> list[int]:
    """Hops of the strips of a ladder, rising up to `most` or just above: multiples of a power of two `step`, in eighths of an octave."""
    found = [step]
    while found[-1] < most:
        found.append(found[-1] + max(step, 1 << found[-1].bit_length() - 4))
    return found


def longest_within(limit: float, sizes: Sequence[int], least: int, took: Callable[[int], float]) -> int:
    """The largest of rising sizes before the first that takes more than `limit`; at least `least`, however long that takes."""
    first = bisect_left(sizes, least)
    best = sizes[first]
    for size in sizes[first + 1 :]:
        if took(size) > limit:
            break
        best = size
    return best


class Ladder:
    """Batches of windows to rows, by work that was recorded beforehand; threads may share it.

    `record` takes work that reads and writes the same tensors each time, and returns what does it again: on a GPU a graph's replay. Where
    there is none, the work itself is the same, but slower.
    """

    def __init__(
        self,
        packed: Packed,
        windows: int,
        hops: Sequence[int],
        record: Callable[[Work], Work],
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Strips of `hops`, rising, for at most `windows` windows. On a GPU all work is done on `stream`."""
        self.packed = packed
        self._windows = windows
        self._hops = list(hops)
        self._stream = stream
        self._lock = threading.Lock()
        rows = hops[-1] // packed.unit
        with torch.inference_mode(), torch.cuda.stream(stream):
            self._strip = Strip.empty(hops[-1], windows, packed.device)
            self._rows = torch.empty(rows, packed.llm_dim, dtype=packed.dtype, device=packed.device)
            # The longest first: the others then find room in the memory that it has taken.
            self._replay = {n: record(partial(self._work, self._strip.part(n))) for n in reversed(self._hops)}

    def with_adapter(self, adapter: ModalityAdapter) -> "Ladder":
        """One that spells as this adapter does, which is of the same layers; strips, records and lock are the same."""
        other = copy(self)
        other.packed = copy(self.packed)
        other.packed.adapter = adapter
        return other

    @property
    def seconds(self) -> float:
        """How much audio one batch may have."""
        return self._hops[-1] * HOP_LENGTH / SAMPLE_RATE

    @torch.inference_mode()
    def embed(self, prepared: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """What `Packed.prepare` has made of windows of so many samples to their rows (n_i, llm_dim), on the host.

        A batch that no strip is long enough for gets one of its own, without a graph.
        """
        hops = sum(signal.shape[1] for signal in prepared)
        with self._lock, torch.cuda.stream(self._stream):
            if hops <= self._hops[-1] and len(prepared) <= self._windows:
                rung = self._hops[bisect_left(self._hops, hops)]
                places = self.packed.fill(self._strip.part(rung), prepared, n_samples)
                self._replay[rung]()
                rows = self._rows
            else:
                strip = Strip.empty(hops, len(prepared), self.packed.device)
                places = self.packed.fill(strip, prepared, n_samples)
                rows = self.packed(strip)
            return self._taken([rows[place] for place in places])

    def _work(self, strip: Strip) -> None:
        rows = self.packed(strip)
        self._rows[: len(rows)].copy_(rows)  # in memory of its own; the pool's is the next graph's

    def _taken(self, items: Sequence[Tensor]) -> list[Tensor]:
        """Rows of each window, spelled where the adapter spells, copied to the host at once."""
        speller = self.packed.adapter.speller
        items = items if speller is None else [speller(item) for item in items]
        host = torch.cat(list(items)).to("cpu", non_blocking=True)  # which is pinned memory beside a GPU
        if self._stream is not None:
            self._stream.synchronize()
        return [part.clone() for part in torch.split(host, [len(item) for item in items])]


def climb(packed: Packed, windows: int, seconds: float | None, launch_seconds: float) -> Ladder:
    """A ladder on the GPU where `packed` is, for batches of at most `seconds` of audio, by default as many as take `launch_seconds` there.

    A window of 30 s always fits. Batches run on a stream of their own.
    """
    torch.cuda.synchronize(packed.device)  # the weights have come on another stream
    stream = torch.cuda.Stream(packed.device, priority=PRIORITY)  # type: ignore[no-untyped-call]
    window = packed.hops(N_SAMPLES)
    most = windows * window if seconds is None else max(window, int(seconds * SAMPLE_RATE / HOP_LENGTH))
    sizes = lengths(max(STEP, packed.unit), most)
    if seconds is None:
        top = longest_within(launch_seconds, sizes, window, partial(_seconds_for, packed, stream))
        sizes = [size for size in sizes if size <= top]
        torch.cuda.empty_cache()
    pool = torch.cuda.graph_pool_handle()
    return Ladder(packed, windows, sizes, partial(record, pool, stream), stream)


@torch.inference_mode()
def _seconds_for(packed: Packed, stream: torch.cuda.Stream, hops: int) -> float:
    """How long the GPU works on a strip full of windows of 30 s."""
    noise = packed.prepare(0.1 * torch.randn(N_SAMPLES))
    number = hops // noise.shape[1]
    times = []
    with torch.cuda.stream(stream):
        strip = Strip.empty(hops, number, packed.device)
        packed.fill(strip, [noise] * number, [N_SAMPLES] * number)
        for _ in range(1 + TIMES):  # the first chooses kernels
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            packed(strip)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
    return min(times)


def record(pool: Any, stream: torch.cuda.Stream, work: Work) -> Work:
    """Records work as a graph whose memory is the pool's; other threads may use the GPU meanwhile."""
    work()  # so that all kernels are loaded and all that they keep is there
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph.replay
