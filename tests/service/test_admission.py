"""Who gets in: each limit refuses with its own reason, says when to come again, and lets others in."""

import pytest

from service.errors import Overloaded
from service.gate.admission import MAX_BUCKETS, Admission, Limits, Queued, current_client
from service.telemetry import metrics

NONE = {
    "requests": 0,
    "body_bytes": 0,
    "audio_seconds": 0.0,
    "prompt_tokens": 0,
    "client_requests": 0,
    "client_requests_per_minute": 0,
}


class Door:
    """An admission whose queues and clock a test sets."""

    def __init__(self, **limits: float) -> None:
        self.queued = Queued(0.0, 0)
        self.now = 1000.0
        self.admission = Admission(Limits(**(NONE | limits)), lambda: self.queued, lambda: self.now)  # type: ignore[arg-type]

    def refusal(self, client: str = "someone") -> Overloaded:
        with pytest.raises(Overloaded) as caught, self.admission.admit(client):
            pass
        assert caught.value.status == 429
        assert caught.value.retry_after >= 1
        return caught.value

    def refusal_beside(self, client: str = "someone") -> Overloaded:
        """The refusal of a further request of a client that has one running."""
        queued, self.queued = self.queued, Queued(0.0, 0)
        with self.admission.admit(client):
            self.queued = queued
            return self.refusal(client)

    def let_in(self, client: str = "someone") -> None:
        with self.admission.admit(client):
            assert current_client() == client


def test_no_limits() -> None:
    door = Door()
    door.queued = Queued(1e9, 10**9)
    for _ in range(1000):
        door.let_in()


def test_requests_in_flight() -> None:
    door = Door(requests=2)
    with door.admission.admit("a"), door.admission.admit("b"):
        assert door.refusal("a").code == "requests"
    door.let_in("a")


def test_a_request_that_fails_makes_room_too() -> None:
    door = Door(requests=1)
    with pytest.raises(RuntimeError), door.admission.admit("a"):
        raise RuntimeError
    with door.admission.admit("a"):
        door.refusal("a")


def test_requests_of_one_client() -> None:
    door = Door(client_requests=1)
    with door.admission.admit("a"):
        assert door.refusal("a").code == "client_requests"
        door.let_in("b")
    door.let_in("a")


def test_a_request_that_ends_leaves_the_clients_others_counted() -> None:
    door = Door(client_requests=2)
    with door.admission.admit("a"):
        door.let_in("a")
        with door.admission.admit("a"):
            assert door.refusal("a").code == "client_requests"
    assert not door.admission._running  # no name stays


def test_bytes_of_bodies_together() -> None:
    door = Door(body_bytes=10)
    with door.admission.admit("a") as hold:
        hold(6)
        with door.admission.admit("a") as hold_another:
            hold_another(4)
            with pytest.raises(Overloaded) as caught:
                hold(1)
            assert caught.value.code == "body_bytes"
            assert door.refusal("a").code == "body_bytes"
        hold(4)
    with door.admission.admit("a") as hold:
        hold(10)


def test_audio_that_waits() -> None:
    door = Door(audio_seconds=60.0)
    with door.admission.admit("someone"):
        door.queued = Queued(59.9, 0)
        door.let_in()
    door.queued = Queued(60.0, 0)
    error = door.refusal_beside()
    assert error.code == "audio_seconds"
    assert "60 s of audio" in error.message


def test_prompts_that_wait() -> None:
    door = Door(prompt_tokens=100)
    door.queued = Queued(0.0, 100)
    assert door.refusal_beside().code == "prompt_tokens"
    with door.admission.admit("someone"):
        door.queued = Queued(0.0, 99)
        door.let_in()


@pytest.mark.parametrize(
    ("limit", "reached", "twice"),
    [
        ({"audio_seconds": 60.0}, Queued(119.9, 0), Queued(120.0, 0)),
        ({"prompt_tokens": 100}, Queued(0.0, 199), Queued(0.0, 200)),
    ],
)
def test_a_client_with_nothing_running_gets_past_what_others_have_waiting(
    limit: dict[str, float], reached: Queued, twice: Queued
) -> None:
    door = Door(**limit)
    with door.admission.admit("many"):
        door.queued = reached
        door.refusal("many")
        with door.admission.admit("new"):
            door.refusal("new")
        door.queued = twice
        assert door.refusal("newer").code == next(iter(limit))


def test_a_client_with_nothing_running_gets_past_the_requests_of_others() -> None:
    door = Door(requests=2)
    with door.admission.admit("many"), door.admission.admit("many"):
        door.refusal("many")
        with door.admission.admit("new"), door.admission.admit("newer"):
            assert door.refusal("newest").code == "requests"


def test_a_client_with_nothing_else_running_gets_past_the_bodies_of_others() -> None:
    door = Door(body_bytes=10)
    with door.admission.admit("many") as hold_one, door.admission.admit("many") as hold_another:
        hold_one(5)
        hold_another(5)
        with door.admission.admit("new") as hold:
            hold(9)
            with door.admission.admit("newer") as hold_more:
                hold_more(1)
                with pytest.raises(Overloaded):
                    hold_more(1)


def test_no_body_alone_is_larger_than_what_all_may_be() -> None:
    with Door(body_bytes=10).admission.admit("new") as hold:
        hold(10)
        with pytest.raises(Overloaded):
            hold(1)


def test_rate_of_one_client() -> None:
    door = Door(client_requests_per_minute=6)
    for _ in range(6):
        door.let_in("a")
    error = door.refusal("a")
    assert (error.code, error.retry_after) == ("rate", 10)
    door.let_in("b")
    door.now += 9.9
    assert door.refusal("a").retry_after == 1
    door.now += 0.1
    door.let_in("a")
    door.refusal("a")
    door.now += 3600
    for _ in range(6):
        door.let_in("a")
    door.refusal("a")


def test_what_was_refused_costs_no_rate() -> None:
    door = Door(client_requests_per_minute=2, requests=1)
    with door.admission.admit("a"):
        assert door.refusal("a").code == "requests"
    door.let_in("a")
    assert door.refusal("a").code == "rate"


def test_many_clients_are_not_remembered_for_ever() -> None:
    door = Door(client_requests_per_minute=6)
    for i in range(3 * MAX_BUCKETS):
        door.now += 0.01
        door.let_in(f"client {i}")
    assert len(door.admission._buckets) <= MAX_BUCKETS


def test_who_was_here_in_the_last_minute_is_remembered_among_many() -> None:
    door = Door(client_requests_per_minute=6)
    for _ in range(6):
        door.let_in("a")
    door.now += 59.9
    for i in range(MAX_BUCKETS):  # the last of them makes room
        door.let_in(f"client {i}")
    for _ in range(5):
        door.let_in("a")
    assert door.refusal("a").code == "rate"


def test_refusals_are_counted_by_reason() -> None:
    def count() -> float:
        return metrics.REFUSALS.labels("requests")._value.get()

    door, before = Door(requests=1), count()
    with door.admission.admit("a"):
        door.refusal("a")
    assert count() == before + 1
