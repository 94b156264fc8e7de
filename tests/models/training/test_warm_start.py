import hashlib
import itertools
from pathlib import Path

import jiwer
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from models.checkpoint import Checkpoint, embedding_table
from models.training.arguments import WARM_START, training_arguments
from models.training.manifest import Example
from models.training.states import EncoderStates, Heard, keep_states
from models.training.trainer import run
from models.training.warm_start import Spelled, WarmStart, WarmStartTrainer, masked, prepare, tokens_of
from tests.models.training.conftest import read


class _Stop(TrainerCallback):  # type: ignore[misc]
    """Ends a training after a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: object, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_training_stop = state.global_step == self.step


TRAINING = ["--per_device_train_batch_size", "6", "--report_to", "none", "--use_cpu", "--max_steps"]


@pytest.fixture(scope="module")
def short(examples: list[Example]) -> list[Example]:
    """Examples whose texts, a token a letter, have no more tokens than the recordings have rows."""
    return [example._replace(text=example.text[:2]) for example in examples]


@pytest.fixture(scope="module")
def states(checkpoint: Checkpoint, short: list[Example]) -> EncoderStates:
    return keep_states([Heard(e.audio, e.samples) for e in short], read, checkpoint.load_embedder(), None)


def make(
    checkpoint: Checkpoint, states: EncoderStates, short: list[Example], negatives: int | None = None
) -> tuple[WarmStart, dict[str, Tensor]]:
    tokenizer = checkpoint.tokenizer()
    candidates = tokens_of(tokenizer, [example.text for example in short])
    table = embedding_table(checkpoint.llm)
    model = WarmStart(checkpoint.load_embedder().adapter, states, table, candidates, negatives)
    return model, Spelled(tokenizer, states.places)(short)


def paths(scores: Tensor, target: list[int]) -> Tensor:
    """The likelihood of a target: the sum over all paths (one label a row) that are it, without repeats and blanks; scores (n, labels)."""
    likelihood = scores.softmax(-1)
    total = torch.zeros(())
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        if [label for label, _ in itertools.groupby(path) if label] == target:
            total = total + torch.stack([row[label] for row, label in zip(likelihood, path, strict=True)]).prod()
    return total


def test_the_loss_is_that_of_all_paths(checkpoint: Checkpoint, states: EncoderStates, short: list[Example]) -> None:
    item = min(short, key=lambda example: example.samples)
    model, _ = make(checkpoint, states, [item])
    batch = Spelled(checkpoint.tokenizer(), states.places)([item])
    rows = checkpoint.load_embedder().embed([read(item.audio)])[0]
    with torch.no_grad():
        scores = model.scores(rows, model.embeddings[model.candidates])
        labels = (torch.searchsorted(model.candidates, batch["targets"][0]) + 1).tolist()
        loss = model.eval()(**batch)["loss"] * len(labels)
    assert loss.item() == pytest.approx(-paths(scores, labels).log().item(), rel=0.01)


def test_a_batch_is_its_items(checkpoint: Checkpoint, states: EncoderStates, short: list[Example]) -> None:
    model, batch = make(checkpoint, states, short)
    model.eval()
    with torch.no_grad():
        alone = [model(**Spelled(checkpoint.tokenizer(), states.places)([e]))["loss"] for e in short]
        lengths = batch["target_lengths"]
        expected = sum(loss * n for loss, n in zip(alone, lengths, strict=True)) / lengths.sum()
        torch.testing.assert_close(model(**batch)["loss"], expected, rtol=1e-4, atol=1e-4)


def test_only_the_adapter_and_the_head_learn(
    checkpoint: Checkpoint, states: EncoderStates, short: list[Example]
) -> None:
    model, batch = make(checkpoint, states, short, negatives=2)
    model(**batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert not model.embeddings.requires_grad


def trainer(checkpoint: Checkpoint, short: list[Example], out: Path, *options: str) -> WarmStartTrainer:
    args = training_arguments(out, [*TRAINING, *options], WARM_START)
    trainer = prepare(checkpoint, short, read, args, states=out.parent / "states")
    run(trainer)
    return trainer


def test_it_learns_to_spell(checkpoint: Checkpoint, short: list[Example], tmp_path: Path) -> None:
    run = trainer(checkpoint, short, tmp_path / "run", "150", "--warmup_steps", "10")
    model = run.model.eval()
    places = torch.tensor([model.states.places[str(e.audio)] for e in short])
    spelled = [checkpoint.tokenizer().decode(ids) for ids in model.spell(places)]
    assert jiwer.cer([e.text for e in short], spelled) < 0.2


def test_a_resumed_run_ends_as_one_in_one_go(checkpoint: Checkpoint, short: list[Example], tmp_path: Path) -> None:
    whole = trainer(checkpoint, short, tmp_path / "whole", "8", "--save_steps", "3")
    args = training_arguments(tmp_path / "cut", [*TRAINING, "8", "--save_steps", "3"], WARM_START)
    first = prepare(checkpoint, short, read, args, states=tmp_path / "states")
    first.add_callback(_Stop(3))
    first.train()
    resumed = trainer(checkpoint, short, tmp_path / "cut", "8", "--save_steps", "3")
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    assert digest(tmp_path / "whole") == digest(tmp_path / "cut")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()


def test_what_it_makes_is_a_checkpoint(checkpoint: Checkpoint, short: list[Example], tmp_path: Path) -> None:
    from models.checkpoint import open_checkpoint

    trainer(checkpoint, short, tmp_path / "run", "1")
    rows = open_checkpoint(str(tmp_path / "run"), tmp_path).load_embedder().embed([read(short[0].audio)])[0]
    assert rows.isfinite().all()


def test_masking_hides_no_more_than_its_share() -> None:
    torch.manual_seed(0)
    states, lengths = torch.ones(64, 200, 100), torch.full((64,), 200)
    assert masked(states, lengths, 0.0) is states
    found = masked(states, lengths, 0.1)
    channels = (found == 0).all(1).sum(1)
    times = (found == 0).all(2).sum(1)
    assert channels.max() <= 10
    assert times.max() <= 2 * 20
    assert channels.sum() > 0
    assert times.sum() > 0
