"""`python -m benchmarks.warm_starts PEOPLE.jsonl`: ways to begin an adapter that spells, alike in steps, batch and learning rate.

It stands on the folder of `make model` (its `sentences.txt`), makes what speech it needs, and goes on where it was killed. How each way
hears the development set's voices, and people (a manifest as for `benchmarks.hearing`), is written to FOLDER/warm-starts/WAY.json: word
error rates of greedy CTC, before any LLM. Nothing is chosen on people. Natural voices need `make build/voices`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.hearing import rate
from models.checkpoint import open_checkpoint
from models.config import AdapterSizes, BlspConfig
from models.manifest import AudioSpan, Example, read_transcripts
from models.smol.build import CONFIG, lines, run, write_lines
from models.training.states import Heard, keep_states
from models.training.warm_start import WarmStart
from service.audio.recordings import read_samples
from service.progress import resumed_progress

SHIPS = "models/smol/checkpoint"
NATURAL = 1 / 4  # of the utterances, where some are by natural voices


@dataclass(frozen=True)
class Way:
    """One line of the table."""

    says: str
    data: str = "recipe"
    changed: Mapping[str, object] = field(default_factory=dict)
    """Sizes of the adapter that are not those that ship."""

    @property
    def sizes(self) -> AdapterSizes:
        """Of its adapter."""
        return BlspConfig.read(Path(SHIPS)).adapter.model_copy(update=self.changed)


WAYS = {
    "recipe": Way("as it ships: 4 times fewer positions, two context layers"),
    "eight": Way("8 times fewer positions", changed={"conv_kernel_sizes": (3, 3, 3)}),
    "unlisted": Way("without word lists, sentences in their place", "unlisted"),
    "natural": Way("a quarter by natural voices", "natural"),
    "quarter": Way("a quarter of the speech, four times as often", "quarter"),
    "small": Way("no context layers", changed={"context_layers": 0}),
    "large": Way("four context layers", changed={"context_layers": 4}),
}


def speak(folder: Path, sentences: Path, n: int, workers: int) -> None:
    """The manifests of `n` utterances for each kind of data, of the same sentences as far as it may."""
    speech = ("-m", "models.smol.speech")
    spare = n // 4  # which take the place of word lists
    parts = (
        ("robots", sentences, "train", n + spare),
        ("voices", sentences, "natural", round(n * NATURAL)),
        ("dev", sentences.with_suffix(".dev.txt"), "dev", 400),
    )
    for name, text, split, count in parts:
        run(sys.executable, *speech, text, folder / name, "--split", split, "--count", count, "--workers", workers)
    robots, natural = lines(folder / "robots"), lines(folder / "voices")[: round(n * NATURAL)]
    spoken = {line["text"] for line in natural}
    data = {
        "recipe": robots[:n],
        "unlisted": [line for line in robots if not is_list(line["text"])][:n],
        "natural": [*natural, *(line for line in robots[:n] if line["text"] not in spoken)],
        "quarter": robots[: n // 4],
    }
    for name, found in data.items():
        write_lines(folder / "data" / f"{name}.jsonl", iter(found))


def is_list(text: str) -> bool:
    """Whether a text is one of the recipe's word lists, which are no sentences: nothing ends them."""
    return text[-1] not in ".?!"


def people(manifest: Path) -> list[Example]:
    """The recordings of a manifest for `benchmarks.hearing`."""
    found = []
    for line in map(json.loads, manifest.read_text().splitlines()):
        audio = AudioSpan(manifest.parent / line["file"])
        found.append(Example(audio, len(read_samples(audio)), line["text"], ""))
    return found


def measure(trained: Path, groups: dict[str, list[Example]], cache: Path) -> dict[str, float]:
    """Word error rates of greedy CTC, by group."""
    checkpoint = open_checkpoint(str(trained), cache)
    embedder = checkpoint.load_embedder()
    embedder.encoder.to(torch.bfloat16)
    heard = [Heard(item.audio, item.samples) for group in groups.values() for item in group]
    kept = keep_states(heard, read_samples, embedder, None)
    model, tokenizer = WarmStart(embedder.adapter, kept).eval(), checkpoint.tokenizer()
    found = {"parameters": float(sum(p.numel() for p in embedder.adapter.parameters()))}
    for name, group in groups.items():
        said = [model.spell(torch.tensor([kept.places[str(item.audio)]]))[0] for item in group]
        found[name] = rate([item.text for item in group], [tokenizer.decode(ids) for ids in said])
    return found


def compare(
    folder: Path, manifest: Path | None, n: int, ways: list[str], workers: int, options: list[str]
) -> dict[str, dict[str, float]]:
    """Trains and measures every way that was not; with none, only makes what all of them need, and two processes can then share it."""
    out, cache = folder / "warm-starts", folder / "cache"
    out.mkdir(exist_ok=True)
    speak(out, folder / "sentences.txt", n, workers)
    embedder = open_checkpoint(SHIPS, cache).load_embedder()
    embedder.encoder.to(torch.bfloat16)
    trained_on = [item for data in sorted((out / "data").iterdir()) for item in read_transcripts(data, read_samples)]
    with resumed_progress("Encoding") as show:
        heard = [Heard(item.audio, item.samples) for item in trained_on]
        keep_states(heard, read_samples, embedder, out / "states", show)
    groups = {"dev": read_transcripts(out / "dev", read_samples)} | ({"people": people(manifest)} if manifest else {})
    found: dict[str, dict[str, float]] = {}
    for name in ways:
        way, trained, result = WAYS[name], out / name, out / f"{name}.json"
        if not result.exists():
            (start := out / "new" / name).mkdir(parents=True, exist_ok=True)
            CONFIG.model_copy(update={"adapter": way.sizes}).write(start)
            told = ("--negatives", 2500, "--states", out / "states", "--cache", cache, "--bf16", "true")
            data = out / "data" / f"{way.data}.jsonl"
            run(Path(sys.executable).with_name("blsp"), "warm-start", start, data, trained, *told, *options)
            result.write_text(json.dumps(measure(trained, groups, cache), indent=1))
        found[name] = json.loads(result.read_text())
    return found


def main() -> None:
    """The command line; further options are TrainingArguments of all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path, nargs="?")
    parser.add_argument("--folder", type=Path, default=Path("runs/smol"))
    parser.add_argument("--utterances", type=int, default=15_000)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--workers", type=int, default=2)
    args, options = parser.parse_known_args()
    torch.set_flush_denormal(True)
    found = compare(args.folder, args.people, args.utterances, args.ways, args.workers, options)
    table = Table("", "adapter", "dev", "people")
    for name, values in found.items():
        people = f"{values['people']:.3f}" if "people" in values else ""
        table.add_row(WAYS[name].says, f"{values['parameters'] / 1e6:.1f} M", f"{values['dev']:.3f}", people)
    Console().print(table)


if __name__ == "__main__":
    main()
