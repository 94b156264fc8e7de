"""What is spoken in training: sentences of letters, the same for the same seed, and apart from the development set."""

import random
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from models.smol import needs, sentences, templates

needs_texts = pytest.mark.skipif(bool(needs.for_sentences()), reason="; ".join(needs.for_sentences()))
WORDS = ["the", "river", "France", "gone"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    vocabulary = {
        token: i for i, token in enumerate(["<unk>", "ed", "Ġx", "Ġqzx", *("Ġ" + word for word in WORDS), "ĠThe"])
    }
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(path))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("he went to the river", "He went to the river."),
        ("`tis  the season,\nfriends!", "Tis the season, friends!"),
        ("I don't know--do you?", "I don't know, do you?"),
        ("there are 12 of them", None),
        ("cats, dogs, etc.", None),
        ("see Mr.", None),
        ("made by NATO", None),
        ("word", None),
        ("so " * 23, None),
        ("he said 'no' to it", None),
        ("", None),
    ],
)
def test_a_text_becomes_a_sentence_or_is_left(text: str, expected: str | None) -> None:
    assert sentences.sentence(text) == expected


@pytest.mark.parametrize(
    ("noun", "many"), [("city", "cities"), ("box", "boxes"), ("day", "days"), ("woman", "women"), ("human", "humans")]
)
def test_plurals(noun: str, many: str) -> None:
    assert templates.plural(noun) == many


def test_books_are_cut_where_one_breathes() -> None:
    book = """CHAPTER ONE

Mr. Elton had, in the _course_
of his life; seen many a man--and no woman. "Indeed!" said she. """ + ", ".join(["one two three four five"] * 5)
    assert list(sentences.clauses(book)) == [
        "Mr. Elton had, in the course of his life",
        "one two three four five, one two three four five, one two three four five, one two three four five",
        "one two three four five",
    ]


def test_word_lists_bring_each_word_as_often() -> None:
    lists = list(sentences.word_lists([f"w{i}" for i in range(100)], random.Random(0)))
    words = " ".join(lists).split()
    assert {words.count(word) for word in words} == {sentences.LISTS}
    assert max(len(line.split()) for line in lists) <= 8


@needs_texts
def test_the_vocabularys_words_are_those_in_the_dictionary(tokenizer: Path) -> None:
    assert sentences.spoken_words(tokenizer, {"the", "river", "France", "gone", "ed"}) == sorted(WORDS)


@pytest.fixture
def short_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A twentieth of WordNet, for speed."""
    (folder := tmp_path / "wordnet").mkdir()
    for path in filter(Path.is_file, needs.WORDNET.iterdir()):  # Debian's further package puts a folder beside them
        (folder / path.name).write_text("".join(path.read_text().splitlines(keepends=True)[::20]))
    monkeypatch.setattr(sentences, "WORDNET", folder)


@needs_texts
@pytest.mark.usefixtures("short_wordnet")
def test_sentences_are_unique_plain_and_the_same_again(tmp_path: Path, tokenizer: Path) -> None:
    out, again = tmp_path / "a.txt", tmp_path / "b.txt"
    shares = sentences.write(out, 1000, 50, 3, tokenizer)
    assert sentences.write(again, 1000, 50, 3, tokenizer) == shares
    assert out.read_bytes() == again.read_bytes()
    lines, dev = out.read_text().splitlines(), out.with_suffix(".dev.txt").read_text().splitlines()
    assert len(dev) == 50
    assert not set(lines) & set(dev)
    whole = [line for line in lines if line[-1] in ".?!"]
    assert len(set(whole)) == len(whole) > 900
    assert all(re.fullmatch(r"[A-Z][A-Za-z ,'-]*[.?!]", line) for line in whole + dev)
    assert len(lines) + len(dev) == sum(shares.values())
    assert shares["lists"] == len(lines) - len(whole) > 0
