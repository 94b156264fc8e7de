"""Endpoints that take JSON: what holds more values than any request needs is refused before it is read.

Reading and checking values is work on the event loop that all requests share: a few megabytes of empty lists would hold it for seconds.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import InvalidRequest, WrongMediaType

MAX_CONTAINERS = 10_000  # lists and objects; each message has two or three
MAX_COMMAS = 300_000  # between token ids, say

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
    """Raises InvalidRequest for a JSON text of too many lists, objects or values; what stands within its texts does not count."""
    if _is_small(text) or _is_small(_TEXT.sub(b"", text)):
        return
    raise InvalidRequest(
        f"The JSON has more than {MAX_CONTAINERS:,} lists and objects, or more than {MAX_COMMAS:,} values; a request may have that many."
    )


def _is_small(text: bytes | bytearray) -> bool:
    return text.count(b"{") + text.count(b"[") <= MAX_CONTAINERS and text.count(b",") <= MAX_COMMAS


class JsonRoute(APIRoute):
    """Checks a JSON body before FastAPI reads it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """As FastAPI's, behind the check."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def checked(request: Request) -> Response:
            check_type(request.headers.get("content-type", ""))
            check_values(await request.body())
            return await handle(request)

        return checked
