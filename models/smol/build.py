"""`make model`: sentences, speech, warm start, replies, alignment, evaluation, each by the product's own command.

Everything lies in one folder, and each stage goes on where it was killed. The sizes are options: the defaults are what two cores do in an
hour and a half; what ships heard five times as much (README.md), and a GPU takes `--utterances 150000 --warm-steps 30000`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from models.checkpoint import fetch
from models.config import AdapterSizes, BlspConfig
from models.manifest import read_json_lines
from models.smol import needs
from models.smol.instructions import BEGUN, EXPECTING, QUOTED, REPEAT, REPEAT_TOO, REPLIES
from models.smol.speech import SHARD
from models.updates import ADAPTER
from models.weights import in_int4, write_file

ENCODER, LLM = "openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct"
CONFIG = BlspConfig(
    encoder=ENCODER,
    llm=LLM,
    adapter=AdapterSizes(conv_kernel_sizes=(3, 3), inner_dim=128, spelling_dim=256),
    prompt_format="chat-template",
    padding="exact",
    transcribe_instruction=QUOTED,
    transcribe_begun=BEGUN,
    transcribe_expecting=EXPECTING,
    transcribe_seconds=7.0,
    translate_instruction="Translate this into English.",
)
ALIGN = ("--loss", "kl", "--gradient_accumulation_steps", 4, "--warmup_steps", 10)
"""Steps of 32 examples: what has had a warm start needs no more."""
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""Has glibc keep what a step gives back, up to 8 GB: on CPUs a step pays for fresh pages otherwise, a quarter of its time."""


def lines(manifests: Path) -> list[dict[str, Any]]:
    """The lines of all manifests of a folder, whose paths are made absolute."""
    return [
        fields | {"audio": str(manifests.absolute() / fields["audio"])}
        for manifest in sorted(manifests.glob("*.jsonl"))
        for _, fields in read_json_lines(manifest)
    ]


