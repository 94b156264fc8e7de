"""JSON within fields: what it may hold."""

from typing import Any

import pytest

from service.answers.fields import MAX_DEPTH, check_json, read_json


def nested(depth: int, value: Any = 0) -> str:
    return "[" * depth + str(value) + "]" * depth


@pytest.mark.parametrize(
    "text", [nested(MAX_DEPTH, '"x"'), '{"a": [1, 2.5, true, null, "ü", "\\ud83d\\ude00"]}', "[]", "1"]
)
def test_what_is_fine(text: str) -> None:
    read_json(text)


@pytest.mark.parametrize(
    "text",
    [
        nested(MAX_DEPTH + 1, '"x"'),
        nested(100_000),  # more than Python's parser takes
        '{"a":' * 900 + "1" + "}" * 900,
        '["\\ud800"]',
        '{"\\udc00": 1}',
        '[1, 2, [3, {"a": "x\\ud83d"}]]',
        "[1",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|nested|surrogates"):
        read_json(text)


@pytest.mark.parametrize("integer", [-(1 << 63), (1 << 64) - 1])
def test_integers_of_64_bits_are_fine(integer: int) -> None:
    check_json({"top_k": integer, "tokens": [True, integer, 0.5]})


@pytest.mark.parametrize("integer", [-(1 << 63) - 1, 1 << 64])
def test_longer_integers_are_refused_wherever_they_stand(integer: int) -> None:
    for value in ({"top_k": integer}, {"a": {"b": [0, 0.5, integer, None]}}):
        with pytest.raises(ValueError, match="64 bits"):
            check_json(value)


def test_lists_of_numbers_may_be_long() -> None:
    check_json({"tokens": [1] * 1_000_000})
