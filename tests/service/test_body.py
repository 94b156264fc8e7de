import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audio.upload import GrowingBuffer
from service.errors import InvalidRequest, UploadTooLarge
from service.http.body import MAX_FIELD_BYTES, MAX_PARTS, Fields, read_body


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def read(body: bytes, content_type: str, size: int = 1 << 20, limit: int = 1 << 24) -> tuple[Fields, bytes]:
    file = GrowingBuffer(limit)
    fields = await read_body(pieces(body, size), content_type, file)
    return fields, file.read()


def form(file: bytes | None, fields: dict[str, str | list[str]]) -> tuple[bytes, str]:
    """A form as a real client sends it."""
    files = {"file": ("a.wav", file)} if file is not None else {"other": ("x", b"x")}
    request = httpx.Request("POST", "http://test", data=fields, files=files)
    return request.read(), request.headers["content-type"]


@given(
    st.binary(max_size=2000),
    st.dictionaries(st.sampled_from(["instruction", "stop", "model"]), st.text(max_size=50)),
    st.integers(1, 700),
)
async def test_any_form_in_pieces_of_any_size_gives_file_and_fields(
    file: bytes, fields: dict[str, str], size: int
) -> None:
    body, content_type = form(file, dict(fields))
    assert await read(body, content_type, size) == ({name: [value] for name, value in fields.items()}, file)


async def test_a_repeated_field_keeps_all_its_values() -> None:
    body, content_type = form(b"x", {"stop": ["a", "b"]})
    assert (await read(body, content_type))[0] == {"stop": ["a", "b"]}


@pytest.mark.parametrize("content_type", ["audio/wav", "", "application/x-www-form-urlencoded"])
async def test_a_body_that_is_no_form_is_audio(content_type: str) -> None:
    assert await read(b"RIFF...", content_type, size=3) == ({}, b"RIFF...")


@given(st.binary(max_size=200), st.integers(1, 300))
async def test_json_gives_file_and_fields(file: bytes, size: int) -> None:
    audio = {"data": base64.b64encode(file).decode(), "format": "wav"}
    values = {"model": "a", "input_audio": audio, "temperature": 0.5, "stream": True, "include": ["x"], "prompt": None}
    body = json.dumps(values).encode()
    fields, read_file = await read(body, "application/json; charset=utf-8", size)
    assert read_file == file
    assert fields == {"model": ["a"], "temperature": ["0.5"], "stream": ["true"], "include": ['["x"]']}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "can't be read: not valid JSON"),
        (b"RIFF\xff", "can't be read"),
        (b"[]", "input_audio"),
        (b'{"file": "x"}', "input_audio"),
        (b'{"input_audio": "x"}', "input_audio"),
        (b'{"input_audio": {}}', "base64"),
        (b'{"input_audio": {"data": "\xc3\xa4"}}', "base64"),
        (b'{"input_audio": ' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
        (b'{"input_audio": [' + b"[]," * 20_000 + b"[]]}", "more than 10,000"),
    ],
)
async def test_json_without_a_recording_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await read(body, "application/json")


async def test_a_recording_in_json_has_the_limit_of_others() -> None:
    body = json.dumps({"input_audio": {"data": base64.b64encode(bytes(30)).decode()}}).encode()
    with pytest.raises(UploadTooLarge):
        await read(body, "application/json", limit=20)


@given(st.binary(max_size=300))
async def test_garbage_in_a_form_is_refused(garbage: bytes) -> None:
    with pytest.raises(InvalidRequest):
        await read(garbage, "multipart/form-data; boundary=b")


async def test_a_form_cut_short_is_refused() -> None:
    body, content_type = form(b"x" * 100, {"instruction": "hi"})
    with pytest.raises(InvalidRequest, match="closing boundary"):
        await read(body[:-10], content_type)


async def test_a_form_without_file_names_the_field() -> None:
    body, content_type = form(None, {"instruction": "hi"})
    with pytest.raises(InvalidRequest) as error:
        await read(body, content_type)
    assert error.value.param == "file"


@pytest.mark.parametrize("content", [b"\xff\xfb\x90" * 100, b"R" * (MAX_FIELD_BYTES + 1)])
async def test_a_file_in_another_part_is_told_where_it_belongs(content: bytes) -> None:
    request = httpx.Request("POST", "http://test", files={"audio": ("a.mp3", content)})
    with pytest.raises(InvalidRequest, match="is its part 'audio'; the recording goes into the part 'file'") as caught:
        await read(request.read(), request.headers["content-type"])
    assert caught.value.param == "file"


