"""English sentences to speak: WordNet's examples and definitions, novels, fortunes, templates' orders and stories, and word lists.

`python -m models.smol.sentences OUT.txt` writes them one a line, in an order that depends on the seed alone, and OUT.dev.txt, which
shares none with them. The word lists bring every word of the LLM's vocabulary several times: rare words are what a small training
gets wrong. Debian's packages wordnet-base, r-cran-janeaustenr, fortunes, wamerican and wamerican-large hold the texts.
"""

import argparse
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from models.smol import needs
from models.smol.needs import COMMON, DICTIONARY, FORTUNES, WORDNET
from models.smol.templates import UNFIT, templated

LONGEST = 22  # words
LISTS = 5  # how often the word lists bring each word; the first word of a list is another token than elsewhere
SHARES = {"templates": 0.31, "examples": 0.24, "definitions": 0.2, "novels": 0.2, "fortunes": 0.05}
"""Of what is written, as long as a source lasts. The word lists come on top."""

_FORM = re.compile(r"[A-Z][A-Za-z'-]*(,? [A-Za-z][A-Za-z'-]*)+[.?!]")
_ODD = re.compile(
    r"[A-Z]{2}|(?<![\w'])[b-zB-HJ-Z]\b|(?<!')\b(etc|eg|ie|esp|usu|vs|Mrs?|Ms|Dr|St|Jr|Sr|Prof|Gen|Col|Inc|Co|Vol|Ltd)\b|(?<!s)'(\W|$)|\B-|-\B|\bI\.$"
)


def sentence(text: str) -> str | None:
    """The text as a sentence of 2 to `LONGEST` words of letters, or None where it is none."""
    text = re.sub(r"\s+", " ", text.replace("`", "'").replace("--", ", ")).replace(" ,", ",").strip(" ,;:'\"")
    if not text:
        return None
    text = text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")
    words = text.split()
    fits = 2 <= len(words) <= LONGEST and max(map(len, words)) <= 20 and _FORM.fullmatch(text)
    return text if fits and not _ODD.search(text) and not UNFIT.search(text) else None


def glosses() -> Iterator[str]:
    """WordNet's glosses: a definition, then examples in quotes."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{part}").read_text().splitlines():
            if " | " in line:
                yield line.split(" | ", 1)[1].strip()


def examples() -> Iterator[str]:
    """The examples in WordNet's glosses."""
    for gloss in glosses():
        yield from re.findall(r'"([^"]+)"', gloss)


def definitions() -> Iterator[str]:
    """WordNet's definitions of five words and more, each up to its first clause's end."""
    for gloss in glosses():
        clause = re.sub(r"\([^)]*\)", "", gloss.split('"')[0]).split(";")[0]
        if len(clause.split()) >= 5:
            yield clause


def fortunes(known: set[str]) -> Iterator[str]:
    """The sentences of Debian's fortunes that have known words only."""
    for file in sorted(FORTUNES.iterdir()):
        if file.suffix or file.is_symlink() or "art" in file.name:
            continue
        text = " ".join(file.read_text(errors="ignore").replace("\n%\n", " ~ ").split())
        for found in re.findall(r"(?<=[.?!~] )[A-Z][^.?!~\"]+[.?!](?= )", text):
            if all(word in known or word.lower() in known for word in re.findall(r"[\w'-]+", found)):
                yield found


def novels() -> Iterator[str]:
    """The clauses of five novels by Jane Austen: how books are written that people read aloud.

    "Sense and Sensibility" is left out; recordings of it are what hearing is measured on.
    """
    books = 'with(janeaustenr::austen_books(), writeLines(text[book != "Sense & Sensibility"]))'
    return clauses(subprocess.run(["Rscript", "-e", books], capture_output=True, text=True, check=True).stdout)


def clauses(book: str) -> Iterator[str]:
    """The clauses of five words and more; what is too long for one breath ends at a comma. Paragraphs are set apart by empty lines."""
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", book.replace("_", ""))
    for clause in re.split(r'[;:"()]|--|\n\n|(?<=[.?!])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)\s', text):
        breath: list[str] = []
        for piece in clause.strip().split(", "):
            if breath and len(f"{' '.join(breath)} {piece}".split()) > LONGEST:
                yield ", ".join(breath)
                breath = []
            breath.append(piece)
        if len(" ".join(breath).split()) >= 5:
            yield ", ".join(breath)


def spoken_words(tokenizer: Path, known: set[str]) -> list[str]:
    """The known words that are one token of the LLM each, sorted: in lower case, unless they are known as names only."""
    from tokenizers import Tokenizer

    tokens = {token[1:] for token in Tokenizer.from_file(str(tokenizer)).get_vocab() if token.startswith("Ġ")}
    words = {
        token for token in tokens if re.fullmatch(r"[A-Z]?[a-z]*[aeiouy][a-z]*", token) and not UNFIT.search(token)
    }
    lower = {word.lower() for word in words if len(word) > 1 and word.lower() in known}
    return sorted(lower | {word for word in words if len(word) > 1 and word in known and word.lower() not in known})


def word_lists(words: list[str], rng: random.Random) -> Iterator[str]:
    """Lists of 5 to 8 words that bring each word `LISTS` times."""
    for _ in range(LISTS):
        order = rng.sample(words, len(words))
        while order:
            n = rng.randint(5, 8)
            yield " ".join(order[:n])
            del order[:n]


def write(out: Path, count: int, dev: int, seed: int, tokenizer: Path | None) -> dict[str, int]:
    """Writes `count` sentences, or as many as there are, and `dev` others; returns how many are of each source."""
    rng = random.Random(seed)
    known = set(DICTIONARY.read_text().split())
    lists = [] if tokenizer is None else list(word_lists(spoken_words(tokenizer, set(COMMON.read_text().split())), rng))
    sources = {
        "examples": examples(),
        "fortunes": fortunes(known),
        "definitions": definitions(),
        "novels": novels(),
        "templates": templated(WORDNET, known, rng, round(SHARES["templates"] * count * 2)),
    }
    kept: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, texts in sources.items():
        fresh = list(dict.fromkeys(fitting for text in texts if (fitting := sentence(text)) and fitting not in seen))
        rng.shuffle(fresh)
        kept[name] = fresh[: round(SHARES[name] * (count - len(lists)))]
        seen.update(kept[name])
    everything = [text for texts in kept.values() for text in texts]
    rng.shuffle(everything)
    held_out, rest = everything[:dev], everything[dev:] + lists
    rng.shuffle(rest)
    out.with_suffix(".dev.txt").write_text("".join(f"{text}\n" for text in held_out))
    out.write_text("".join(f"{text}\n" for text in rest))
    return {name: len(texts) for name, texts in (kept | {"lists": lists}).items()}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--dev", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="the LLM's tokenizer.json, for the word lists")
    args = parser.parse_args()
    needs.demand(parser, needs.for_sentences())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(write(args.out, args.count, args.dev, args.seed, args.tokenizer))


if __name__ == "__main__":
    main()
