"""`make fuzz`: decodes mutated files of every format and reports; ends with status 1 where the service would have been harmed.

What would harm it: an answer that is neither samples nor a refusal, a file that takes long, and memory, processes or descriptors that stay.
Files that killed their decoder (which costs only themselves) are kept in build/fuzz.
"""

import argparse
import gc
import hashlib
import io
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from service.audio.decoders import IDLE, Decoders
from service.errors import ApiError
from tests.fuzz.mutations import mutate, seeds
from tests.processes import descendants

MAX_SECONDS = 60.0
DECODE_SECONDS = 10.0
GROWTH_MIB = 32.0
KEPT = Path("build/fuzz")


@dataclass
class Tally:
    """What came of the files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    harm: list[str] = field(default_factory=list)
    slowest: float = 0.0


def files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    originals = seeds()
    others = list(originals.values())
    for i in range(count):
        chance = random.Random(f"{seed}-{i}")
        name = chance.choice(list(originals))
        yield name, mutate(originals[name], chance, others)


def try_one(decoders: Decoders, tally: Tally, name: str, data: bytes) -> None:
    start = time.perf_counter()
    try:
        chunks = list(decoders.decode(io.BytesIO(data)))
        samples = np.concatenate(chunks)
        sound = samples.dtype == np.float32 and np.isfinite(samples).all() and len(samples) <= MAX_SECONDS * 16_000
        outcome = "decoded" if sound else "bad samples"
    except ApiError as error:
        outcome = f"{error.status} {error.code}"
        if "decoder" in error.message or "hung" in error.message:
            outcome += ", decoder died"
            KEPT.mkdir(parents=True, exist_ok=True)
            (KEPT / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    except Exception as error:
        outcome = repr(error)
    seconds = time.perf_counter() - start
    tally.slowest = max(tally.slowest, seconds)
    tally.outcomes[outcome] += 1
    tally.formats[name] += 1
    if outcome != "decoded" and not outcome.startswith(("400", "413", "415")):
        tally.harm.append(f"{name}: {outcome}")
    if seconds > DECODE_SECONDS + 5:
        tally.harm.append(f"{name}: took {seconds:.1f} s")


def resident_mib() -> float:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    decoders = Decoders(max_seconds=MAX_SECONDS, seconds=DECODE_SECONDS, memory_bytes=256 << 20)
    tally = Tally()
    start = time.perf_counter()
    memory = descriptors = 0.0
    with ThreadPoolExecutor(4) as threads:
        batch: list[tuple[str, bytes]] = []
        for i, file in enumerate(files(options.files, options.seed), 1):
            batch.append(file)
            if len(batch) == 500 or i == options.files:
                list(threads.map(lambda file: try_one(decoders, tally, *file), batch))
                batch.clear()
                if not memory:  # after the first files everything is loaded
                    memory, descriptors = resident_mib(), len(os.listdir("/proc/self/fd"))
                print(f"{i} files, {time.perf_counter() - start:.0f} s, {resident_mib():.0f} MiB", flush=True)
    growth = resident_mib() - memory
    left = len(descendants(os.getpid(), "decoder_process"))
    more_descriptors = len(os.listdir("/proc/self/fd")) - descriptors
    if growth > GROWTH_MIB:
        tally.harm.append(f"memory grew by {growth:.0f} MiB")
    if left > IDLE + 1:
        tally.harm.append(f"{left} processes are left")
    if more_descriptors > 3 * IDLE:
        tally.harm.append(f"{more_descriptors:.0f} more descriptors are open")
    decoders.close()
    if descendants(os.getpid(), "decoder_process"):
        tally.harm.append("processes outlive their service")
    print(
        f"\n{options.files} files of {len(tally.formats)} formats, seed {options.seed}; slowest {tally.slowest:.2f} s,"
    )
    print(f"memory {growth:+.1f} MiB, descriptors {more_descriptors:+.0f}, processes at the end {left}")
    for outcome, number in tally.outcomes.most_common():
        print(f"{number:7d}  {outcome}")
    for harm in tally.harm:
        print(f"HARM: {harm}")
    return bool(tally.harm)


if __name__ == "__main__":
    sys.exit(main())
