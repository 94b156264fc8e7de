"""The plot of a training's loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_loss(history: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draws the loss over the steps, from the Trainer's log history, as a PNG."""
    points = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([step for step, _ in points], [loss for _, loss in points])
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)
