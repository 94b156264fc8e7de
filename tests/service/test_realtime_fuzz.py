"""Random talks: whatever a client sends, in whatever order, each bad event is told, each response ends, and nothing is left.

The number of talks is that of the environment variable TALKS; `make fuzz` takes 5,000. A tenth as many go over sockets to a real server.
"""

import asyncio
import json
import os
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from websockets.sync.client import connect

from service.realtime.config import SessionConfig
from tests.service.realtime_fakes import Talk, sound
from tests.serving import Server

TALKS = int(os.environ.get("TALKS", "150"))
SERVER_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
SOUNDS = {(seconds, loud): sound(seconds, loud) for seconds in (0.0, 0.01, 0.3, 0.8, 9.0) for loud in (True, False)}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ids = st.sampled_from(["a", "b", "c", "root", "nobody"])
detections = st.none() | st.fixed_dictionaries(
    {"type": st.sampled_from(["server_vad", "semantic_vad"])},
    optional={
        "threshold": st.floats(0, 1),
        "prefix_padding_ms": st.sampled_from([0, 300, 2000]),
        "silence_duration_ms": st.sampled_from([0, 100, 500]),
        "create_response": st.booleans(),
        "interrupt_response": st.booleans(),
        "eagerness": st.sampled_from(["low", "high", "auto"]),
    },
)
inputs = st.fixed_dictionaries(
    {},
    optional={
        "turn_detection": detections,
        "transcription": st.none()
        | st.fixed_dictionaries({}, optional={"model": st.text(max_size=5), "delay": st.none()}),
        "format": st.sampled_from(
            [{"type": "audio/pcm", "rate": 24000}, {"type": "audio/pcmu"}, {"type": "audio/pcma"}]
        ),
        "noise_reduction": st.none() | st.just({"type": "near_field"}),
    },
)
sessions = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("realtime"),
        "instructions": st.text(max_size=20) | st.none(),
        "max_output_tokens": st.sampled_from([1, 2, "inf", None]),
        "output_modalities": st.sampled_from([["text"], ["audio"]]),
        "voice": st.just("alloy"),
        "tools": st.just([{"type": "function", "name": "f"}]),
        "audio": st.fixed_dictionaries({}, optional={"input": inputs, "output": st.just({"voice": "ash"})}),
    },
)
contents = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text"]), "text": st.text(max_size=60)})
    | st.fixed_dictionaries({"type": st.just("input_audio"), "audio": st.sampled_from(sorted(set(SOUNDS.values())))}),
    max_size=3,
)
items = st.fixed_dictionaries(
    {"type": st.just("message"), "role": st.sampled_from(["user", "assistant", "system"]), "content": contents},
    optional={"id": ids},
)
options = st.fixed_dictionaries(
    {},
    optional={
        "conversation": st.sampled_from(["auto", "none"]),
        "input": st.lists(items | st.fixed_dictionaries({"type": st.just("item_reference"), "id": ids}), max_size=2),
        "instructions": st.text(max_size=20),
        "max_output_tokens": st.sampled_from([1, "inf"]),
        "metadata": st.just({"client_event_id": "mine"}) | st.none(),
    },
)
proper = st.one_of(
    st.fixed_dictionaries({"type": st.just("input_audio_buffer.append"), "audio": st.sampled_from(list(SOUNDS.values()))}),
    st.fixed_dictionaries({"type": st.just("input_audio_buffer.append"), "audio": st.sampled_from(list(SOUNDS.values()))}),
    st.fixed_dictionaries({"type": st.sampled_from(["input_audio_buffer.commit", "input_audio_buffer.clear"])}),
    st.just({"type": "output_audio_buffer.clear"}),
    st.fixed_dictionaries({"type": st.just("session.update"), "session": sessions}),
    st.fixed_dictionaries({"type": st.just("conversation.item.create"), "item": items}, optional={"previous_item_id": ids}),
    st.fixed_dictionaries({"type": st.sampled_from(["conversation.item.retrieve", "conversation.item.delete"]), "item_id": ids}),
    st.fixed_dictionaries({"type": st.just("response.create")}, optional={"response": options}),
    st.fixed_dictionaries({"type": st.just("response.cancel")}, optional={"response_id": ids}),
    st.sampled_from([{"type": "response.create"}, {"type": "response.cancel"}]),
)  # fmt: skip
bad = st.one_of(
    json_values,
    st.fixed_dictionaries({"type": st.text(max_size=30)}),
    st.fixed_dictionaries({"type": st.just("input_audio_buffer.append"), "audio": st.integers() | st.just("!")}),
    st.fixed_dictionaries({"type": st.just("session.update"), "session": st.integers() | st.just({"instructions": 5})}),
    st.fixed_dictionaries(
        {"type": st.just("conversation.item.create"), "item": st.just({}) | st.just({"role": "user"})}
    ),
    st.fixed_dictionaries({"type": st.just("conversation.item.truncate"), "item_id": ids}),
    st.fixed_dictionaries({"type": st.just("response.create"), "response": st.just({"conversation": "some"})}),
)
steps = st.one_of(
    st.tuples(st.just("proper"), proper),
    st.tuples(st.just("proper"), proper),
    st.tuples(st.just("bad"), bad),
    st.tuples(st.sampled_from(["open", "close", "settle"]), st.none()),
)


