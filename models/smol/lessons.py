"""What the LLM is taught before it is frozen: to answer what was heard as it answers what was said, and to repeat what was said.

`python -m models.smol.lessons ADAPTER RECORDINGS REPLIES OUT.jsonl` writes lessons in Alpaca's form, of text alone: transcripts as the
adapter hears them, by greedy CTC, in most questions, and as they are in the others. An adapter mishears what it was not trained on; the
recordings should be such.
"""

import argparse
import json
import random
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import Checkpoint, open_checkpoint
from models.manifest import AudioSpan, Example, read_json_lines, read_transcripts
from models.prompt import PLACE
from models.smol.instructions import BEGUN, QUOTED
from models.training.states import Heard, keep_states
from models.training.warm_start import WarmStart

MISHEARD = 0.7  # of the questions
BATCH = 32


def read(audio: AudioSpan) -> Tensor:
    """The samples (n,) of a piece of a wav file, as `models.smol.speech` writes them."""
    with wave.open(str(audio.path)) as file:
        file.setpos(audio.start)
        frames = file.readframes(file.getnframes() if audio.frames is None else audio.frames)
    return torch.from_numpy(np.frombuffer(frames, "<i2").astype(np.float32) / 32768)


def misheard(checkpoint: Checkpoint, examples: list[Example], states: Path | None) -> list[str]:
    """What the adapter hears in each recording, by greedy CTC."""
    embedder = checkpoint.load_embedder()
    embedder.encoder.to(torch.bfloat16)
    kept = keep_states([Heard(example.audio, example.samples) for example in examples], read, embedder, states)
    model = WarmStart(embedder.adapter, kept).eval()
    tokenizer = checkpoint.tokenizer()
    order = sorted(range(len(examples)), key=lambda i: examples[i].samples)
    texts = [""] * len(examples)
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        places = torch.tensor([kept.places[str(examples[i].audio)] for i in part])
        for i, ids in zip(part, model.spell(places), strict=True):
            texts[i] = tokenizer.decode(ids).strip()
    return texts


def lessons(heard: dict[str, str], replies: Path, rng: random.Random) -> Iterator[dict[str, str]]:
    """Lessons of transcribing all that was said, and of replying to some of it; `heard` is what was heard, by what was said."""

    def asked(text: str) -> str:
        return heard[text] if rng.random() < MISHEARD else text

    instruction, _, quoted = QUOTED.rpartition(" ")
    for text in heard:
        question = quoted.replace(PLACE, f" {asked(text)}")  # speech begins with a space, as words do
        yield {"instruction": instruction, "input": question, "output": f'{BEGUN}{text}"'}
    for manifest in sorted(replies.glob("*.jsonl")):
        for _, line in read_json_lines(manifest):
            if line["text"] in heard:
                question, told = asked(line["text"]), line["instruction"]
                yield {
                    "instruction": told or question,
                    "input": question if told else "",
                    "output": line["continuation"],
                }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="a checkpoint")
    parser.add_argument("recordings", type=Path, help="a folder of manifests")
    parser.add_argument(
        "replies", type=Path, help="a folder of what `blsp continue` wrote about some of the recordings"
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--states", type=Path, help="where the encoder's states are kept")
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    examples = read_transcripts(args.recordings, read)
    heard = misheard(open_checkpoint(str(args.adapter), args.cache), examples, args.states)
    by_text = {example.text: text for example, text in zip(examples, heard, strict=True) if text}
    rng = random.Random(0)
    written = list(lessons(by_text, args.replies, rng))
    rng.shuffle(written)
    args.out.write_text("".join(json.dumps(lesson) + "\n" for lesson in written))
    print(f"{len(written)} lessons")


if __name__ == "__main__":
    main()
