"""Behaviour alignment: trains the adapter of a checkpoint on continuations, on Hugging Face's Trainer."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, TrainingArguments, WhisperConfig

from models.adapter import ModalityAdapter
from models.checkpoint import Checkpoint
from models.config import BlspConfig
from models.manifest import Example, Objective, ReadAudio
from models.prompt import CONTINUE
from models.training.batches import Collator
from models.training.model import TRAINED, AdapterModel
from models.training.states import Heard, Progress, keep_states
from models.training.trainer import LengthTrainer, run
from models.updates import ADAPTER, UPDATE, adapter_tensors
from models.weights import load_strict, read_tensors, write_file


class AlignmentTrainer(LengthTrainer):
    """A trainer of adapters, whose checkpoints hold what is trained and nothing else."""

    def __init__(self, config: BlspConfig, examples: list[Example], **options: Any) -> None:
        super().__init__([example.samples for example in examples], train_dataset=examples, **options)
        self._config = config

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes a checkpoint in our layout; `state_dict` is given where DeepSpeed or FSDP has gathered the weights."""
        weights = self.model.state_dict() if state_dict is None else state_dict
        adapter = {name.removeprefix(TRAINED): w for name, w in weights.items() if name.startswith(TRAINED)}
        write_adapter(adapter, self._config, Path(output_dir or self.args.output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Has DeepSpeed leave frozen weights out of its own checkpoint, which transformers does for PEFT's models only."""
        if self.is_deepspeed_enabled:
            engine = self.model_wrapped
            engine.save_checkpoint = partial(type(engine).save_checkpoint, engine, exclude_frozen_parameters=True)
        super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_strict(self.model.embedder.adapter, read_tensors(Path(resume_from_checkpoint)), resume_from_checkpoint)


def write_adapter(weights: dict[str, Tensor], config: BlspConfig, folder: Path) -> None:
    """Writes adapter.safetensors and config.json, in place of an update, too; a kill leaves the old file or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: w.detach().float().cpu().contiguous() for name, w in weights.items()}
    write_file(tensors, folder / ADAPTER)
    (folder / UPDATE).unlink(missing_ok=True)  # it is in these weights, or was for others
    config.write(folder)


def align(
    checkpoint: Checkpoint,
    examples: list[Example],
    read: ReadAudio,
    args: TrainingArguments,
    *,
    objective: Objective = "ce",
    instruction: str = CONTINUE,
    states: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> AlignmentTrainer:
    """Trains the adapter of `checkpoint`, or a new one where it has none, into `args.output_dir`; goes on from the last checkpoint there.

    The result is a checkpoint in our layout that shares encoder and LLM with `checkpoint`, with TensorBoard logs and `loss.png` beside it.
    """
    trainer = prepare(
        checkpoint,
        examples,
        read,
        args,
        objective=objective,
        instruction=instruction,
        states=states,
        progress=progress,
    )
    run(trainer)
    return trainer


def prepare(
    checkpoint: Checkpoint,
    examples: list[Example],
    read: ReadAudio,
    args: TrainingArguments,
    *,
    objective: Objective = "ce",
    instruction: str = CONTINUE,
    states: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> AlignmentTrainer:
    """Everything but the training: the frozen parts in bfloat16 with `args.bf16`, else in float32, and the adapter in float32.

    With a folder `states` the encoder's states of all recordings are made and kept there first, of which `progress` hears, and no step runs
    the encoder.
    """
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    llm = AutoModelForCausalLM.from_pretrained(checkpoint.llm_alone(), dtype=dtype)
    out = Path(args.output_dir)
    with args.main_process_first():
        if args.should_save and not (out / ADAPTER).exists():
            write_adapter(
                first_adapter(checkpoint, llm.get_input_embeddings().weight, args.seed), shared_config(checkpoint), out
            )
    embedder = replace(checkpoint, folder=out).load_embedder()
    embedder.encoder.to(dtype)
    kept = None
    if states is not None:
        with args.main_process_first():
            embedder.to(args.device)
            heard = [Heard(example.audio, example.samples) for example in examples]
            kept = keep_states(heard, read, embedder, states, progress).to(args.device)
    collator = Collator(
        read,
        replace(checkpoint.prompt_builder(torch.float32), llm_dim=0),  # its rows are filled in by the model
        embedder.speech_length,
        embedder.encoder.config.num_mel_bins,
        checkpoint.config.padding,
        instruction,
        objective,
        None if kept is None else kept.places,
    )
    model = AdapterModel(embedder, llm, kept)
    return AlignmentTrainer(shared_config(checkpoint), examples, model=model, args=args, data_collator=collator)


def first_adapter(checkpoint: Checkpoint, embeddings: Tensor, seed: int) -> dict[str, Tensor]:
    """The checkpoint's own adapter; where it has none, a new one whose rows have the spread of the LLM's embeddings."""
    if (checkpoint.folder / ADAPTER).exists():
        return dict(adapter_tensors(checkpoint.folder))
    encoder_dim = int(WhisperConfig.from_pretrained(checkpoint.encoder).d_model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = ModalityAdapter(encoder_dim, checkpoint.llm_dim(), checkpoint.config.adapter)
    if adapter.speller is None:
        nn.init.constant_(adapter.speech_ln.weight, embeddings.float().std().item())
    return adapter.state_dict()


def shared_config(checkpoint: Checkpoint) -> BlspConfig:
    """The checkpoint's config for another folder: what is a folder here is named by its absolute path."""
    config = checkpoint.config
    named = ("encoder", "llm", "llm_lora", "lora")
    parts = {part: name for part in named if (name := getattr(config, part)) is not None}
    folders = {
        part: os.path.abspath(checkpoint.folder / name)
        for part, name in parts.items()
        if (checkpoint.folder / name).is_dir()
    }
    return config.model_copy(update=folders)
