"""Text fields of forms and queries to request models."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.errors import InvalidRequest, ModelNotFound

Model = TypeVar("Model", bound=BaseModel)

REPEATABLE = {"stop", "timestamp_granularities", "include", "keywords"}  # and what ends in []
MAX_DEPTH = 64  # of lists and objects within each other
INTEGERS = range(-(1 << 63), 1 << 64)  # that go to the engine's process, signed or not
FLAT = {int, float, bool, type(None)}  # types of values that hold nothing to be checked


def read_json(text: str) -> Any:
    """What a JSON text holds; raises ValueError, as check_json does too."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    check_json(value)
    return value


def check_json(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raises ValueError for what JSON can say and nobody can use.

    That is deeper nesting, texts that are not Unicode (halves of surrogates), and integers of more than 64 bits.
    """
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # its error is a ValueError
        return
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if not isinstance(value, list):
        return
    kinds = set(map(type, value))
    if int in kinds:
        integers = [item for item in value if type(item) is int]
        if min(integers) not in INTEGERS or max(integers) not in INTEGERS:
            raise ValueError("an integer of more than 64 bits")
    if not kinds <= FLAT:
        if not depth:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        for item in value:
            check_json(item, depth - 1)


def from_json(value: Any) -> Any:
    """A list in JSON, where a text field holds one; else the value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    return read_json(value)


def as_list(value: Any) -> Any:
    """A list of texts, from JSON, or of one text."""
    value = from_json(value)
    return [value] if isinstance(value, str) else value


def parse_fields(model: type[Model], fields: Mapping[str, list[str]]) -> Model:
    """Every field's values, in order of arrival, to a request; raises InvalidRequest that names the field which is wrong."""
    values: dict[str, Any] = {}
    for name, texts in fields.items():
        if name not in REPEATABLE and not name.endswith("[]") and len(texts) > 1:
            raise InvalidRequest(f"The field {name!r} is given {len(texts)} times; give it once.", param=name)
        values[name] = texts[0] if len(texts) == 1 else texts
    return parse_values(model, values)


def parse_values(model: type[Model], values: Mapping[str, Any]) -> Model:
    """A JSON object to a request; raises InvalidRequest that names the field which is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            unknown = str(first["loc"][0])
            known = ", ".join(field.alias or name for name, field in model.model_fields.items())
            raise InvalidRequest(f"Unknown field {unknown!r}; there are {known}.", param=unknown) from error
        raise invalid_field(first) from error


def check_model(asked: str | None, names: Sequence[str]) -> None:
    """Raises ModelNotFound where a request asks for another model than those with these names; None asks for none in particular."""
    if asked is not None and asked not in names:
        there = ", ".join(map(repr, names))
        raise ModelNotFound(f"The model {asked!r} does not exist; this server has {there}.", param="model")


def invalid_field(error: Mapping[str, Any]) -> InvalidRequest:
    """One of pydantic's errors as a refusal that names the field."""
    where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    return InvalidRequest(f"{where or 'request'}: {error['msg']}", param=where or None)
