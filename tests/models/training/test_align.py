import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments

from models.checkpoint import Checkpoint, open_checkpoint
from models.config import CheckpointError
from models.manifest import Example, InputError
from models.training.align import AlignmentTrainer, align, prepare, shared_config, write_adapter
from models.training.arguments import ALIGN, last_checkpoint, training_arguments
from models.training.batches import Collator
from tests.models.training.conftest import kill_while_it_saves, read

# 6 examples in steps of 4: an epoch is a full step and half a one, each in batches of 2.
OPTIONS = [
    "--per_device_train_batch_size=2",
    "--gradient_accumulation_steps=2",
    "--num_train_epochs=5",
    "--save_steps=3",
    "--logging_steps=1",
    "--learning_rate=3e-3",
    "--warmup_steps=2",
    "--use_cpu",
    "--disable_tqdm=true",
    "--dataloader_pin_memory=false",
]


def run(checkpoint: Checkpoint, examples: list[Example], out: Path, *more: str, **options: Any) -> AlignmentTrainer:
    return align(checkpoint, examples, read, training_arguments(out, [*OPTIONS, *more], ALIGN), **options)


@pytest.fixture(scope="module")
def finished(
    checkpoint: Checkpoint, examples: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> AlignmentTrainer:
    return run(checkpoint, examples, tmp_path_factory.mktemp("straight"))


def adapter(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "adapter.safetensors")


def logged_losses(trainer: AlignmentTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


KILLED = """
from pathlib import Path
from models.checkpoint import open_checkpoint
from tests.models.training.conftest import EXAMPLES
from tests.models.training.test_align import run

run(open_checkpoint(sys.argv[1], Path()), EXAMPLES, Path(sys.argv[2]))
"""


def test_kill_9_leaves_a_run_that_goes_on_bit_exactly(
    checkpoint: Checkpoint, examples: list[Example], finished: AlignmentTrainer, tmp_path: Path
) -> None:
    kill_while_it_saves(KILLED, checkpoint.folder, tmp_path)
    assert (tmp_path / "checkpoint-6" / "adapter.safetensors").exists()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")  # in the middle of an epoch

    resumed = run(checkpoint, examples, tmp_path)
    assert resumed.state.global_step == finished.state.global_step == 10
    expected = adapter(finished.args.output_dir)
    for name, weight in adapter(tmp_path).items():
        assert torch.equal(weight, expected[name]), name
    assert logged_losses(resumed) == logged_losses(finished)


def test_the_loss_falls(finished: AlignmentTrainer) -> None:
    losses = logged_losses(finished)
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.3  # two steps are an epoch


def test_a_lora_that_only_the_engine_adds_is_refused(
    checkpoint: Checkpoint, examples: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="'lora' is added by the engine"):
        run(replace(checkpoint, lora=tmp_path), examples, tmp_path / "out")


def test_what_is_trained_finds_the_parts_of_what_it_was_trained_from(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    config = checkpoint.config.model_copy(update={"lora": "tuned", "llm": "an/id"})
    shared = shared_config(replace(checkpoint, folder=tmp_path, config=config))
    assert (shared.lora, shared.llm, shared.llm_lora) == (str(tmp_path / "tuned"), "an/id", None)


@pytest.mark.parametrize("steps", ["--max_steps=3", "--num_train_epochs=1.5"])
def test_a_run_that_is_done_takes_no_step_more(
    checkpoint: Checkpoint, examples: list[Example], tmp_path: Path, steps: str
) -> None:
    """Hugging Face's Trainer would take one, in the midst of an epoch."""
    run(checkpoint, examples, tmp_path, steps)
    before = adapter(tmp_path)
    (tmp_path / "adapter.safetensors").unlink()  # as if it were killed before it wrote that
    again = run(checkpoint, examples, tmp_path, steps)
    assert again.state.global_step == 3
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    for name, weight in adapter(tmp_path).items():
        assert torch.equal(weight, before[name]), name
    assert run(checkpoint, examples, tmp_path, "--max_steps=5").state.global_step == 5


def test_only_what_is_trained_is_saved(checkpoint: Checkpoint, finished: AlignmentTrainer) -> None:
    out = Path(finished.args.output_dir)
    before = adapter(checkpoint.folder)
    for folder in (out, Path(last_checkpoint(out) or "")):
        after = adapter(folder)
        assert after.keys() == before.keys()
        assert all(not torch.equal(after[name], before[name]) for name in before)
        assert [file.name for file in folder.glob("*.safetensors")] == ["adapter.safetensors"]
        assert not list(folder.glob("*.bin"))
    state = torch.load(Path(last_checkpoint(out) or "") / "optimizer.pt", weights_only=True)["state"]
    moments = [moment["exp_avg"].shape for moment in state.values()]
    assert sorted(moments) == sorted(weight.shape for weight in before.values())


class Engine:
    """Stands in for DeepSpeed's, whose checkpoints hold the frozen weights unless it is told otherwise."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, bool]] = []

    def save_checkpoint(self, folder: str, exclude_frozen_parameters: bool = False) -> None:
        self.saved.append((folder, exclude_frozen_parameters))


def test_deepspeed_saves_nothing_frozen(
    checkpoint: Checkpoint, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = prepare(checkpoint, examples, read, training_arguments(tmp_path, OPTIONS, ALIGN))
    trainer.is_deepspeed_enabled, trainer.model_wrapped = True, Engine()
    monkeypatch.setattr("transformers.trainer.DeepSpeedSchedulerWrapper", type(trainer.lr_scheduler), raising=False)
    for folder in ("a", "b"):
        trainer._save_optimizer_and_scheduler(folder)
    assert trainer.model_wrapped.saved == [("a", True), ("b", True)]


def test_the_result_is_a_checkpoint(finished: AlignmentTrainer, checkpoint: Checkpoint, tmp_path: Path) -> None:
    for folder in (finished.args.output_dir, last_checkpoint(Path(finished.args.output_dir))):
        trained = open_checkpoint(str(folder), tmp_path)
        assert trained.llm.samefile(checkpoint.llm)
        assert trained.config.prompt_format == checkpoint.config.prompt_format
        trained.load_embedder()


def test_the_adapter_starts_unrounded_beside_bfloat16(
    checkpoint: Checkpoint, examples: list[Example], tmp_path: Path
) -> None:
    args = training_arguments(tmp_path, [*OPTIONS, "--bf16"], ALIGN)
    model = prepare(checkpoint, examples, read, args).model
    assert model.embedder.dtype == model.llm.dtype == torch.bfloat16
    before = adapter(checkpoint.folder)
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in before.values())
    for name, weight in model.embedder.adapter.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_frozen_parts_stay(finished: AlignmentTrainer, checkpoint: Checkpoint) -> None:
    before = checkpoint.load_embedder().encoder.state_dict()
    assert all(torch.equal(w, before[name]) for name, w in finished.model.embedder.encoder.state_dict().items())
    assert all(p.grad is None for p in finished.model.llm.parameters())


def test_logs_and_plot(finished: AlignmentTrainer) -> None:
    out = Path(finished.args.output_dir)
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list(out.rglob("events.out.tfevents.*"))
    assert len(json.loads((out / "trainer_state.json").read_text())["log_history"]) == 11


def test_kl_trains_too(checkpoint: Checkpoint, examples: list[Example], tmp_path: Path) -> None:
    trainer = run(checkpoint, examples, tmp_path, "--max_steps", "6", "--gradient_checkpointing", objective="kl")
    losses = logged_losses(trainer)
    assert sum(losses[-2:]) < sum(losses[:2])


def test_a_new_adapter_starts_at_the_spread_of_the_embeddings(
    checkpoint: Checkpoint, examples: list[Example], collator: Collator, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint.folder, bare, ignore=shutil.ignore_patterns("adapter.safetensors"))
    args = training_arguments(tmp_path / "out", OPTIONS, ALIGN)
    trainer = prepare(open_checkpoint(str(bare), tmp_path), examples, read, args)
    batch = collator(examples)
    rows = torch.cat(trainer.model.speech_rows(batch["features"], batch["frames"], batch["lengths"]))
    embeddings = trainer.model.llm.get_input_embeddings().weight
    assert rows.std().item() == pytest.approx(embeddings.std().item(), rel=0.05)


def test_every_epoch_has_its_own_order(checkpoint: Checkpoint, examples: list[Example], tmp_path: Path) -> None:
    trainer = prepare(checkpoint, examples, read, training_arguments(tmp_path, OPTIONS, ALIGN))
    sampler = trainer._get_train_sampler()
    orders = []
    for epoch in (None, 0.67, 1.0, 1.67, 2.0):
        trainer.state.epoch = epoch
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert orders[2] == orders[3]
    assert orders[0] != orders[2] != orders[4]


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, state in {9: "{}", 10: "{}", 11: "{", 12: None}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_bfloat16_needs_no_accelerator(tmp_path: Path) -> None:
    args = training_arguments(tmp_path, ["--bf16", "true"], ALIGN)
    assert args.bf16
    assert args.device == torch.device("cpu")


def test_published_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    args = training_arguments(tmp_path, ["--use_cpu"], ALIGN)
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 768
    assert args.save_steps <= 281_241 // 768 / 3  # several checkpoints in an epoch of LibriSpeech
    assert (args.learning_rate, args.weight_decay, args.warmup_steps, args.num_train_epochs) == (5e-5, 0.05, 1000, 1)


@pytest.mark.parametrize(
    ("options", "processes", "accumulated"),
    [
        (["--per_device_train_batch_size", "32"], 1, 24),
        (["--per_device_train_batch_size=16"], 8, 6),
        (["--per_device_train_batch_size=100"], 1, 8),
        (["--per_device_train_batch_size=4000"], 1, 1),
        (["--per_device_train_batch_size=32", "--gradient_accumulation_steps=3"], 1, 3),
        ([], 8, 12),
    ],
)
def test_a_step_holds_the_published_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], processes: int, accumulated: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)  # which looks for the other processes
    assert training_arguments(tmp_path, options, ALIGN).gradient_accumulation_steps == accumulated


@pytest.mark.parametrize("options", [["--no-such-option", "1"], ["--learning_rate", "fast"]])
def test_wrong_options(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(InputError, match="training options"):
        training_arguments(tmp_path, options, ALIGN)


def test_a_failed_write_leaves_the_adapter_as_it_was(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = load_file(checkpoint.folder / "adapter.safetensors")
    write_adapter(adapter, checkpoint.config, tmp_path)

    def break_off(weights: dict[str, Tensor], file: Path, metadata: object) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("models.weights.save_file", break_off)
    with pytest.raises(OSError, match="no space"):
        write_adapter({name: tensor + 1 for name, tensor in adapter.items()}, checkpoint.config, tmp_path)
    for name, tensor in load_file(tmp_path / "adapter.safetensors").items():
        torch.testing.assert_close(tensor, adapter[name].float())
