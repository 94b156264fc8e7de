"""The whole of an answer that is made event by event."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any


async def last(events: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """The last event, which holds all of the answer. Raises what the events raise."""
    async with aclosing(events):
        return [event async for event in events][-1]
