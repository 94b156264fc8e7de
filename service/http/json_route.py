"""Endpoints that take JSON: what holds more values than any request needs is refused before it is read.

Reading and checking values is work on the event loop that all requests share: a few megabytes of empty lists would hold it for seconds.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import InvalidRequest, WrongMediaType

MAX_CONTAINERS = 10_000  # lists and objects; each message has two or three
MAX_VALUES = 300_000  # token ids, say; names of an object's values count, too
SMALL = 64 << 10  # bytes that are checked sooner than a thread takes them over

_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)', re.DOTALL)


def check_type(content_type: str) -> None:
    """Raises WrongMediaType for what is not said to be JSON: pages of other origins can send such a body without having asked."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        said = f"is {kind[:64]!r}" if kind else "is missing"
        raise WrongMediaType(
            f"The body's content type {said}; send JSON, with the header 'Content-Type: application/json'."
        )


def check_values(text: bytes | bytearray) -> None:
    """Raises InvalidRequest for a JSON text of too many lists, objects or values; what stands within its texts does not count.

    It stops at the first that is too many. In a thread, others get their turns meanwhile.
    """
    containers = values = 0
    for start, end in _between_texts(text) if _may_have_many(text) else ():
        containers += text.count(b"{", start, end) + text.count(b"[", start, end)
        values += text.count(b",", start, end) or 1
        if containers > MAX_CONTAINERS or values > MAX_VALUES:
            raise InvalidRequest(
                f"The JSON has more than {MAX_CONTAINERS:,} lists and objects, or than {MAX_VALUES:,} values; a request may have that many."
            )


async def check_values_aside(text: bytes) -> None:
    """As `check_values`, of a large text in a thread."""
    if len(text) > SMALL:
        await asyncio.to_thread(check_values, text)
    else:
        check_values(text)


def _may_have_many(text: bytes | bytearray) -> bool:
    """A quick look, which takes what stands within texts for values."""
    return text.count(b"{") + text.count(b"[") > MAX_CONTAINERS or text.count(b",") + text.count(b":") > MAX_VALUES


def _between_texts(text: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Where the stretches begin and end that are outside of JSON's texts."""
    start = 0
    for within in _TEXT.finditer(text):
        yield start, within.start()
        start = within.end()
    yield start, len(text)


class JsonRoute(APIRoute):
    """Checks a JSON body before FastAPI reads it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, behind the check."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def checked(request: Request) -> Response:
            check_type(request.headers.get("content-type", ""))
            body = await request.body()
            if not json.detect_encoding(body).startswith("utf-8"):
                raise InvalidRequest("The JSON is not written in UTF-8, which it has to be.")
            await check_values_aside(body)
            return await handle(request)

        return checked
