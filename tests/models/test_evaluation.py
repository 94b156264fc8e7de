import pytest

from models.evaluation.scores import Pair, Question, first_label, score, score_groups


def test_word_error_rate() -> None:
    assert score("wer", ["The cat sat.", "a b"], ["the cat sat", "a c"]) == {"WER": pytest.approx(20)}
    assert score("wer", ["It's 5 o'clock"], ["it's five o'clock"])["WER"] == pytest.approx(100 / 3)


def test_translations() -> None:
    same = ["Das Wetter ist heute wirklich sehr schön."]
    assert score("bleu", same, same) == {"BLEU": pytest.approx(100), "chrF": pytest.approx(100)}
    worse = score("bleu", ["Das Wetter ist heute schön."], same)
    assert 0 < worse["BLEU"] < 60
    assert worse["BLEU"] < worse["chrF"] < 90


def test_exact_match_is_strict_but_for_space() -> None:
    assert score("exact", [" A  b.\n", "A b", "a b."], ["A b."] * 3) == {"exact": pytest.approx(100 / 3)}


def test_accuracy_takes_the_first_label() -> None:
    replies = ["The intent is: Travel.", "weather", "It is travel, not weather", "traveller"]
    assert score("accuracy", replies, ["travel", "weather", "weather", "travel"]) == {"accuracy": 50}


def test_longer_labels_win() -> None:
    assert first_label("a light blue house", {"light", "light blue", "blue"}) == "light blue"
    assert first_label("red", {"blue"}) is None


def test_groups_are_scored_apart() -> None:
    def question(task: str, instruction: str, reference: str) -> Question:
        return Question(audio="a", text="t", instruction=instruction, reference=reference, task=task)

    questions = [question("exact", "one", "x"), question("wer", "two", "a b"), question("exact", "one", "y")]
    assert score_groups(questions, [Pair("x", "x"), Pair("a b", "a c"), Pair("y", "z")]) == [
        ("exact", "one", 2, {"exact": 100}, {"exact": 50}),
        ("wer", "two", 1, {"WER": 0}, {"WER": 50}),
    ]
