import random

import pytest

from models.demo import tasks
from models.demo.continuations import restated_share
from models.demo.corpus import draw_text
from models.demo.families import FAMILIES, INTENTS, TEMPLATE_THOUGHTS
from models.demo.lexicon import SLOTS
from models.demo.train_llm import draw_task
from models.demo.world import compose, digits, entries, is_test, sample, sentences, spoken_words, thoughts


def test_the_world_is_as_large_as_promised():
    assert len(spoken_words()) >= 300
    assert len(INTENTS) >= 7
    assert len(digits()) == 10


def test_the_split_keeps_a_twentieth_and_the_two_sides_share_no_sentence():
    rng = random.Random(0)
    assert sum(is_test(sample(rng).text) for _ in range(4000)) / 4000 == pytest.approx(1 / 20, abs=0.015)
    training, test = ({s.text for s in sentences(1, 500, test=side)} for side in (False, True))
    assert not training & test
    assert len(training) == len(test) == 500


def test_no_test_sentence_is_spoken_or_read_in_training():
    rng = random.Random(0)
    assert not any(is_test(draw_text(rng)[0]) for _ in range(3000))
    assert not any(is_test(draw_task(rng)[0]) for _ in range(3000))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.english)
def test_every_word_of_a_family_is_translated(family):
    rng = random.Random(0)
    for _ in range(20):
        sentence = sample(rng, family)
        for text in (sentence.text, sentence.german, sentence.spanish):
            assert text == text.lower() == " ".join(text.split())
            assert not set("{}:|") & set(text)


def test_articles_and_adjectives_agree():
    family = next(f for f in FAMILIES if f.english == "where is|the nearest {place}")
    translations = {}
    for entry in entries("place"):
        sentence = compose(family, {"place": entry})
        translations[entry.english] = (sentence.german, sentence.spanish)
    assert translations["library"] == ("wo ist die nächste bibliothek", "dónde está la biblioteca más cercana")
    assert translations["harbor"] == ("wo ist der nächste hafen", "dónde está el puerto más cercano")


def test_each_content_word_makes_one_think_of_something_of_its_own():
    ideas = {entry.english: entry.thought for slot in SLOTS for entry in entries(slot)} | TEMPLATE_THOUGHTS
    assert len(set(ideas.values())) == len(ideas)
    assert not set(thoughts().values()) & set(spoken_words())


def test_restating_reorders_and_brings_back_every_word():
    rng = random.Random(0)
    for sentence in sentences(1, 300):
        reply = tasks.restate(sentence, rng)
        assert restated_share(sentence.text, reply) == 1
        assert len(sentence.chunks) == 1 or sentence.text not in reply


def test_associating_brings_back_no_content_word():
    rng = random.Random(0)
    assert all(restated_share(s.text, tasks.associate(s, rng)) == 0 for s in sentences(1, 300))


def test_questions_are_answered_from_the_sentence():
    sentence = next(s for s in sentences(1, 1000) if s.slots and s.slots[0][0] == "city")
    assert tasks.answer(sentence, "city").split(" and ")[0] == sentence.slots[0][1]
    assert tasks.answer(sentence, "animal") == tasks.NO_ANSWER
