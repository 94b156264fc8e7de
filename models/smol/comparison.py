"""`python -m models.smol.comparison`: ways to align an adapter beside each other, alike in recordings, steps and batch.

It stands on the folder of `make model`, on speech that no warm start has heard, and goes on where it was killed. How each way does on
questions and orders by the voices that are kept for tests is written to FOLDER/compared/WAY.json; a table shows all.
"""

import argparse
import json
import random
import re
import sys
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from models.checkpoint import open_checkpoint
from models.config import AdapterSizes
from models.evaluation.agreement import BATCH, CONTINUATION_TOKENS, summarize
from models.evaluation.local import LocalModel, TokenAlignment
from models.manifest import AudioSpan, Objective
from models.prompt import CONTINUE
from models.smol.build import CONFIG, assigned, lines, run, write_lines
from models.smol.needs import DICTIONARY, WORDNET
from models.smol.sentences import sentence
from models.smol.templates import templated

PUBLISHED = AdapterSizes(conv_kernel_sizes=(5, 5, 5), inner_dim=512)
ASKED = 100  # questions, and as many orders
_ORDER = re.compile(
    r"(Add|Book|Call|Cancel|Drive|Find|Give|List|Make|Name|Play|Remind|Send|Set|Stop|Take|Tell|Turn|Wake|Write)\b"
)
TASKS = {
    "questions answered": ("questions", ""),
    "questions continued": ("questions", CONTINUE),
    "orders obeyed": ("orders", ""),
}
"""Who is told what, beside the speech."""


@dataclass(frozen=True)
class Way:
    """One line of the table."""

    says: str
    objective: Objective
    data: str
    is_new: bool = False


WAYS = {
    "published": Way("from random weights: cross-entropy, continuations", "ce", "continuations", is_new=True),
    "ce": Way("cross-entropy, continuations", "ce", "continuations"),
    "kl": Way("divergence, continuations", "kl", "continuations"),
    "many": Way("divergence, many instructions", "kl", "many"),
}


def asked(folder: Path, workers: int) -> dict[str, list[dict[str, Any]]]:
    """Questions and orders by the tests' voices, as lines of manifests; none is a sentence of the training."""
    texts = folder / "asked.txt"
    if not texts.exists():
        known = set(DICTIONARY.read_text().split())
        trained_on = set((folder.parent / "sentences.txt").read_text().splitlines())
        drawn = dict.fromkeys(templated(WORDNET, known, random.Random("asked"), 4000))
        fresh = [text for text in drawn if sentence(text) == text and text not in trained_on]
        questions = [text for text in fresh if text.endswith("?")][:ASKED]
        orders = [text for text in fresh if _ORDER.match(text)][:ASKED]
        texts.write_text("".join(f"{text}\n" for text in questions + orders))
    run(sys.executable, "-m", "models.smol.speech", texts, folder / "asked", "--split", "test", "--workers", workers)
    found = lines(folder / "asked")
    return {
        "questions": [line for line in found if line["text"].endswith("?")],
        "orders": [line for line in found if not line["text"].endswith("?")],
    }


def replies(folder: Path, start: str, cache: Path, n: int) -> None:
    """The LLM's replies to the same transcripts: to all of them its continuations, and to each tenth those to one of ten instructions."""
    blsp = Path(sys.executable).with_name("blsp")
    told = assigned(folder.parent, n)
    everything = folder / "told.jsonl"
    write_lines(everything, (line for _, _, file in told for line in map(json.loads, file.read_text().splitlines())))
    jobs = [("continuations/all.jsonl", CONTINUE, everything)] + [
        (f"many/{name}", said, file) for name, said, file in told
    ]
    for name, instruction, file in jobs:
        options = ("--model", start, "--instruction", instruction, "--max-tokens", 40, "--cache", cache)
        run(blsp, "continue", file, folder / name, *options)


def read(span: AudioSpan) -> torch.Tensor:
    """Samples (n,) of a piece of what `models.smol.speech` wrote."""
    with wave.open(str(span.path)) as file:
        file.setpos(span.start)
        content = np.frombuffer(file.readframes(span.frames), "<i2")
    return torch.from_numpy(content.astype(np.float32) / 32768)


def measure(
    folder: Path, heard: dict[str, list[dict[str, Any]]], cache: Path, written: dict[tuple[str, int], list[str]]
) -> dict[str, float]:
    """Of the tokens of the LLM's replies to transcripts, how many are the likeliest after the speech, too, and KL in nats a token.

    `written` has the replies, which are the same for all ways, as soon as one was measured.
    """
    torch.set_flush_denormal(True)
    model = LocalModel(open_checkpoint(str(folder), cache), read, torch.bfloat16)
    found: dict[str, float] = {}
    for task, (group, instruction) in TASKS.items():
        items: list[TokenAlignment] = []
        for begin in range(0, len(heard[group]), BATCH):
            batch = heard[group][begin : begin + BATCH]
            texts, spans = [line["text"] for line in batch], [AudioSpan.parse(line["audio"], Path()) for line in batch]
            if (task, begin) not in written:
                written[task, begin] = model.from_text(texts, [instruction] * len(texts), CONTINUATION_TOKENS)
            items += model.align(spans, texts, written[task, begin], instruction)
        alignment = summarize(items)
        found |= {f"{task}: agreement": alignment.top1_agreement, f"{task}: KL": alignment.kl}
    return found


def compare(
    folder: Path, start: str, n: int, states: Path, cache: Path, workers: int, options: list[str]
) -> dict[str, dict[str, float]]:
    """Trains and measures every way, and what they start from; what was measured before is read."""
    heard = asked(folder, workers)
    replies(folder, start, cache, n)
    (new := folder / "new").mkdir(exist_ok=True)
    CONFIG.model_copy(update={"adapter": PUBLISHED, "transcribe_expecting": ""}).write(new)
    found: dict[str, dict[str, float]] = {}
    written: dict[tuple[str, int], list[str]] = {}
    ways: dict[str, Way | None] = {"start": None, **WAYS}
    for name, way in ways.items():
        trained, result = Path(start) if way is None else folder / name, folder / f"{name}.json"
        if not result.exists():
            if way is not None:
                begin = new if way.is_new else start
                told = ("--loss", way.objective, "--states", states, "--cache", cache)
                run(Path(sys.executable).with_name("blsp"), "align", begin, folder / way.data, trained, *told, *options)
            result.write_text(json.dumps(measure(trained, heard, cache, written), indent=1))
        found[name] = json.loads(result.read_text())
    return found


def main() -> None:
    """The command line; further options are TrainingArguments of all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/smol"))
    parser.add_argument("--start", help="checkpoint with the warm start; default: the folder's")
    parser.add_argument("--replies", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    args, options = parser.parse_known_args()
    start, states = args.start or str(args.folder / "warm"), args.folder / "states"
    (folder := args.folder / "compared").mkdir(parents=True, exist_ok=True)
    found = compare(folder, start, args.replies, states, args.folder / "cache", args.workers, options)
    table = Table("", *found["start"])
    for name, values in found.items():
        table.add_row(
            WAYS[name].says if name in WAYS else "the warm start", *(f"{value:.3f}" for value in values.values())
        )
    Console().print(table)


if __name__ == "__main__":
    main()
