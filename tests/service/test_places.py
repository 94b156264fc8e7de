"""Who gets a place, who waits for one, and who comes first."""

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.gate.places import Places


async def settle() -> None:
    """Until everybody who may go on has gone on."""
    for _ in range(3):
        await asyncio.sleep(0)


class Queue:
    """Clients at some places."""

    def __init__(self, number: int) -> None:
        self.places = Places(number)
        self.comers: list[tuple[str, asyncio.Task[None]]] = []

    async def come(self, client: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self.places.take(client))
        self.comers.append((client, task))
        await settle()
        return task

    async def leave(self, number: int) -> None:
        """One of those that have a place, or that wait, goes."""
        client, task = self.comers.pop(number)
        if task.done():
            self.places.give_back(client)
        else:
            task.cancel()
        await settle()

    def inside(self) -> list[str]:
        return [client for client, task in self.comers if task.done()]

    def waiting(self) -> list[str]:
        return [client for client, task in self.comers if not task.done()]


async def test_one_client_takes_all_places_and_another_still_gets_one() -> None:
    queue = Queue(2)
    for client in ("a", "a", "a", "b", "b"):
        await queue.come(client)
    assert (queue.inside(), queue.waiting()) == (["a", "a", "b"], ["a", "b"])


async def test_who_came_first_goes_first() -> None:
    queue = Queue(1)
    for client in ("a", "a", "b", "b"):
        await queue.come(client)
    assert (queue.inside(), queue.waiting()) == (["a", "b"], ["a", "b"])
    await queue.leave(0)
    assert queue.inside() == ["a", "b"]


async def test_who_gets_a_place_and_is_cancelled_at_once_gives_it_back() -> None:
    queue = Queue(1)
    for client in ("a", "a", "a"):
        await queue.come(client)
    queue.places.give_back("a")  # to the second, which does not know of it yet
    (_, second) = queue.comers[1]
    second.cancel()
    await settle()
    assert second.cancelled()
    assert queue.comers[2][1].done()


@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=40))
def test_no_place_is_empty_that_somebody_waits_for(number: int, steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        queue = Queue(number)
        for client, going in steps:
            await queue.come(client)
            if going < len(queue.comers):
                await queue.leave(going)
            inside, waiting = queue.inside(), queue.waiting()
            assert len(inside) <= 2 * number
            assert not waiting or len(inside) >= number
            assert Counter(waiting).keys() <= Counter(inside).keys() or len(inside) == 2 * number

    asyncio.run(play())
