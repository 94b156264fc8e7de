import json
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest, WrongMediaType
from service.http.json_route import MAX_CONTAINERS, MAX_VALUES, JsonRoute, check_values


@pytest.mark.parametrize(
    "text",
    [
        b'{"messages": [' + b"{}," * MAX_CONTAINERS + b"{}]}",
        b"[" * (MAX_CONTAINERS + 1),
        b"[" + b"1," * (MAX_VALUES + 1) + b"1]",
        b'{"a": "\\"", "b": [' + b"[]," * MAX_CONTAINERS + b"[]]}",
    ],
    ids=["objects", "depth", "values", "behind an escaped quote"],
)
def test_too_many_values_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="more than"):
        check_values(text)


@pytest.mark.parametrize("text", ["{[," * MAX_VALUES, '\\"{' * MAX_CONTAINERS, "\\\\{" * MAX_CONTAINERS])
def test_what_a_text_holds_does_not_count(text: str) -> None:
    check_values(json.dumps({"content": text, "more": [text]}).encode())


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_any_small_json_passes(value: object) -> None:
    check_values(json.dumps(value).encode())
    check_values(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@given(st.binary())
def test_what_is_no_json_is_somebody_elses_to_refuse(text: bytes) -> None:
    check_values(text)


@pytest.fixture
def http() -> Iterator[TestClient]:
    """A client of an endpoint that takes a JSON object, and answers with the number of its values."""
    app = FastAPI()
    app.router.route_class = JsonRoute

    @app.post("/")
    async def count(body: dict[str, object]) -> int:
        return len(body)

    with TestClient(app) as http:
        yield http


def test_an_endpoint_does_not_read_it(http: TestClient) -> None:
    with pytest.raises(InvalidRequest, match="more than"):
        http.post(
            "/",
            content=b'{"a": [' + b"[]," * MAX_CONTAINERS + b"[]]}",
            headers={"content-type": "application/json"},
        )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_an_encoding_in_which_nothing_can_be_counted_is_refused(http: TestClient, encoding: str) -> None:
    text = '{"a": "\\"", "b": [' + "[]," * MAX_CONTAINERS + "[]]}"
    with pytest.raises(InvalidRequest, match="UTF-8"):
        http.post("/", content=text.encode(encoding), headers={"content-type": "application/json"})


def test_a_mark_of_utf_8_is_read_over(http: TestClient) -> None:
    content = '{"a": "é"}'.encode("utf-8-sig")
    assert http.post("/", content=content, headers={"content-type": "application/json"}).json() == 1


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json"])
def test_json_is_read_by_whatever_name(http: TestClient, kind: str) -> None:
    assert http.post("/", content=b'{"a": 1, "b": 2}', headers={"content-type": kind}).json() == 2


@pytest.mark.parametrize(
    ("kind", "said"), [("text/plain", "is 'text/plain'"), ("application/jsonp", "jsonp'"), ("", "is missing")]
)
def test_what_is_not_said_to_be_json_is_not_read(http: TestClient, kind: str, said: str) -> None:
    with pytest.raises(WrongMediaType, match=said):
        http.post("/", content=b'{"a": 1, "b": 2}', headers={"content-type": kind})
