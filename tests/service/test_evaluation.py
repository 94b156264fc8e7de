import json
from pathlib import Path

import httpx
import pytest
import torch

from models.checkpoint import open_checkpoint
from models.evaluation.agreement import summarize
from models.evaluation.local import LocalModel, TokenAlignment
from models.evaluation.scores import Question
from models.manifest import InputError
from service.alignment.evaluation import ServedModel, evaluate, recordings, table, work, write_results
from service.audio.recordings import read_samples
from tests.serving import Server
from tests.sounds import voice, wav

ASKED = [
    ("What is said?", "wer", "No."),
    ("Translate it into German:", "bleu", "Nein."),
    ("Say it again:", "exact", "No."),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    for i in range(7):
        (folder / f"{i}.wav").write_bytes(wav(voice(0.5 + 0.3 * i, seed=i)))
    return folder


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """21 questions about 7 recordings: more than a batch."""
    return [
        Question(audio=f"{i}.wav", text=f"Sentence {i}.", instruction=instruction, task=task, reference=reference)
        for i in range(7)
        for instruction, task, reference in ASKED
    ]


@pytest.fixture(scope="module")
def local(official: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    return LocalModel(open_checkpoint(str(official), tmp_path_factory.mktemp("cache")), read_samples)


def test_a_local_model(local: LocalModel, questions: list[Question], folder: Path, tmp_path: Path) -> None:
    done: list[int] = []
    result = evaluate("tiny", local, questions, folder, 8, done.append)
    assert sum(done) == work(questions, local) == 21 + 7
    assert [(group.instruction, group.task, group.questions) for group in result.groups] == [
        (instruction, task, 7) for instruction, task, _ in ASKED
    ]
    assert result.alignment is not None
    assert result.alignment.kl > 0
    assert 0 <= result.alignment.top1_agreement <= 1

    write_results(result, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert stored["groups"][1]["speech"].keys() == {"BLEU", "chrF"}
    assert len(stored["replies"]) == 21
    assert stored["replies"][0]["reply_to_speech"] == result.replies[0]["reply_to_speech"]
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    assert table(result).row_count == 4 + 2


def test_a_served_model_answers_like_the_local_one(
    server: Server, local: LocalModel, questions: list[Question], folder: Path, tmp_path: Path
) -> None:
    with server.client() as client:
        served = evaluate("served", ServedModel(client, read_samples), questions, folder, 8, lambda n: None)
    assert served.alignment is None
    assert served.replies == evaluate("local", local, questions, folder, 8, lambda n: None).replies
    write_results(served, tmp_path)
    assert table(served).row_count == 4


def test_what_a_server_refuses_is_told(server: Server, questions: list[Question], folder: Path) -> None:
    long = questions[0].model_copy(update={"text": "word " * 3000})
    with server.client() as client, pytest.raises(InputError, match="400"):
        evaluate("served", ServedModel(client, read_samples), [long], folder, 8, lambda n: None)


def test_something_else_is_no_server() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(404, text="nothing here"))
    with httpx.Client(base_url="http://nowhere", transport=transport) as client, pytest.raises(InputError, match="404"):
        ServedModel(client, read_samples)


def test_each_recording_is_aligned_once(questions: list[Question]) -> None:
    assert recordings(questions) == [(f"{i}.wav", f"Sentence {i}.") for i in range(7)]


def test_means_over_tokens_and_over_places() -> None:
    items = [
        TokenAlignment(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, True, False])),
        TokenAlignment(torch.tensor([3.0]), torch.tensor([False])),
    ]
    result = summarize(items)
    assert (result.tokens, result.kl, result.top1_agreement) == (4, 3.0, 0.5)
    assert result.kl_by_place == [2.0, 2.0, 6.0]
    assert result.top1_agreement_by_place == [0.5, 1.0, 0.0]


def test_no_questions(local: LocalModel, folder: Path) -> None:
    with pytest.raises(InputError, match="no questions"):
        evaluate("tiny", local, [], folder, 8, lambda n: None)
