"""The demo LLM's tokenizer: one token a word, lowercase, punctuation ignored."""

import random
import re
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from models.demo.families import FAMILIES, INTENTS
from models.demo.tasks import INSTRUCTIONS, NO_ANSWER, QUESTIONS, associate, restate
from models.demo.world import TEST_SHARE, Sentence, digits, sample, spoken_words
from models.prompt import ASSISTANT, HUMAN

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_PUNCTUATION = r"[^\w\s']"
_SAMPLES_PER_FAMILY = 4000
_OTHER_WORDS = (
    "tell listen hear sound clip voice person language text english answer question can could would short one word and"
)
"""What else an instruction may say."""


@cache
def vocabulary() -> tuple[str, ...]:
    """All words that the LLM reads or writes, sorted."""
    rng = random.Random(TEST_SHARE)
    words = {*spoken_words(), *INTENTS, NO_ANSWER, *_OTHER_WORDS.split()}
    for family in FAMILIES:
        for _ in range(_SAMPLES_PER_FAMILY):
            words.update(_written(sample(rng, family), rng))
    for wordings in [*INSTRUCTIONS.values(), *(wordings for _, wordings in QUESTIONS.values())]:
        words.update(re.sub(_PUNCTUATION, " ", " ".join(wordings)).lower().split())
    return tuple(sorted(words))


def _written(sentence: Sentence, rng: random.Random) -> list[str]:
    """The words of what is written about a sentence."""
    return f"{sentence.german} {sentence.spanish} {restate(sentence, rng)} {associate(sentence, rng)}".split()


def build() -> PreTrainedTokenizerFast:
    """The tokenizer. The prompt's two markers are one token each; digits are read as words; anything unknown is <unk>."""
    ids = {token: i for i, token in enumerate([*SPECIAL.values(), HUMAN, ASSISTANT, *vocabulary()])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace("\u2019", "'"),
            *(normalizers.Replace(str(digit), f" {word} ") for digit, word in enumerate(digits())),
            normalizers.Replace(Regex(_PUNCTUATION), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in (*SPECIAL.values(), HUMAN, ASSISTANT)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **SPECIAL)