talks = {
    "steps": st.lists(steps, max_size=10) | st.lists(steps, min_size=10, max_size=40),
    "kind": st.sampled_from(["realtime", "realtime", "transcription"]),
}


@settings(max_examples=TALKS, deadline=None, suppress_health_check=list(HealthCheck))
@given(**talks)
def test_any_talk(steps: list[tuple[str, Any]], kind: Any) -> None:
    async def main() -> None:
        talk = Talk(SessionConfig(type=kind))
        talk.engine.gate.clear()
        for number, (what, event) in enumerate(steps):
            errors = talk.kinds().count("error")
            if what == "open":
                talk.engine.gate.set()
            elif what == "close":
                talk.engine.gate.clear()
            elif what == "settle":
                await talk.settle()
            else:
                event_id = f"event {number}"
                named = event | {"event_id": event_id} if isinstance(event, dict) else event
                await asyncio.wait_for(talk.session.handle(json.dumps(named)), 30)
                new = talk.kinds().count("error") - errors
                assert new == 1 if what == "bad" else new <= 1
                if new:
                    assert talk.last("error")["error"]["event_id"] == (event_id if isinstance(event, dict) else None)
        talk.engine.gate.set()
        for _ in range(20):
            await talk.settle()
        check(talk)
        await talk.session.close()
        assert talk.engine.running == 0
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(main())


@settings(max_examples=max(1, TALKS // 10), deadline=None, suppress_health_check=list(HealthCheck))
@given(**talks)
def test_any_talk_on_a_socket(server: Server, steps: list[tuple[str, Any]], kind: str) -> None:
    """Events one behind the other, whatever is told meanwhile; the last is refused when all before it were handled."""
    last = {"type": "conversation.item.retrieve", "item_id": "not there", "event_id": "last"}
    sent = [(what, event) for what, event in steps if what in ("proper", "bad")]
    events = [event if isinstance(event, dict) else {"type": "a kind", "was": event} for _, event in sent]
    address = (
        f"{server.url.replace('http', 'ws', 1)}/v1/realtime?intent={'conversation' if kind == 'realtime' else kind}"
    )
    refused: list[str | None] = []
    with connect(address, max_size=None, open_timeout=60) as socket:
        for number, event in enumerate([*events, last]):
            socket.send(json.dumps({"event_id": f"event {number}", **event}))
        while "last" not in refused:
            told = json.loads(socket.recv(timeout=60))
            SERVER_EVENT.validate_python(told)
            if told["type"] == "error":
                refused.append(told["error"]["event_id"])
                assert told["error"]["type"] == "invalid_request_error", told
    assert {f"event {number}" for number, (what, _) in enumerate(sent) if what == "bad"} <= set(refused)
    server.wait_for(lambda: server.metric("blsp_realtime_sessions") == 0)


def check(talk: Talk) -> None:
    """What is so however a talk went."""
    for told in talk.told:
        SERVER_EVENT.validate_python(told)
    counts = Counter(talk.kinds())
    assert counts["response.created"] == counts["response.done"]
    assert counts["response.output_item.added"] == counts["response.output_item.done"]
    deleted = {told["item_id"] for told in talk.told if told["type"] == "conversation.item.deleted"}
    added, done = (
        {told["item"]["id"] for told in talk.told if told["type"] == f"conversation.item.{kind}"}
        for kind in ("added", "done")
    )
    assert done <= added <= done | deleted
    event_ids = [told["event_id"] for told in talk.told]
    assert len(set(event_ids)) == len(event_ids)
    known: set[str | None] = {None}
    for told in talk.told:
        if told["type"] == "conversation.item.added":
            assert told["previous_item_id"] in known
            known.add(told["item"]["id"])
    running = False
    for told in talk.told:
        if told["type"] in ("response.created", "response.done") and told["response"]["conversation_id"]:
            assert running == (told["type"] == "response.done"), "one response at a time in the conversation"
            running = not running
