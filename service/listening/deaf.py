"""In place of ears, for a model that reads text alone."""

from typing import Any, NoReturn

from service.audio.upload import GrowingBuffer
from service.errors import InvalidRequest


def refusal(name: str) -> InvalidRequest:
    """What is said to who sends audio to the model of that name."""
    return InvalidRequest(f"The model {name!r} reads text alone; GET /v1/models lists those that hear.", param="model")


class Deaf:
    """Has those methods of a Listener that requests come to; each refuses what it is to hear."""

    def __init__(self, name: str) -> None:
        self._name = name

    def budget(self, *_: Any) -> NoReturn:
        """Raises InvalidRequest."""
        raise refusal(self._name)

    async def hear(self, source: Any, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequest, to whoever feeds a GrowingBuffer, too."""
        if isinstance(source, GrowingBuffer):
            source.fail(refusal(self._name))
        raise refusal(self._name)