def write_lines(file: Path, found: Iterator[dict[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text("".join(json.dumps(fields) + "\n" for fields in found))
    partial.replace(file)


def run(*command: object) -> None:
    """One stage, which says for itself how far it is; ends the build where it fails."""
    print("+", *command, flush=True)
    if status := subprocess.run([str(part) for part in command], check=False, env=ALLOCATOR | os.environ).returncode:
        sys.exit(status)


def native_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 as it is, and so faster than float32."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def build(
    folder: Path,
    utterances: int,
    natural: int,
    replies: int,
    dev: int,
    steps: tuple[int, int],
    workers: int,
    options: list[str],
) -> None:
    """All stages; `steps` are those of the warm start and of the alignment, `options` both trainings' TrainingArguments.

    The warm start hears `utterances` by robots and `natural` by natural voices; `dev` sentences are kept for the evaluation.
    """
    python, blsp = sys.executable, Path(sys.executable).with_name("blsp")
    start, cache = folder / "start", folder / "cache"
    start.mkdir(parents=True, exist_ok=True)
    CONFIG.write(start)
    sentences = folder / "sentences.txt"
    if not sentences.exists():
        tokenizer = fetch(LLM, None, folder, cache) / "tokenizer.json"
        run(python, "-m", "models.smol.sentences", sentences, "--tokenizer", tokenizer, "--dev", dev)
    spare = whole_shards(utterances)
    wanted, there = spare + whole_shards(2 * replies) + natural, len(sentences.read_text().splitlines())
    if wanted > there:
        sys.exit(f"{wanted} utterances want as many sentences, of which there are {there}: ask for less")
    for part, split, text, first, count in (
        ("train", "train", sentences, 0, utterances),
        ("spare", "train", sentences, spare, 2 * replies),  # not for the warm start, so the adapter mishears it
        ("natural", "natural", sentences, spare + whole_shards(2 * replies), natural),
        ("dev", "dev", sentences.with_suffix(".dev.txt"), 0, dev),
    ):
        drawn = ("--split", split, "--first", first, "--count", count)
        if count:
            run(python, "-m", "models.smol.speech", text, folder / part, *drawn, "--workers", workers)
    heard = folder / "heard.jsonl"
    write_lines(heard, iter([*lines(folder / "train"), *lines(folder / "natural")]))
    states = ("--states", folder / "states", "--cache", cache)
    warm = ("--negatives", 2500, "--max_steps", steps[0])
    run(blsp, "warm-start", start, heard, folder / "warm", *states, *warm, *options)
    for name, instruction, file in assigned(folder, replies):
        told = ("--instruction", instruction, "--max-tokens", 40, "--cache", cache)
        run(blsp, "continue", file, folder / "replies" / name, "--model", start, *told)
    aligned = (*ALIGN, "--max_steps", steps[1])
    run(blsp, "align", folder / "warm", folder / "replies", folder / "aligned", *states, *aligned, *options)
    questions = folder / "questions.jsonl"
    asked = {"instruction": REPEAT, "task": "wer"}
    write_lines(questions, ({**line, **asked, "reference": line["text"]} for line in lines(folder / "dev")[:dev]))
    briefly = ("--max-tokens", 48, "--dtype", "bfloat16" if native_bfloat16() else "float32")
    run(blsp, "evaluate", folder / "aligned", questions, folder / "evaluation", "--cache", cache, *briefly)
    export(folder / "aligned", folder / "checkpoint")


def whole_shards(utterances: int) -> int:
    """As many, and what else is in their last shard: what begins behind them shares none."""
    return -(-utterances // SHARD) * SHARD


def assigned(folder: Path, replies: int) -> list[tuple[str, str, Path]]:
    """Who is told what: the output's name, the instruction, and the manifest of those that reply to it.

    Lines that repeat their transcript need no LLM; they are written here.
    """
    rng = random.Random(0)
    heard = lines(folder / "spare")
    spoken = [line for line in heard if line["text"][0].isupper() and len(line["text"].split()) > 2]
    chosen = rng.sample(spoken, min(replies, len(spoken)))
    repeated = (
        {**line, "samples": int(line["audio"].rsplit(":", 1)[1]), "continuation": line["text"], "loss": "ce"}
        | {"instruction": rng.choice([REPEAT, REPEAT, *REPEAT_TOO])}
        for line in heard
    )
    write_lines(folder / "replies" / "repeat.jsonl", repeated)
    told = []
    for i, instruction in enumerate(REPLIES):
        manifest = folder / "told" / f"{i:02d}.jsonl"
        write_lines(manifest, iter(chosen[i :: len(REPLIES)]))
        told.append((f"{i:02d}.jsonl", instruction, manifest))
    return told


def export(trained: Path, target: Path) -> None:
    """The adapter in 4 bits, with encoder and LLM by their names."""
    target.mkdir(parents=True, exist_ok=True)
    write_file(in_int4(load_file(trained / ADAPTER)), target / ADAPTER)
    CONFIG.write(target)


def main() -> None:
    """The command line; further options are those of both trainings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/smol"))
    parser.add_argument("--utterances", type=int, default=20_000, help="by robots")
    parser.add_argument("--natural", type=int, default=10_000, help="utterances by natural voices (make build/voices)")
    parser.add_argument("--replies", type=int, default=1000)
    parser.add_argument("--dev", type=int, default=100)
    parser.add_argument("--warm-steps", type=int, default=800)
    parser.add_argument("--align-steps", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    args, options = parser.parse_known_args()
    natural = needs.for_speech("natural") if args.natural else []
    needs.demand(parser, [*needs.for_sentences(), *needs.for_speech("train"), *natural])
    steps = (args.warm_steps, args.align_steps)
    options = ["--bf16", str(native_bfloat16()), *options]
    build(args.folder, args.utterances, args.natural, args.replies, args.dev, steps, args.workers, options)


if __name__ == "__main__":
    main()
