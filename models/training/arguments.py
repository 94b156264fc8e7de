"""Hugging Face's training arguments with the published defaults, and where a killed run goes on."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from models.manifest import InputError


class Recipe(NamedTuple):
    """A training's defaults; `batch` is that of one step of all processes."""

    batch: int
    per_device: int
    options: dict[str, Any]


# Official code: blsp/scripts/train_stage2_ddp.sh and train_stage1_ddp.sh.
ALIGN = Recipe(
    768,
    8,
    {
        "learning_rate": 5e-5,
        "weight_decay": 0.05,
        "warmup_steps": 1000,
        "num_train_epochs": 1,
        "ddp_find_unused_parameters": False,  # every step uses all of the adapter
    },
)
WARM_START = Recipe(
    96,
    96,
    {
        "learning_rate": 1.5e-3,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.02,
        "adam_beta2": 0.98,
        "warmup_steps": 100,
        "num_train_epochs": 10,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,  # they are the LLM's embeddings: 100 MB a step, and no step changes them
    },
)
INSTRUCT = Recipe(128, 4, {"learning_rate": 2e-5, "weight_decay": 0.05, "warmup_steps": 100, "num_train_epochs": 3})


def training_arguments(out: Path, options: list[str], recipe: Recipe) -> TrainingArguments:
    """TrainingArguments from command-line options, by default those of the recipe.

    Where the options do not say how many batches are accumulated, a step of all processes holds the recipe's batch, or what comes nearest
    to it. Raises InputError for an option that they do not know or refuse.
    """
    parser = HfArgumentParser(TrainingArguments, exit_on_error=False, prog="blsp")
    parser.set_defaults(
        output_dir=str(out),
        per_device_train_batch_size=recipe.per_device,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.accelerator.is_available(),  # or `--bf16 true` is refused there
        remove_unused_columns=False,
        report_to=["tensorboard"],
        logging_steps=10,
        save_steps=100,  # an epoch of LibriSpeech has 366 steps of 768
        save_total_limit=2,
        **recipe.options,
    )
    try:
        per_device = parser.parse_known_args(options)[0].per_device_train_batch_size
        at_once = max(1, per_device * int(os.environ.get("WORLD_SIZE", "1")))
        parser.set_defaults(gradient_accumulation_steps=max(1, round(recipe.batch / at_once)))
        args: TrainingArguments
        (args,) = parser.parse_args_into_dataclasses(args=options, look_for_args_file=False)
    except Exception as error:
        raise InputError(f"training options (Hugging Face's TrainingArguments): {error}") from error
    return args


def last_checkpoint(out: Path) -> str | None:
    """The newest checkpoint in a run's folder that was written to its end: the Trainer writes its state last."""
    folders = [folder for folder in out.glob("checkpoint-*") if _is_complete(folder)]
    return str(max(folders, key=lambda folder: int(folder.name.rpartition("-")[2]))) if folders else None


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return True
