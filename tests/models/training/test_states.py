import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

from models.checkpoint import Checkpoint
from models.embedder import Embedder
from models.encoder import encoder_length
from models.features import n_frames
from models.manifest import AudioSpan, Example, InputError
from models.training import align, states, warm_start
from models.training.arguments import ALIGN, WARM_START, Recipe, training_arguments
from models.training.states import EncoderStates, Heard, keep_states
from tests.models.training.conftest import read


@pytest.fixture(scope="module")
def embedder(checkpoint: Checkpoint) -> Embedder:
    return checkpoint.load_embedder()


@pytest.fixture
def heard(examples: list[Example]) -> list[Heard]:
    return [Heard(example.audio, example.samples) for example in examples]


def alone(embedder: Embedder, item: Heard) -> Tensor:
    """The states of one recording, as serving has them."""
    encoded = embedder.encode([embedder.features(read(item.audio))])[0]
    return encoded[: encoder_length(n_frames(item.samples))]


def same(kept: EncoderStates, embedder: Embedder, heard: list[Heard]) -> None:
    order = torch.tensor([kept.places[str(item.audio)] for item in heard])
    batch, lengths = kept.batch(order)
    for item, found, length in zip(heard, batch, lengths.tolist(), strict=True):
        torch.testing.assert_close(found[:length].float(), alone(embedder, item), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("padding", ["30s", "exact"])
def test_states_are_those_of_serving(
    embedder: Embedder, heard: list[Heard], padding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedder, "padding", padding)
    same(keep_states(heard, read, embedder, None), embedder, heard[::-1])
    same(keep_states(heard, read, embedder, tmp_path), embedder, heard[::-1])


def counted() -> tuple[Callable[[AudioSpan], Tensor], list[AudioSpan]]:
    spans: list[AudioSpan] = []

    def reading(span: AudioSpan) -> Tensor:
        spans.append(span)
        return read(span)

    return reading, spans


def test_nothing_is_encoded_twice(embedder: Embedder, heard: list[Heard], tmp_path: Path) -> None:
    reading, spans = counted()
    keep_states(heard[:2] * 2, reading, embedder, tmp_path)
    assert len(spans) == 2
    same(keep_states(heard[1:4], reading, embedder, tmp_path), embedder, heard[:4])
    assert len(spans) == 4


def test_a_killed_run_goes_on(
    embedder: Embedder, heard: list[Heard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "CHUNK", 2)

    def killed(span: AudioSpan) -> Tensor:
        if span == heard[3].audio:
            raise KeyboardInterrupt
        return read(span)

    with pytest.raises(KeyboardInterrupt):
        keep_states(heard, killed, embedder, tmp_path)
    reading, spans = counted()
    seen: list[tuple[int, int]] = []
    same(keep_states(heard, reading, embedder, tmp_path, lambda *done: seen.append(done)), embedder, heard)
    assert {item.audio for item in heard[2:]} == set(spans)
    assert seen == [(2, 6), (4, 6), (6, 6)]


def tuned(embedder: Embedder) -> Embedder:
    """One whose encoder was trained on in its last layer."""
    other = copy.deepcopy(embedder)
    with torch.no_grad():
        list(other.encoder.layers.parameters())[-1][0] += 1
    return other


def test_another_encoder_begins_anew(embedder: Embedder, heard: list[Heard], tmp_path: Path) -> None:
    keep_states(heard, read, embedder, tmp_path)
    reading, spans = counted()
    same(keep_states(heard, reading, tuned(embedder), tmp_path), tuned(embedder), heard)
    assert len(spans) == len(heard)


def test_what_another_encoder_has_begun_to_overwrite_is_gone(
    embedder: Embedder, heard: list[Heard], tmp_path: Path
) -> None:
    keep_states(heard, read, embedder, tmp_path)

    def killed(span: AudioSpan) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_states(heard, killed, tuned(embedder), tmp_path)
    reading, spans = counted()
    keep_states(heard, reading, embedder, tmp_path)
    assert len(spans) == len(heard)


def test_a_recording_that_is_shorter_than_was_said_is_named(
    embedder: Embedder, heard: list[Heard], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"{heard[0].audio}: it has {heard[0].samples} samples, not 99999"):
        keep_states([Heard(heard[0].audio, 99_999)], read, embedder, tmp_path)


@pytest.mark.parametrize(("training", "recipe"), [(align, ALIGN), (warm_start, WARM_START)])
def test_a_training_encodes_where_it_trains(
    training: ModuleType,
    recipe: Recipe,
    speller: Checkpoint,
    examples: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Reached(Exception):
        pass

    def keep(_: object, __: object, embedder: Embedder, *___: object) -> None:
        assert {p.device.type for p in embedder.parameters()} == {embedder.device.type} == {"meta"}
        assert embedder.dtype == torch.bfloat16
        raise Reached

    monkeypatch.setattr(training, "keep_states", keep)
    args = training_arguments(tmp_path / "out", ["--use_cpu", "--bf16", "true"], recipe)
    monkeypatch.setattr(TrainingArguments, "device", torch.device("meta"))
    with pytest.raises(Reached):
        training.prepare(speller, examples, read, args, states=tmp_path / "states")
