"""Sentences to speech: `python -m models.smol.speech SENTENCES.txt FOLDER` speaks each by one voice of many.

A shard of 500 utterances is a wav file, 16 kHz and 16 bits, and a manifest beside it whose lines name their piece of it. Each shard is made
by a process of its own, so its bytes depend on the sentences and the seed alone. A killed run loses the shards that it was at, and those
that are there are passed over; a synthesiser that crashes costs the utterance that it was at.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import time
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import get_args

import numpy as np

from models.smol import needs
from models.smol.natural import Hibari, Kokoro, Piper
from models.smol.rooms import RATE, Sound, through_the_air
from models.smol.voices import Espeak, Flite, Program, Split, Synthesiser, draw

SHARD = 500  # utterances
LONGEST = 20  # seconds
SYNTHESISERS: dict[Program, Callable[[], Synthesiser]] = {
    "flite": Flite,
    "espeak-ng": Espeak,
    "piper": Piper,
    "hibari": Hibari,
    "kokoro": Kokoro,
}
_PATIENCE = 60  # seconds for an utterance
_CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGALRM, 255}  # 255: flite's way of giving up
_MARGIN = 0.04  # seconds before and after what is loud


@dataclass(frozen=True)
class Speaker:
    """Makes shards of the utterances `sentences[i % n]`, the i-th of `takes` times n."""

    sentences: list[str]
    out: Path
    split: Split = "train"
    seed: int = 0
    takes: int = 1
    size: int = SHARD

    def shards(self, first: int, count: int | None) -> range:
        """The shards that hold the utterances `first` to `first + count`."""
        total = len(self.sentences) * self.takes
        end = total if count is None else min(total, first + count)
        return range(first // self.size, -(-end // self.size))

    def shard(self, number: int) -> None:
        """Has a process write a shard, unless it is there; and once more without the utterance that the process fell over."""
        context = multiprocessing.get_context("spawn")
        skipped: set[int] = set()
        while not self._manifest(number).exists():
            at = context.Value("q", -1)
            process = context.Process(target=self._write, args=(number, skipped, at, os.getpid()), daemon=True)
            process.start()
            process.join()
            if process.exitcode and (process.exitcode not in _CRASHES or at.value in skipped | {-1}):
                raise RuntimeError(f"shard {number} ended with {process.exitcode} at utterance {at.value}")
            skipped.add(at.value)

    def _manifest(self, number: int) -> Path:
        return self.out / f"{number:05d}.jsonl"

    def _write(self, number: int, skipped: set[int], at: "Synchronized[int]", parent: int) -> None:
        """Runs in a process of its own, whose parent gets to know in `at` what is being spoken."""
        synthesisers: dict[Program, Synthesiser] = {}
        sound = self._manifest(number).with_suffix(".wav")
        lines: list[dict[str, str]] = []
        heard: list[Sound] = []
        start = 0
        for i in range(number * self.size, min((number + 1) * self.size, len(self.sentences) * self.takes)):
            if i in skipped:
                continue
            if os.getppid() != parent:
                os._exit(1)
            at.value = i
            signal.alarm(_PATIENCE)
            text = self.sentences[i % len(self.sentences)]
            voice = draw(random.Random(f"{self.seed} {self.split} {i}"), self.split)
            if voice.program not in synthesisers:
                synthesisers[voice.program] = SYNTHESISERS[voice.program]()
            speech, rate = synthesisers[voice.program].speak(voice, text)
            if len(speech := trimmed(speech, rate)) < rate / 10:
                continue
            samples = through_the_air(speech, rate, heard[-4:], np.random.default_rng([self.seed, i]))
            if len(samples) <= LONGEST * RATE:
                span = f"{sound.name}:{start}:{len(samples)}"
                lines.append(
                    {"audio": span, "text": text, "voice": f"{voice.program}/{voice.name.removeprefix('gmw/')}"}
                )
                heard.append(samples)
                start += len(samples)
        signal.alarm(0)
        with wave.open(str(partial := sound.with_suffix(".part")), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(b"".join((samples * 32767).round().astype("<i2").tobytes() for samples in heard))
        partial.replace(sound)
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        partial.replace(self._manifest(number))


def trimmed(speech: Sound, rate: int) -> Sound:
    """Speech (n,) without the silence before and after; empty where there is nothing else."""
    loud = np.flatnonzero(np.abs(speech) > max(0.002, 0.01 * float(np.abs(speech).max(initial=0))))
    margin = round(_MARGIN * rate)
    return speech[max(0, loud[0] - margin) : loud[-1] + margin] if len(loud) else speech[:0]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=get_args(Split), default="train")
    parser.add_argument("--first", type=int, default=0, help="utterance; whole shards are made")
    parser.add_argument("--count", type=int, help="of utterances; default: all")
    parser.add_argument("--takes", type=int, default=1, help="how often each sentence is spoken")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    needs.demand(parser, needs.for_speech(args.split))
    args.out.mkdir(parents=True, exist_ok=True)
    speaker = Speaker(args.sentences.read_text().splitlines(), args.out, args.split, args.seed, args.takes)
    shards = speaker.shards(args.first, args.count)
    began = time.monotonic()
    with ThreadPoolExecutor(args.workers) as pool:
        for done, _ in enumerate(pool.map(speaker.shard, shards), 1):
            print(f"{done} of {len(shards)} shards, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
