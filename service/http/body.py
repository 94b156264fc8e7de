"""Reading a request's body as it arrives: a form with a file in it, JSON with a recording in it, or nothing but audio.

The file goes, byte by byte as it comes, into a GrowingBuffer from which a decoder reads at the same time.
"""

import asyncio
import json
from collections.abc import AsyncIterable, Callable
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from service.answers.conversation import decode_base64
from service.answers.fields import read_json
from service.audio.upload import GrowingBuffer
from service.errors import ApiError, InvalidRequest, UploadTooLarge
from service.http.json_route import check_values

MAX_FIELD_BYTES = 1 << 20
MAX_PARTS = 1000
FILE = "file"
JSON = "application/json"

Fields = dict[str, list[str]]
Begin = Callable[[Fields], None]


async def read_body(
    chunks: AsyncIterable[bytes], content_type: str, file: GrowingBuffer, begin: Begin = lambda fields: None
) -> Fields:
    """Feeds the audio of a body to `file` and returns its other fields, in order of their arrival.

    A body that is neither `multipart/form-data` nor JSON is all audio. Before the first byte of it, `begin` hears which fields have come
    so far. After an error the rest of the body is read and dropped, so that the client gets to read the answer. Raises InvalidRequest for
    a form or JSON that is damaged or has no recording, and what `begin` and `file.feed` raise.
    """
    kind = Message()
    kind["content-type"] = content_type
    form: _Form | _Json | None = None
    if kind.get_content_type() == "multipart/form-data":
        boundary = _param(kind, "content-type", "boundary")
        if not isinstance(boundary, str):
            raise InvalidRequest("The content type multipart/form-data has no boundary.")
        try:
            form = _Form(boundary, file, begin)
        except FormParserError as bad:
            raise InvalidRequest(f"The form's boundary is no good one: {bad}.") from bad
    elif kind.get_content_type() == JSON:
        form = _Json(file, begin)
    else:
        begin({})
    consume: Callable[[bytes], None] = form.feed if form else file.feed
    error: ApiError | None = None
    async for chunk in chunks:
        try:
            if error is None:
                consume(chunk)
        except ApiError as first:
            error = first
    if error is not None:
        raise error
    fields = await form.finish() if form else {}
    file.finish()
    return fields


def _param(message: Message, header: str, name: str) -> Any:
    """A parameter of a header: a text, three where it says in which letters and language, or None. Raises InvalidRequest."""
    try:
        return message.get_param(name, header=header)
    except ValueError as error:  # email's parser stumbles over what is numbered without end
        raise InvalidRequest(f"The header {header.title()!r} can't be read.") from error


class _Json:
    """An object whose `input_audio` holds the recording, as in chats; what else it has are fields."""

    def __init__(self, file: GrowingBuffer, begin: Begin) -> None:
        self._file = file
        self._begin = begin
        self._text = bytearray()

    def feed(self, data: bytes) -> None:
        self._text += data

    async def finish(self) -> Fields:
        audio, fields = await asyncio.to_thread(self._read)  # megabytes of text, for which the event loop has no time
        self._begin(fields)
        await asyncio.to_thread(self._file.feed, audio)
        return fields

    def _read(self) -> tuple[bytes, Fields]:
        check_values(self._text)
        try:
            body = read_json(self._text.decode())
        except ValueError as error:
            raise InvalidRequest(f"The body can't be read: {error}.") from error
        audio = body.pop("input_audio", None) if isinstance(body, dict) else None
        if not isinstance(audio, dict):
            raise InvalidRequest('The recording goes into "input_audio": {"data": "<base64>"}.', param="input_audio")
        fields = {name: [_as_text(value)] for name, value in body.items() if value is not None}
        return decode_base64(audio.get("data"), "input_audio.data"), fields


def _as_text(value: Any) -> str:
    """A value as a form has it."""
    return value if isinstance(value, str) else json.dumps(value)


class _Form:
    """A multipart form, parsed piece by piece."""

    def __init__(self, boundary: str, file: GrowingBuffer, begin: Begin) -> None:
        self.fields: Fields = {}
        self._file = file
        self._begin = begin
        self._has_file = self._ended = self._is_file = False
        self._name = ""
        self._value = bytearray()
        self._header, self._header_value = bytearray(), bytearray()
        self._parts = 0
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": lambda data, start, end: self._part_data(data[start:end]),
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"The form is damaged: {error}.") from error

    async def finish(self) -> Fields:
        if not self._ended:
            raise InvalidRequest("The form ends before its closing boundary.")
        if not self._has_file:
            raise _no_file(self.fields)
        return self.fields

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        self._name, self._value, self._is_file = "", bytearray(), False

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            disposition = Message()
            disposition["content-disposition"] = self._header_value.decode("utf-8", "replace")
            name = _param(disposition, "content-disposition", "name")
            self._name = name if isinstance(name, str) else ""
            self._is_file = _param(disposition, "content-disposition", "filename") is not None
        self._header, self._header_value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        if not self._name:
            raise InvalidRequest("A part of the form has no name.")
        if self._name == FILE:
            if self._has_file:
                raise InvalidRequest("The form has two parts named 'file'; send one recording.", param=FILE)
            self._has_file = True
            self._begin(self.fields)

    def _part_data(self, data: bytes) -> None:
        if self._name == FILE:
            self._file.feed(data)
            return
        self._value += data
        if len(self._value) > MAX_FIELD_BYTES:
            if self._is_file:
                raise _misplaced(self._name)
            raise UploadTooLarge(f"The field {self._name!r} is longer than {MAX_FIELD_BYTES} bytes.", param=self._name)

    def _part_end(self) -> None:
        if self._name == FILE:
            self._file.finish()
            return
        if self._value.lstrip().startswith(b"["):  # a list in JSON, which is read on the event loop
            check_values(self._value)
        try:
            self.fields.setdefault(self._name, []).append(self._value.decode())
        except UnicodeDecodeError as error:
            if self._is_file:
                raise _misplaced(self._name) from error
            raise InvalidRequest(f"The field {self._name!r} is not UTF-8: {error}.", param=self._name) from error

    def _end(self) -> None:
        self._ended = True


def _misplaced(name: str) -> InvalidRequest:
    return InvalidRequest(f"The form's file is its part {name!r}; the recording goes into the part 'file'.", param=FILE)


def _no_file(fields: Fields) -> InvalidRequest:
    there = f", only {', '.join(map(repr, list(fields)[:5]))}" if fields else ""
    return InvalidRequest(f"The form has no part named 'file'{there}; the recording goes into 'file'.", param=FILE)
