"""A training run on disk: what it needs to go on after it was killed."""

import math
import os
from pathlib import Path

import torch
from torch import nn
from torch.optim import AdamW


def optimizer(model: nn.Module, rate: float, decay: float = 0.01) -> AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def take_step(model: nn.Module, optimiser: AdamW, rate: float) -> None:
    """One clipped optimiser step at learning rate `rate`; gradients are cleared."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def save(file: Path, step: int, model: nn.Module, optimiser: AdamW) -> None:
    """Writes the run after `step` steps, whole or not at all."""
    part = file.with_suffix(".part")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimiser.state_dict()}, part)
    os.replace(part, file)


def resume(file: Path, model: nn.Module, optimiser: AdamW) -> int:
    """Loads a run if there is one; returns the number of steps it has behind it."""
    if not file.exists():
        return 0
    saved = torch.load(file, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimizer"])
    return int(saved["step"])
