"""Server-sent events."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send


def sse_line(event: dict[str, Any]) -> str:
    """One event."""
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


class EventStream(StreamingResponse):
    """A stream of events; it closes their source however it ends, also in the middle of an event that nobody takes."""

    def __init__(self, lines: AsyncIterator[str], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(lines, headers=headers, media_type="text/event-stream")

    async def stream_response(self, send: Send) -> None:
        """Sends the events."""
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)
