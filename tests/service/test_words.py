"""Which word of `blsp serve` is MODEL: values of options are not, whosever the options are."""

import pytest

from service.settings import DEFAULT_MODEL
from service.words import MANY, model_first

VLLMS = {"--max-model-len": 1, "--enforce-eager": 0, "--served-model-names": MANY, "--swap": 1}
DEFAULT = str(DEFAULT_MODEL)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", [DEFAULT]),
        ("M", ["M"]),
        ("--max-model-len 1024", [DEFAULT, "--max-model-len", "1024"]),
        ("--max-model-len 1024 M", ["M", "--max-model-len", "1024"]),
        ("--max-model-len=1024 M", ["M", "--max-model-len=1024"]),
        ("M --enforce-eager --port 1", ["M", "--enforce-eager", "--port", "1"]),
        ("--enforce-eager M", ["M", "--enforce-eager"]),
        ("--port 1 M", ["M", "--port", "1"]),
        (
            "--max-queued-audio-seconds 5 --log-format json M",
            ["M", "--max-queued-audio-seconds", "5", "--log-format", "json"],
        ),
        ("M --served-model-names a b --port 1", ["M", "--served-model-names", "a", "b", "--port", "1"]),
        ("--served-model-names a b", [DEFAULT, "--served-model-names", "a", "b"]),
        ("--swap -1 M", ["M", "--swap", "-1"]),
        ("M --nonsense 1", ["M", "--nonsense", "1"]),
        ("--help", [DEFAULT, "--help"]),
        ("A B", ["A", "B"]),  # one too many, for the parser to refuse
    ],
)
def test_the_model_comes_first(line: str, expected: list[str]) -> None:
    assert model_first(line.split(), VLLMS.get) == expected


def test_a_model_that_the_environment_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLSP_MODEL", "other")
    assert model_first(["--max-model-len", "1024"], VLLMS.get) == ["other", "--max-model-len", "1024"]


def test_vllms_own_parser_is_asked() -> None:
    from service.engine import values_of

    assert [values_of(name) for name in ("--max-model-len", "--max_model_len", "--nonsense")] == [1, 1, None]
    assert values_of("--enforce-eager") == 0
