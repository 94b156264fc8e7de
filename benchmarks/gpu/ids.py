"""Greedy replies on a GPU in float32, beside those of the official BLSP code: the ids are to be the same.

`python -m benchmarks.gpu.ids FILE` takes the official code's outputs from where they lie beside the repository or in it, or from
`--reference FOLDER`; they are no part of it. Recordings go through the encoder as in the service, graphs included, and then through
transformers' own LLM; without a GPU all of it runs on the CPU.
"""

import argparse
import json
import wave
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.gpu.encoder import DEVICE
from benchmarks.gpu.figures import Figures
from benchmarks.processes import ROOT
from models.checkpoint import open_checkpoint
from models.embedder import Embedder
from models.features import N_SAMPLES

PLACES = [folder / "shared" / "reference" / "official-blsp" for folder in (ROOT.parent, ROOT)]
MAX_TOKENS = 24  # what the reference asks for where a case says nothing else


def samples(file: Path) -> Tensor:
    """What the official code hears of a recording of 16 bits at 16 kHz: its first 30 s."""
    with wave.open(str(file)) as recording:
        pcm = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
    return torch.from_numpy(pcm.astype(np.float32) / 32768)[:N_SAMPLES]


@torch.inference_mode()
def reply(llm: PreTrainedModel, rows: Tensor, case: dict[str, Any]) -> list[int]:
    """The greedy ids for one case, whose speech embeddings are `rows` (n, llm_dim)."""
    embed = llm.get_input_embeddings()
    text = [embed(torch.tensor(case[part], device=llm.device)) for part in ("prefix_ids", "suffix_ids")]
    prompt = torch.cat([text[0], rows.to(llm.device), text[1]])[None]
    limits = {"max_new_tokens": MAX_TOKENS, "min_new_tokens": 1} | case.get("generation_overrides", {})
    mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=llm.device)
    ids = llm.generate(inputs_embeds=prompt, attention_mask=mask, do_sample=False, **limits)
    return list(map(int, ids[0]))


def compare(llm: PreTrainedModel, embedder: Embedder, recording: Path, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """How many cases about a recording have the official code's ids, and which have not."""
    window = samples(recording)
    (rows,) = embedder.embed_prepared([embedder.prepare(window)], [len(window)])
    other = [case["id"] for case in cases if reply(llm, rows, case) != case["new_ids"]]
    return {"cases": len(cases), "same": len(cases) - len(other), "other": other}


def compare_all(figures: Figures, folder: Path) -> None:
    """A row of figures for each recording of the reference."""
    reference = json.loads((folder / "cases.json").read_text())
    with TemporaryDirectory() as cache:
        checkpoint = open_checkpoint(str(folder / "checkpoint_safetensors"), Path(cache))
        embedder = checkpoint.load_embedder(torch.float32, DEVICE)
        if DEVICE.type == "cuda":
            embedder.accelerate(1, 30.0, 0.0)
        llm = AutoModelForCausalLM.from_pretrained(checkpoint.llm, dtype=torch.float32).to(DEVICE).eval()
        for audio in reference["audios"]:
            cases = [case for case in reference["cases"] + reference["variant_cases"] if case["audio"] == audio["id"]]
            figures.attempt(audio["id"], partial(compare, llm, embedder, folder / audio["file"], cases))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--reference", type=Path, default=next(filter(Path.exists, PLACES), PLACES[0]))
    parser.add_argument("--tiny", action="store_true", help="changes nothing: the reference is tiny")
    arguments = parser.parse_args()
    figures = Figures(arguments.file)
    if not arguments.reference.exists():
        figures.add(what="reference", failed=f"{arguments.reference} is not here")
        return
    compare_all(figures, arguments.reference)


if __name__ == "__main__":
    main()