async def test_a_form_without_file_names_what_is_there() -> None:
    request = httpx.Request("POST", "http://test", files={"audio": (None, "text")})
    with pytest.raises(InvalidRequest, match="no part named 'file', only 'audio'; the recording goes into 'file'"):
        await read(request.read(), request.headers["content-type"])


async def test_a_form_without_boundary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        await read(b"x", "multipart/form-data")


async def test_a_boundary_of_any_length_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="boundary"):
        await read(b"x", f"multipart/form-data; boundary={'b' * 257}")


@given(st.text(st.characters(codec="latin-1")))
async def test_no_content_type_is_a_defect(garbage: str) -> None:
    with contextlib.suppress(InvalidRequest):
        await read(b"x", f"multipart/form-data; boundary{garbage}")


@pytest.mark.parametrize("charset", ["idna", "undefined", "punycode", "not-there"])
async def test_a_file_may_be_called_in_any_letters(charset: str) -> None:
    head = f"Content-Disposition: form-data; name=\"file\"; filename*={charset}''a%ff.wav".encode()
    body = b"--b\r\n" + head + b"\r\n\r\nsound\r\n--b--\r\n"
    assert await read(body, "multipart/form-data; boundary=b") == ({}, b"sound")


async def test_a_list_of_too_many_values_is_refused_before_it_is_read() -> None:
    body, content_type = form(b"x", {"history": " [" + "{}," * 20_000 + "{}]"})
    with pytest.raises(InvalidRequest, match="more than 10,000 lists and objects"):
        await read(body, content_type)
    text = "{}," * 20_000
    body, content_type = form(b"x", {"instruction": text})
    assert (await read(body, content_type))[0] == {"instruction": [text]}


async def test_a_boundary_that_is_numbered_without_end_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'Content-Type' can't be read"):
        await read(b"x", f"multipart/form-data; boundary*{'1' * 5000}=b")


@pytest.mark.parametrize("more", [0, 1])
async def test_a_form_of_too_many_parts_is_refused(more: int) -> None:
    body, content_type = form(b"x", {"stop": ["a"] * (MAX_PARTS - 1 + more)})
    if more:
        with pytest.raises(InvalidRequest, match=f"{MAX_PARTS} parts"):
            await read(body, content_type)
    else:
        await read(body, content_type)


async def test_two_files_are_refused() -> None:
    request = httpx.Request("POST", "http://test", files=[("file", b"a"), ("file", b"b")])
    with pytest.raises(InvalidRequest, match="two parts"):
        await read(request.read(), request.headers["content-type"])


async def test_a_file_over_the_limit_is_refused_and_the_rest_is_read() -> None:
    body, content_type = form(b"x" * 5000, {})
    left = pieces(body, 100)
    with pytest.raises(UploadTooLarge):
        await read_body(left, content_type, GrowingBuffer(1000))
    assert [piece async for piece in left] == []


async def test_a_field_over_the_limit_is_refused() -> None:
    body, content_type = form(b"x", {"instruction": "x" * (1 << 21)})
    with pytest.raises(UploadTooLarge) as error:
        await read(body, content_type)
    assert error.value.param == "instruction"


async def test_a_field_that_is_not_utf8_is_refused() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="instruction"\r\n\r\n\xff\xfe\r\n--b--\r\n'
    with pytest.raises(InvalidRequest, match="UTF-8"):
        await read(body, "multipart/form-data; boundary=b")


@pytest.mark.parametrize("behind", [False, True])
async def test_before_the_first_byte_of_audio_it_is_told_which_fields_are_there(behind: bool) -> None:
    parts: list[Any] = [("model", (None, "a")), ("file", ("a.wav", b"x")), ("prompt", (None, "b"))]
    request = httpx.Request("POST", "http://test", files=[*parts[1:], parts[0]] if behind else parts)
    file = GrowingBuffer(100)
    told: list[tuple[Fields, int]] = []
    await read_body(
        pieces(request.read(), 7),
        request.headers["content-type"],
        file,
        lambda fields: told.append((dict(fields), file.received)),
    )
    assert told == [({} if behind else {"model": ["a"]}, 0)]


async def test_json_and_bare_audio_tell_it_too() -> None:
    told: list[Fields] = []
    body = {"model": "a", "input_audio": {"data": "eA=="}, "prompt": "b"}
    await read_body(pieces(json.dumps(body).encode(), 9), "application/json", GrowingBuffer(9), told.append)
    await read_body(pieces(b"RIFF", 2), "audio/wav", GrowingBuffer(9), told.append)
    assert told == [{"model": ["a"], "prompt": ["b"]}, {}]
