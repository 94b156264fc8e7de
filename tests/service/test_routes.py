"""What the endpoints keep, or rather do not."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.http.routes import _unless_gone


class Audio:
    """Something large."""


async def never() -> Any:
    await asyncio.Event().wait()


async def gone() -> Any:
    return {"type": "http.disconnect"}


async def fail(audio: Audio) -> Any:
    await asyncio.sleep(0)
    raise ValueError(audio)


async def go_on(audio: Audio) -> Any:
    await never()


async def failure_of(work: Awaitable[Any], receive: Any) -> type[BaseException]:
    try:
        await _unless_gone(Request({"type": "http"}, receive), work)
    except Exception as error:
        return type(error)
    raise AssertionError


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize(("work", "receive", "error"), [(fail, never, ValueError), (go_on, gone, ClientDisconnect)])
async def test_work_that_fails_and_its_audio_are_forgotten(
    work: Callable[[Audio], Awaitable[Any]], receive: Any, error: type[BaseException]
) -> None:
    audio = Audio()
    forgotten = weakref.ref(audio)
    outcome = await failure_of(work(audio), receive)
    del audio
    await asyncio.sleep(0)
    assert outcome is error
    assert forgotten() is None
