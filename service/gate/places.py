"""Places for what takes a thread or a process of the service. This file knows nothing about HTTP."""

import asyncio
from collections import Counter

from service.gate.admission import is_reached


class Places:
    """`number` places, for which clients wait in the order in which they come.

    A client that has none gets one until twice as many are taken: so no client can keep all others waiting. Belongs to one event loop.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    async def take(self, client: str) -> None:
        """Waits for a place. Who is cancelled meanwhile has none."""
        if self._is_open_to(client):
            self._taken[client] += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append((client, place))
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.give_back(client)
            raise

    def give_back(self, client: str) -> None:
        """Leaves a place to those who wait."""
        self._taken -= Counter([client])
        waiting, self._waiting = self._waiting, []
        for other, place in waiting:
            if place.done():
                continue
            if self._is_open_to(other):
                self._taken[other] += 1
                place.set_result(None)
            else:
                self._waiting.append((other, place))

    def _is_open_to(self, client: str) -> bool:
        return not is_reached(self._number, self._taken.total(), self._taken[client])
