import hashlib
import itertools
from pathlib import Path

import jiwer
import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from models.checkpoint import Checkpoint
from models.manifest import Example, InputError
from models.training.arguments import WARM_START, training_arguments
from models.training.states import EncoderStates, Heard, keep_states
from models.training.trainer import run
from models.training.warm_start import WEIGHT, Spelled, WarmStart, WarmStartTrainer, ctc, masked, prepare
from models.updates import UP, adapter_tensors, difference, updated
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
def states(speller: Checkpoint, short: list[Example]) -> EncoderStates:
    return keep_states([Heard(e.audio, e.samples) for e in short], read, speller.load_embedder(), None)


def make(speller: Checkpoint, states: EncoderStates, negatives: int | None = None) -> tuple[WarmStart, Spelled]:
    model = WarmStart(speller.load_embedder().adapter, states, negatives)
    return model, Spelled(speller.tokenizer(), model.speller.ids, states.places)


def paths(scores: Tensor, target: list[int]) -> Tensor:
    """The likelihood of a target: the sum over all paths (one label a row) that are it, without repeats and blanks; scores (n, labels)."""
    likelihood = scores.softmax(-1)
    total = torch.zeros(())
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        if [label for label, _ in itertools.groupby(path) if label] == target:
            total = total + torch.stack([row[label] for row, label in zip(likelihood, path, strict=True)]).prod()
    return total


def test_the_loss_is_that_of_all_paths() -> None:
    scores = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    targets, lengths, counts = [[1, 3], [2, 2, 1]], torch.tensor([2, 3]), torch.tensor([4, 5])
    likelihoods = [paths(s[:n], t) for s, n, t in zip(scores, counts.tolist(), targets, strict=True)]
    loss = ctc(scores, torch.tensor([[1, 3, 0], [2, 2, 1]]), counts, lengths)
    torch.testing.assert_close(loss, -torch.stack(likelihoods).log().sum() / 5)


def test_a_batch_is_its_items(speller: Checkpoint, states: EncoderStates, short: list[Example]) -> None:
    model, spelled = make(speller, states)
    model.eval()
    one_by_one = [spelled([example]) for example in short]
    with torch.no_grad():
        tokens, letters = (
            sum(ctc_of(model, batch) * batch[n] for batch in one_by_one) / sum(batch[n] for batch in one_by_one)
            for n, ctc_of in (("target_lengths", token_loss), ("letter_lengths", letter_loss))
        )
        found = model(**spelled(short))["loss"]
    torch.testing.assert_close(found[None], tokens + WEIGHT * letters, rtol=1e-4, atol=1e-4)


def letter_loss(model: WarmStart, batch: dict[str, Tensor]) -> Tensor:
    """The letters' part of the loss of a batch."""
    *_, first, counts = model.adapter.padded_with_first(*model.states.batch(batch["places"]))
    return ctc(model.letters(first), batch["letters"], counts, batch["letter_lengths"])


def token_loss(model: WarmStart, batch: dict[str, Tensor]) -> Tensor:
    """The tokens' part of the loss of a batch."""
    return model(**batch)["loss"] - WEIGHT * letter_loss(model, batch)


def test_only_the_adapter_and_the_head_learn(speller: Checkpoint, states: EncoderStates, short: list[Example]) -> None:
    model, spelled = make(speller, states, negatives=2)
    model(**spelled(short))["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_transcripts_that_are_not_of_spoken_tokens_have_no_targets(speller: Checkpoint, states: EncoderStates) -> None:
    model, spelled = make(speller, states)
    places = spelled.targets("No.")
    assert places is not None
    assert speller.tokenizer().decode(model.speller.ids[places]) == "No."
    assert spelled.targets("Nr. 5") is None


def trainer(speller: Checkpoint, short: list[Example], out: Path, *options: str, rank: int = 0) -> WarmStartTrainer:
    args = training_arguments(out, [*TRAINING, *options], WARM_START)
    trainer = prepare(speller, short, read, args, states=out.parent / "states", rank=rank)
    run(trainer)
    return trainer


def test_it_learns_to_spell(speller: Checkpoint, short: list[Example], tmp_path: Path) -> None:
    run = trainer(speller, short, tmp_path / "run", "300", "--warmup_steps", "10", "--learning_rate", "5e-3")
    model = run.model.eval()
    places = torch.tensor([model.states.places[str(e.audio)] for e in short])
    spelled = [speller.tokenizer().decode(ids) for ids in model.spell(places)]
    assert jiwer.cer([e.text for e in short], spelled) < 0.2


@pytest.mark.parametrize("rank", [0, 2])
def test_a_resumed_run_ends_as_one_in_one_go(
    speller: Checkpoint, short: list[Example], tmp_path: Path, rank: int
) -> None:
    whole = trainer(speller, short, tmp_path / "whole", "8", "--save_steps", "3", rank=rank)
    args = training_arguments(tmp_path / "cut", [*TRAINING, "8", "--save_steps", "3"], WARM_START)
    first = prepare(speller, short, read, args, states=tmp_path / "states", rank=rank)
    first.add_callback(_Stop(3))
    first.train()
    resumed = trainer(speller, short, tmp_path / "cut", "8", "--save_steps", "3", rank=rank)
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)
    assert digest(tmp_path / "whole") == digest(tmp_path / "cut")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()


def test_changes_of_low_rank_are_all_that_an_update_says(
    speller: Checkpoint, short: list[Example], tmp_path: Path
) -> None:
    trainer(speller, short, tmp_path / "run", "20", "--warmup_steps", "0", rank=2)
    before, after = (dict(adapter_tensors(folder)) for folder in (speller.folder, tmp_path / "run"))
    assert all(not torch.equal(after[name], tensor.float()) for name, tensor in before.items())
    update = difference(before, after, 2)
    assert sum(name.endswith(UP) for name in update) > 5
    torch.testing.assert_close(dict(updated(before.items(), update, "")), after, rtol=1e-4, atol=1e-5)


def test_what_it_makes_is_a_checkpoint(speller: Checkpoint, short: list[Example], tmp_path: Path) -> None:
    from models.checkpoint import open_checkpoint

    trainer(speller, short, tmp_path / "run", "1")
    rows = open_checkpoint(str(tmp_path / "run"), tmp_path).load_embedder().embed([read(short[0].audio)])[0]
    assert rows.isfinite().all()


def test_an_adapter_that_does_not_spell_is_refused(
    checkpoint: Checkpoint, short: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="spelling_dim"):
        trainer(checkpoint, short, tmp_path / "run", "1")


def test_a_warm_start_without_anything_to_spell_is_refused(
    speller: Checkpoint, short: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no transcript"):
        trainer(speller, [example._replace(text="5") for example in short], tmp_path / "run", "1")


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
