"""Nouns that inflect as a template asks: `"wo ist {place:nom,nächst}"` becomes "wo ist die nächste bibliothek"."""

from dataclasses import dataclass

_ARTICLES = {
    "nom": {"m": "der", "f": "die", "n": "das"},
    "akk": {"m": "den", "f": "die", "n": "das"},
    "dat": {"m": "dem", "f": "der", "n": "dem"},
    "zu": {"m": "zum", "f": "zur", "n": "zum"},
    "ein": {"m": "einen", "f": "eine", "n": "ein"},
    "von": {"m": "vom", "f": "von der", "n": "vom"},
}
_SPANISH_ARTICLES = {
    "def": {"m": "el", "f": "la"},
    "a": {"m": "al", "f": "a la"},
    "de": {"m": "del", "f": "de la"},
}


@dataclass(frozen=True)
class GermanNoun:
    """Formats as `{noun:CASE}` or `{noun:CASE,adjective stem}` with the definite article (weak adjective endings), bare without a case."""

    gender: str
    noun: str

    def __format__(self, spec: str) -> str:
        if not spec:
            return self.noun
        case, _, stem = spec.partition(",")
        words = [_ARTICLES[case][self.gender], stem + self._ending(case) if stem else "", self.noun]
        return " ".join(word for word in words if word)

    def _ending(self, case: str) -> str:
        return "e" if case == "nom" or (case == "akk" and self.gender != "m") else "en"


@dataclass(frozen=True)
class SpanishNoun:
    """Formats as `{noun:ARTICLE}` or `{noun:ARTICLE,adjective}`; an adjective that does not end in e takes o or a by gender.

    `{noun:solo,ADJECTIVE}` is the adjective alone.
    """

    gender: str
    noun: str

    def __format__(self, spec: str) -> str:
        if not spec:
            return self.noun
        article, _, stem = spec.partition(",")
        if article == "solo":
            return self._agree(stem)
        words = [_SPANISH_ARTICLES[article][self.gender], self.noun, self._agree(stem) if stem else ""]
        return " ".join(word for word in words if word)

    def _agree(self, stem: str) -> str:
        return stem if stem.endswith("e") else stem + {"m": "o", "f": "a"}[self.gender]
