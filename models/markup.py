"""Which of a tokenizer's tokens a chat template could use as markup, and how to write them as text.

Markup are all tokens that were added to the vocabulary, but words (letters and digits) and runs of white space that are not marked as
special: those are how the text itself is written.
"""

import re
from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerBase


class Words:
    """A tokenizer that knows what is markup; `markup` finds all of it in a text, `special` what is special."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        named = set(tokenizer.all_special_tokens)  # by far not all that are special
        signs = {token.content for token in added if _is_sign(token.content)}
        self.special = _any_of(special | named)
        self.markup = _any_of(special | named | signs)
        self._unspecial = _any_of((named | signs) - special)

    def encode(self, text: str) -> list[int]:
        """Ids of text that the format itself has written; markup in it counts."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def spell(self, text: str) -> list[int]:
        """Ids of what a message says; markup in it is spelled out."""
        ids: list[int] = []
        for piece in _cut_within(text, self._unspecial):  # the tokenizer itself only spares what is marked as special
            ids += self.tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=True)
        return ids


def _is_sign(token: str) -> bool:
    """Whether a token may be markup: it is neither a word nor white space (▁ is SentencePiece's), and can be spelled out."""
    return len(token) > 1 and not all(c.isalnum() or c.isspace() or c == "▁" for c in token)


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _cut_within(text: str, token: re.Pattern[str]) -> Iterator[str]:
    """The text in pieces, cut behind the first character of each such token: no piece holds one."""
    start = 0
    while found := token.search(text, start):
        yield text[start : found.start() + 1]
        start = found.start() + 1
    yield text[start:]
