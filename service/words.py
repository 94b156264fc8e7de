"""The words of `blsp serve`: which is MODEL, and which are values of options, vLLM's among them."""

from collections.abc import Callable, Sequence

from service.settings import ServeSettings

MANY = -1


def model_first(words: Sequence[str], values_of_vllms: Callable[[str], int | None]) -> list[str]:
    """The same words with MODEL in front: behind an option of vLLM's, a value would be taken for it.

    Without one it is what the environment or the config file names, else the default.
    `values_of_vllms` tells how many values an option of vLLM's takes, `MANY` for a list; None where it has none of that name.
    """
    models: list[str] = []
    others: list[str] = []
    left = 0  # values that may still come
    for word in words:
        if word.startswith("-") and not _is_number(word):
            name, _, value = word.partition("=")
            ours = 0 if value else _values_of_ours(name)
            known = ours if ours is not None else values_of_vllms(name)
            left = MANY if known is None else known  # what follows an option that nobody knows belongs to it
            others.append(word)
        elif left:
            left -= left != MANY
            others.append(word)
        else:
            models.append(word)
    return [*(models or [ServeSettings().model]), *others]


def _is_number(word: str) -> bool:
    return word[1:].replace(".", "", 1).isdigit()


def _values_of_ours(name: str) -> int | None:
    field = ServeSettings.model_fields.get(name.lstrip("-").removeprefix("no-").replace("-", "_"))
    if name in ("-h", "--help"):
        return 0
    return None if field is None else int(field.annotation is not bool)
