"""`blsp serve --self-check MANIFEST`: whether an adapter fits its LLM, before anyone is served by it."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from models.checkpoint import Checkpoint
from models.config import CheckpointError
from models.evaluation.agreement import Alignment, measure_alignment
from models.evaluation.local import LocalModel
from models.manifest import InputError, Line, read_manifest
from service.audio.recordings import read_samples


def self_check(
    checkpoint: Checkpoint, manifest: Path, threshold: float, device: torch.device, report: Callable[[str], None]
) -> Alignment:
    """Compares the LLM's next-token predictions given each recording of the manifest and given its transcript.

    Both are of its own continuation of the transcript, as in `blsp evaluate`. The LLM is loaded by transformers for it and is gone
    when this returns. Raises CheckpointError where the likeliest token agrees in a smaller share than `threshold`.
    """
    lines = list(dict.fromkeys((line.audio, line.text) for line in read_manifest(manifest, Line)))
    if not lines:
        raise InputError(f"{manifest}: no recordings to check the adapter with")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model = LocalModel(checkpoint, read_samples, dtype, str(device))
    alignment = measure_alignment(model, lines, manifest.parent.absolute())
    del model
    gc.collect()  # the model refers to itself
    torch.cuda.empty_cache()  # does nothing without a GPU; on one, vLLM measures what is free
    found = f"{alignment.top1_agreement:.1%} of {alignment.tokens} tokens, KL {alignment.kl:.3f} nats a token"
    if alignment.top1_agreement < threshold:
        raise CheckpointError(
            f"The adapter does not fit its LLM: given the speech of {manifest}, the likeliest next token is the one given the transcript "
            f"for {found}; at least {threshold:.1%} are asked for (--self-check-agreement)."
        )
    report(f"The adapter fits its LLM: same likeliest token for {found}")
    return alignment
