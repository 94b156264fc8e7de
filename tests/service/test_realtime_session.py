import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

import service.realtime
from models.prompt import Speech
from service.errors import Unavailable
from service.gate.admission import Limits
from service.realtime.answers import MAX_ASIDE
from service.realtime.config import SessionConfig
from service.realtime.session import MAX_TASKS
from tests.service.realtime_fakes import CONTEXT, FakeListener, Talk, sound

SERVER_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
A_RESPONSE = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 3,
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
]
PUSH_TO_TALK = {"audio": {"input": {"turn_detection": None}}}


@pytest.fixture
async def talk() -> AsyncIterator[Talk]:
    talk = Talk()
    yield talk
    await talk.session.close()
    for told in talk.told:
        SERVER_EVENT.validate_python(told)
        json.dumps(told)
    assert talk.engine.running == 0


async def send(talk: Talk, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """What is told because of an event."""
    begin = len(talk.told)
    await talk.session.handle(json.dumps({"type": kind, **fields}))
    await talk.settle()
    return talk.told[begin:]


async def append(talk: Talk, seconds: float, loud: bool = True) -> list[dict[str, Any]]:
    return await send(talk, "input_audio_buffer.append", audio=sound(seconds, loud))


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in told]


async def test_push_to_talk(talk: Talk) -> None:
    assert kinds(talk.told) == ["session.created"]
    assert talk.told[0]["session"]["audio"]["input"]["turn_detection"] == {  # OpenAI's defaults
        "type": "server_vad",
        "threshold": 0.5,
        "prefix_padding_ms": 300,
        "silence_duration_ms": 500,
        "create_response": True,
        "interrupt_response": True,
        "idle_timeout_ms": None,
    }
    assert kinds(await send(talk, "session.update", session={"type": "realtime", **PUSH_TO_TALK})) == [
        "session.updated"
    ]
    assert not await append(talk, 1.0)
    told = await send(talk, "input_audio_buffer.commit")
    assert kinds(told) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    assert told[1]["item"]["content"] == [{"type": "input_audio", "transcript": None}]
    assert {event["previous_item_id"] for event in told} == {None}
    told = await send(talk, "response.create", response={"metadata": {"client_event_id": "mine"}})
    assert kinds(told) == A_RESPONSE
    assert "".join(event["delta"] for event in told if event["type"].endswith(".delta")) == "Hello there."
    done = told[-1]["response"]
    assert (done["status"], done["metadata"]) == ("completed", {"client_event_id": "mine"})
    assert done["output"][0]["content"] == [{"type": "output_text", "text": "Hello there."}]
    assert told[3]["part"] == {"type": "text", "text": ""}
    assert {event["content_index"] for event in told if "content_index" in event} == {0}
    assert told[2]["previous_item_id"] == talk.last("input_audio_buffer.committed")["item_id"]
    usage = done["usage"]
    assert usage["input_token_details"]["cached_tokens_details"] == {
        "text_tokens": 0,
        "audio_tokens": 0,
        "image_tokens": 0,
    }
    assert (usage["input_token_details"]["audio_tokens"], usage["output_tokens"]) == (9, 3)
    assert talk.engine.prompts[0].speech_tokens == 9


async def test_turns_that_the_server_tells(talk: Talk) -> None:
    """A second of silence, one of speech, one of silence; then again."""
    assert not await append(talk, 1.0, loud=False)
    (started,) = await append(talk, 1.0)
    assert started["type"] == "input_audio_buffer.speech_started"
    assert abs(started["audio_start_ms"] - 700) < 64  # 300 ms before it
    told = await append(talk, 1.0, loud=False)
    assert kinds(told) == [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        *A_RESPONSE,
    ]
    assert abs(told[0]["audio_end_ms"] - 2500) < 64  # half a second after it
    assert {event["item_id"] for event in (started, *told[:2])} == {told[2]["item"]["id"]}
    assert sum(talk.listener.heard) < 16000 * 1.6, "neither the silence nor anything twice"
    await append(talk, 1.0)
    await append(talk, 1.0, loud=False)
    roles = [message.role for message in talk.prompts.messages[-1]]
    assert roles == ["user", "assistant", "user"]


async def test_what_is_forgotten_has_its_time_in_the_session(talk: Talk) -> None:
    for _ in range(100):
        await append(talk, 0.02, loud=False)  # no whole frame
        await send(talk, "input_audio_buffer.clear")
    await append(talk, 1.0, loud=False)
    (started,) = await append(talk, 1.0)
    assert abs(started["audio_start_ms"] - 2700) < 64  # 300 ms before what is loud


async def test_what_is_said_is_read_before_it_ends(talk: Talk) -> None:
    await append(talk, 1.0)
    assert not talk.engine.prefilled
    await append(talk, 0.2, loud=False)
    assert len(talk.engine.prefilled) == 1
    heard = list(talk.listener.heard)
    await append(talk, 0.5, loud=False)
    assert talk.last("response.done")["response"]["status"] == "completed"
    assert talk.listener.heard == heard, "nothing is heard when the turn is over that was not heard in the pause"
    assert (
        talk.engine.prefilled[0].token_ids
        == talk.engine.prompts[0].token_ids[: len(talk.engine.prefilled[0].token_ids)]
    )


async def test_who_speaks_interrupts(talk: Talk) -> None:
    await append(talk, 0.5)
    talk.engine.gate.clear()
    await append(talk, 0.7, loud=False)
    talk.engine.gate.set()
    while "response.output_text.delta" not in talk.kinds():
        await asyncio.sleep(0)
    talk.engine.gate.clear()
    told = await append(talk, 0.3)
    assert kinds(told)[0] == "input_audio_buffer.speech_started"
    done = told[-1]["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("cancelled", "turn_detected")
    assert done["output"][0]["status"] == "incomplete"
    assert done["output"][0]["content"][0]["text"].startswith("Hello"), "what was told stays"
    talk.engine.gate.set()
    await append(talk, 0.7, loud=False)
    assert talk.last("response.done")["response"]["status"] == "completed"


async def test_who_may_not_interrupt_is_answered_afterwards(talk: Talk) -> None:
    detection = {"type": "server_vad", "interrupt_response": False}
    await send(talk, "session.update", session={"audio": {"input": {"turn_detection": detection}}})
    talk.engine.gate.clear()
    for _ in range(2):
        await append(talk, 0.5)
        await append(talk, 0.7, loud=False)
    assert talk.kinds().count("response.created") == 1
    talk.engine.gate.set()
    await talk.settle()
    assert [t["response"]["status"] for t in talk.told if t["type"] == "response.done"] == ["completed"] * 2


async def test_a_turn_that_is_not_to_be_answered(talk: Talk) -> None:
    detection = {"type": "server_vad", "create_response": False}
    await send(talk, "session.update", session={"audio": {"input": {"turn_detection": detection}}})
    await append(talk, 0.5)
    assert kinds(await append(talk, 0.7, loud=False))[-1] == "conversation.item.done"


async def test_cancelled_by_the_client(talk: Talk) -> None:
    talk.engine.gate.clear()
    await send(talk, "response.create")
    told = await send(talk, "response.cancel")
    assert kinds(told) == ["response.done"]
    assert told[0]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    (error,) = await send(talk, "response.cancel", event_id="mine")
    assert error["error"]["code"] == "response_cancel_not_active"
    assert error["error"]["event_id"] == "mine"
    assert error["error"]["message"].startswith("Cancellation failed")


async def test_cancelled_before_it_began(talk: Talk) -> None:
    await talk.session.handle('{"type": "response.create"}')
    await talk.session.handle('{"type": "response.cancel"}')
    await talk.settle()
    assert talk.kinds()[1:] == ["response.created", "response.done"]


async def test_another_response_right_after_a_cancelled_one(talk: Talk) -> None:
    talk.engine.gate.clear()
    await send(talk, "response.create")
    talk.engine.gate.set()
    await talk.session.handle('{"type": "response.cancel"}')
    await talk.session.handle('{"type": "response.create"}')
    await talk.settle()
    assert [told["response"]["status"] for told in talk.told if told["type"] == "response.done"] == [
        "cancelled",
        "completed",
    ]


async def test_who_says_more_than_can_be_heard_waits(talk: Talk) -> None:
    await send(talk, "session.update", session=PUSH_TO_TALK)
    talk.listener.gate.clear()

    async def flood() -> None:
        for _ in range(MAX_TASKS + 5):
            await talk.session.handle(json.dumps({"type": "input_audio_buffer.append", "audio": sound(0.5)}))
            await talk.session.handle('{"type": "input_audio_buffer.commit"}')

    client = asyncio.create_task(flood())
    await talk.settle()
    await talk.settle()
    assert talk.kinds().count("input_audio_buffer.committed") == MAX_TASKS + 1
    talk.listener.gate.set()
    await client
    assert talk.kinds().count("input_audio_buffer.committed") == MAX_TASKS + 5


async def test_one_response_at_a_time_in_the_conversation_and_others_beside_it(talk: Talk) -> None:
    talk.engine.gate.clear()
    await send(talk, "response.create")
    (error,) = await send(talk, "response.create")
    assert error["error"]["code"] == "conversation_already_has_active_response"
    aside = {"conversation": "none", "input": [], "metadata": {"topic": "aside"}}
    (created,) = await send(talk, "response.create", response=aside)
    assert created["response"]["conversation_id"] is None
    talk.engine.gate.set()
    await talk.settle()
    done = [told["response"] for told in talk.told if told["type"] == "response.done"]
    assert [response["status"] for response in done] == ["completed"] * 2
    assert talk.kinds().count("conversation.item.added") == 1, "what is aside joins no conversation"


async def test_a_context_of_its_own(talk: Talk) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Remember."}]}
    (added, _) = await send(talk, "conversation.item.create", item=item)
    other = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]}
    context = [other, {"type": "item_reference", "id": added["item"]["id"]}]
    await send(talk, "response.create", response={"conversation": "none", "input": context, "instructions": ""})
    assert [(m.role, m.parts) for m in talk.prompts.messages[-1]] == [
        ("system", ["Be brief."]),
        ("user", ["Remember."]),
    ]
    (error,) = await send(talk, "response.create", response={"input": [{"type": "item_reference", "id": "nobody"}]})
    assert error["error"]["param"] == "response.input.0.id"


async def test_instructions_and_limits(talk: Talk) -> None:
    await send(talk, "session.update", session={"instructions": "Be kind.", "max_output_tokens": 2})
    told = await send(talk, "response.create")
    assert talk.prompts.messages[-1][0].parts == ["Be kind."]
    done = told[-1]["response"]
    assert (done["status"], done["status_details"]["reason"]) == ("incomplete", "max_output_tokens")
    await send(talk, "response.create", response={"instructions": "Be brief.", "max_output_tokens": "inf"})
    assert talk.prompts.messages[-1][0].parts == ["Be brief."]
    assert talk.last("response.done")["response"]["status"] == "completed"


async def test_items(talk: Talk) -> None:
    def message(item_id: str, role: str = "user", kind: str = "input_text") -> dict[str, Any]:
        return {"id": item_id, "type": "message", "role": role, "content": [{"type": kind, "text": item_id}]}

    assert kinds(await send(talk, "conversation.item.create", item=message("b"))) == [
        "conversation.item.added",
        "conversation.item.done",
    ]
    (first, _) = await send(talk, "conversation.item.create", item=message("a"), previous_item_id="root")
    assert first["previous_item_id"] is None
    (last, _) = await send(
        talk, "conversation.item.create", item=message("c", "assistant", "output_text"), previous_item_id="b"
    )
    assert last["previous_item_id"] == "b"
    (error,) = await send(talk, "conversation.item.create", item=message("a"))
    assert error["error"]["code"] == "item_create_duplicate_item_id"
    (error,) = await send(talk, "conversation.item.create", item=message("d"), previous_item_id="nobody")
    assert error["error"]["param"] == "previous_item_id"
    (retrieved,) = await send(talk, "conversation.item.retrieve", item_id="c")
    assert retrieved["item"]["content"] == [{"type": "output_text", "text": "c"}]
    (deleted,) = await send(talk, "conversation.item.delete", item_id="b")
    assert deleted["item_id"] == "b"
    assert kinds(await send(talk, "conversation.item.create", item=message("b"), previous_item_id="a"))[0].endswith(
        "added"
    )
    (error,) = await send(talk, "conversation.item.delete", item_id="nobody")
    assert error["error"]["code"] == "item_retrieve_invalid_item_id"
    (error,) = await send(talk, "conversation.item.truncate", item_id="c", content_index=0, audio_end_ms=1)
    assert error["error"]["code"] == "unsupported_content_type"
    await send(talk, "response.create")
    assert [m.parts[0] for m in talk.prompts.messages[-1]] == ["a", "b", "c"]


async def test_audio_of_items_comes_and_goes(talk: Talk) -> None:
    given = sound(1.0)
    item = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "Hear:"}, {"type": "input_audio", "audio": given}],
    }
    (added, _) = await send(talk, "conversation.item.create", item=item)
    assert "audio" not in added["item"]["content"][1]
    (retrieved,) = await send(talk, "conversation.item.retrieve", item_id=added["item"]["id"])
    assert abs(len(retrieved["item"]["content"][1]["audio"]) - len(given)) < 200
    await send(talk, "response.create")
    (message,) = talk.prompts.messages[-1]
    assert message.parts[0] == "Hear:"
    assert isinstance(message.parts[1], Speech)


async def test_what_is_said_is_written_down(talk: Talk) -> None:
    await send(talk, "session.update", session={"audio": {"input": {"transcription": {"model": "whisper-1"}}}})
    await append(talk, 0.5)
    await append(talk, 0.7, loud=False)
    prefix = "conversation.item.input_audio_transcription."
    assert talk.last(prefix + "delta")["delta"] == talk.last(prefix + "completed")["transcript"] != ""
    item_id = talk.last("input_audio_buffer.committed")["item_id"]
    (retrieved,) = await send(talk, "conversation.item.retrieve", item_id=item_id)
    assert retrieved["item"]["content"][0]["transcript"] == talk.last(prefix + "completed")["transcript"]


async def test_what_an_item_brings_is_written_down(talk: Talk) -> None:
    await send(talk, "session.update", session={"audio": {"input": {"transcription": {}}}})
    content = [{"type": "input_text", "text": "Hear:"}, {"type": "input_audio", "audio": sound(0.5)}]
    await send(talk, "conversation.item.create", item={"type": "message", "role": "user", "content": content})
    completed = talk.last("conversation.item.input_audio_transcription.completed")
    assert (completed["content_index"], completed["transcript"]) == (1, "4 rows")


async def test_what_is_too_old_is_forgotten(talk: Talk) -> None:
    talk.session._conversation._max_samples = 16000
    for item_id in ("a", "b"):
        content = [{"type": "input_audio", "audio": sound(0.8)}]
        item = {"id": item_id, "type": "message", "role": "user", "content": content}
        told = await send(talk, "conversation.item.create", item=item)
    assert kinds(told) == ["conversation.item.added", "conversation.item.done", "conversation.item.deleted"]
    assert told[-1]["item_id"] == "a"
    (kept,) = await send(talk, "conversation.item.retrieve", item_id="b")
    assert kept["item"]["content"][0]["audio"]


async def test_a_cancelled_response_leaves_what_was_said(talk: Talk) -> None:
    """It was still being heard then."""
    await send(talk, "session.update", session=PUSH_TO_TALK)
    talk.listener.gate.clear()
    await append(talk, 0.5)
    await send(talk, "input_audio_buffer.commit")
    await send(talk, "response.create")
    await send(talk, "response.cancel")
    talk.listener.gate.set()
    await send(talk, "response.create")
    assert [told["response"]["status"] for told in talk.told if told["type"] == "response.done"] == [
        "cancelled",
        "completed",
    ]
    assert talk.engine.prompts[-1].speech_tokens


async def test_what_could_not_be_heard_is_left_out_of_later_answers(talk: Talk) -> None:
    talk.listener.error = Unavailable("The encoder has stopped.")
    await append(talk, 0.5)
    await append(talk, 0.7, loud=False)
    talk.listener.error = None
    await append(talk, 0.5)
    await append(talk, 0.7, loud=False)
    assert [told["response"]["status"] for told in talk.told if told["type"] == "response.done"] == [
        "failed",
        "completed",
    ]


async def test_an_item_that_can_not_join_is_not_heard(talk: Talk) -> None:
    content = [{"type": "input_audio", "audio": sound(0.5)}]
    item = {"id": "a", "type": "message", "role": "user", "content": content}
    await send(talk, "conversation.item.create", item=item)
    heard = len(talk.listener.heard)
    for fields in ({}, {"previous_item_id": "nobody"}):
        (error,) = await send(talk, "conversation.item.create", item=item | ({"id": "b"} if fields else {}), **fields)
        assert error["type"] == "error"
    assert len(talk.listener.heard) == heard


async def test_the_model_may_speak_first_and_again(talk: Talk) -> None:
    """Also where prompts have to end with the user."""
    talk.prompts.format = "blsp"
    for _ in range(2):
        await send(talk, "response.create")
    assert [m.role for m in talk.prompts.messages[-1]] == ["assistant", "user"]


async def test_nulls_and_what_has_no_effect_are_taken(talk: Talk) -> None:
    detection = {"type": "server_vad", "idle_timeout_ms": 5000, "threshold": None}
    (updated,) = await send(talk, "session.update", session={"audio": {"input": {"turn_detection": detection}}})
    shown = updated["session"]["audio"]["input"]["turn_detection"]
    assert (shown["idle_timeout_ms"], shown["threshold"]) == (None, 0.5)
    assert "error" not in kinds(await send(talk, "response.create", response={"conversation": None}))


async def test_after_what_nobody_foresaw_the_talk_goes_on(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk.session._ear, "take", None)
    (error,) = await append(talk, 0.5)
    assert (error["error"]["type"], error["error"]["code"]) == ("server_error", None)
    monkeypatch.undo()
    assert not await append(talk, 0.5, loud=False)


async def test_what_is_deleted_is_not_heard_to_its_end(talk: Talk) -> None:
    talk.listener.gate.clear()
    item = {"id": "a", "type": "message", "role": "user", "content": [{"type": "input_audio", "audio": sound(0.5)}]}
    await send(talk, "conversation.item.create", item=item)
    await send(talk, "conversation.item.delete", item_id="a")
    talk.listener.gate.set()
    await talk.settle()
    assert talk.listener.done == []


async def test_transcripts_are_heard_in_their_own_way_where_there_is_one(talk: Talk) -> None:
    ears = FakeListener()
    talks = talk.session._talks
    task = talks.transcribe.joined("Say it.", cast(Any, ears), cast(Any, object()))
    talk.session._talks = replace(talks, transcribe=task)
    await send(talk, "session.update", session={"audio": {"input": {"transcription": {}, "turn_detection": None}}})
    await send(talk, "input_audio_buffer.append", audio=sound(0.64))
    await send(talk, "input_audio_buffer.commit")
    assert talk.last("conversation.item.input_audio_transcription.completed")["transcript"] == "6 rows"
    assert ears.heard == talk.listener.heard != []


async def test_a_transcription_session() -> None:
    talk = Talk(SessionConfig(type="transcription"))
    await send(talk, "session.update", session={"type": "transcription", "audio": {"input": {"transcription": {}}}})
    assert talk.last("session.updated")["session"]["object"] == "realtime.transcription_session"
    await append(talk, 0.5)
    told = await append(talk, 0.7, loud=False)
    assert told[-1]["type"] == "conversation.item.input_audio_transcription.completed"
    assert not talk.engine.prefilled
    (error,) = await send(talk, "response.create")
    assert error["type"] == "error"
    (error,) = await send(talk, "session.update", session={"type": "realtime"})
    assert error["error"]["param"] == "session.type"
    await talk.session.close()


async def test_a_silence_that_a_client_commits_has_no_text() -> None:
    talk = Talk()
    detection = {"turn_detection": None, "transcription": {"model": "any"}}
    await send(talk, "session.update", session={"audio": {"input": detection}})
    for loud, text in ((False, ""), (True, "5 rows")):
        await append(talk, 0.5, loud=loud)
        await send(talk, "input_audio_buffer.commit")
        await talk.settle()
        assert talk.last("conversation.item.input_audio_transcription.completed")["transcript"] == text
    await talk.session.close()


async def test_what_can_not_be_heard_fails_where_it_is_needed(talk: Talk) -> None:
    await send(talk, "session.update", session={"audio": {"input": {"transcription": {"model": "any"}}}})
    talk.listener.error = Unavailable("The encoder has stopped.")
    await append(talk, 0.5)
    told = await append(talk, 0.7, loud=False)
    assert kinds(told)[-2:] == ["conversation.item.input_audio_transcription.failed", "response.done"]
    failed = told[-1]["response"]
    assert (failed["status"], failed["status_details"]["error"]["code"]) == ("failed", "unavailable")
    assert failed["output"] == []


@pytest.mark.parametrize("error", [Unavailable("dead"), RuntimeError("a bug")])
async def test_an_engine_that_fails_in_the_middle(talk: Talk, error: Exception) -> None:
    talk.engine.gate.clear()
    await send(talk, "response.create")
    talk.engine.gate.set()
    while "response.output_text.delta" not in talk.kinds():
        await asyncio.sleep(0)
    talk.engine.error = error
    await talk.settle()
    assert talk.kinds()[-5:] == A_RESPONSE[-5:]
    assert talk.last("response.done")["response"]["status"] == "failed"
    talk.engine.error = None
    await send(talk, "response.create")
    assert talk.last("response.done")["response"]["status"] == "completed"


async def test_old_items_make_room(talk: Talk) -> None:
    for i in range(30):
        await send(
            talk,
            "conversation.item.create",
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": f"{i:02} " * 5}]},
        )
    await send(talk, "response.create")
    assert talk.last("response.done")["response"]["status"] == "completed"
    read = [message.parts[0] for message in talk.prompts.messages[-1]]
    assert read[-1] == "29 " * 5
    assert CONTEXT // 2 < len("".join(map(str, read))) < CONTEXT


async def test_text_that_no_context_could_hold_makes_room(talk: Talk) -> None:
    """It is seen by its length, before it has become tokens."""
    talk.prompts.max_built = 100
    for text in ("x" * 90, "y" * 90):
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        await send(talk, "conversation.item.create", item=item)
    await send(talk, "response.create")
    assert [message.parts for message in talk.prompts.messages[-1]] == [["y" * 90]]
    assert talk.last("response.done")["response"]["status"] == "completed"


async def test_as_many_responses_beside_it_as_there_may_be(talk: Talk) -> None:
    talk.engine.gate.clear()
    aside = {"conversation": "none", "input": []}
    for _ in range(MAX_ASIDE + 1):
        await send(talk, "response.create", response=aside)
    assert "error" not in talk.kinds()
    (error,) = await send(talk, "response.create", response=aside)
    assert error["error"]["code"] == "too_many_responses"
    talk.engine.gate.set()
    await talk.settle()


async def test_a_last_item_that_is_too_long_fails(talk: Talk) -> None:
    await send(
        talk,
        "conversation.item.create",
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x" * CONTEXT}]},
    )
    told = await send(talk, "response.create")
    assert told[-1]["response"]["status_details"]["error"]["code"] == "context_length_exceeded"


async def test_buffers(talk: Talk) -> None:
    await send(talk, "session.update", session=PUSH_TO_TALK)
    (error,) = await send(talk, "input_audio_buffer.commit")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"
    await append(talk, 0.05)
    (error,) = await send(talk, "input_audio_buffer.commit")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"
    await append(talk, 0.5)
    assert kinds(await send(talk, "input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    (error,) = await send(talk, "input_audio_buffer.commit")
    assert error["error"]["code"] == "input_audio_buffer_commit_empty"
    for _ in range(2):
        assert not await append(talk, 10.0)
    (error,) = await append(talk, 10.0)
    assert error["error"]["code"] == "input_audio_buffer_full"
    assert kinds(await send(talk, "input_audio_buffer.commit"))[0] == "input_audio_buffer.committed"


async def test_who_never_pauses_is_answered_at_the_limit(talk: Talk) -> None:
    told = [*await append(talk, 15.0), *await append(talk, 10.0)]
    assert kinds(told)[:3] == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    assert kinds(told)[-1] == "response.done" or "input_audio_buffer.speech_started" in kinds(told)[3:]


async def test_a_commit_in_the_middle_of_a_turn(talk: Talk) -> None:
    await append(talk, 0.5)
    assert kinds(await send(talk, "input_audio_buffer.commit"))[0] == "input_audio_buffer.committed"
    (started,) = [event for event in await append(talk, 0.5) if event["type"] != "response.done"]
    assert started["type"] == "input_audio_buffer.speech_started"


async def test_limits_of_the_service_hold_for_responses() -> None:
    talk = Talk(limits=Limits(0, 0, 0, 0, 0, client_requests_per_minute=1))
    await send(talk, "response.create")
    await send(talk, "response.create")
    first, second = [told["response"] for told in talk.told if told["type"] == "response.done"]
    assert (first["status"], second["status"]) == ("completed", "failed")
    assert second["status_details"]["error"]["code"] == "rate"
    await talk.session.close()


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("", None),
        ("[]", None),
        ("{", None),
        ('{"type": 5}', "type"),
        ('{"type": "response.make"}', "type"),
        ('{"type": "input_audio_buffer.append"}', "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "???"}', "audio"),
        ('{"type": "conversation.item.create", "item": {"type": "message", "role": "nobody", "content": []}}', "item.role"),
        ('{"type": "conversation.item.create", "item": {"type": "function_call_output", "call_id": "a"}}', "item.type"),
        ('{"type": "conversation.item.create", "item": {"role": "user", "content": [{"type": "input_image"}]}}', "item.content.0"),
        ('{"type": "conversation.item.create", "item": {"role": "user", "content": [{"type": "image", "text": "a"}]}}', "item.content.0"),
        ('{"type": "session.update", "session": {"instructions": 5}}', "session.instructions"),
        ('{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/mp3"}}}}}', "session.audio.input.format"),
        ('{"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 7}}}}}',
         "session.audio.input.turn_detection.threshold"),
        ('{"type": "session.update", "session": {"audio": 5}}', "session.audio"),
        ('{"type": "response.create", "response": {"conversation": "some"}}', "response.conversation"),
        ('{"type": "response.create", "response": {"max_output_tokens": 0}}', "response.max_output_tokens"),
        ('{"type": "session.update", "session": ' + "[" * 100 + "]" * 100 + "}", None),
        ('{"type": "conversation.item.delete", "item_id": "\\ud800"}', None),
    ],
)  # fmt: skip
async def test_an_event_that_is_wrong_is_told_and_the_rest_goes_on(talk: Talk, text: str, param: str | None) -> None:
    await talk.session.handle(text)
    assert talk.kinds() == ["session.created", "error"]
    error = talk.told[-1]["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"]
    assert error["param"] == param
    assert kinds(await send(talk, "response.create"))[-1] == "response.done"


def test_the_page_lists_every_code() -> None:
    root = Path(service.realtime.__file__).parents[2]
    sources = [*root.glob("service/realtime/*.py"), root / "service/http/realtime.py"]
    raised = {code for file in sources for code in re.findall(r'code="(\w+)"', file.read_text())}
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", (root / "docs" / "realtime.md").read_text(), re.M)
    assert {code for row in listed for code in re.findall(r"\w+", row)} == raised | {"context_length_exceeded"}


async def test_an_answer_that_is_ended_is_told(talk: Talk) -> None:
    talk.engine.gate.clear()
    await send(talk, "response.create")
    await talk.session.end_answers()
    assert talk.kinds()[-1] == "response.done"
    assert talk.last("response.done")["response"]["status"] == "cancelled"


async def test_nothing_is_told_or_goes_on_after_its_end(talk: Talk) -> None:
    talk.engine.gate.clear()
    await append(talk, 0.5)
    await send(talk, "response.create", response={"conversation": "none"})
    told = len(talk.told)
    await talk.session.close()
    await talk.settle()
    assert len(talk.told) == told
    assert talk.engine.running == 0
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_the_names_of_the_beta() -> None:
    talk = Talk(in_beta_form=True)
    assert talk.kinds() == ["session.created", "conversation.created"]
    session: dict[str, Any] = {
        "modalities": ["audio", "text"],
        "input_audio_format": "g711_ulaw",
        "turn_detection": None,
        "input_audio_transcription": {"model": "whisper-1"},
        "max_response_output_tokens": 2,
        "temperature": 0.8,
    }
    (updated,) = await send(talk, "session.update", session=session)
    shown = session | {"modalities": ["text"], "temperature": None}
    assert {name: updated["session"].get(name) for name in shown} == shown
    assert not {"audio", "type", "output_modalities", "max_output_tokens"} & updated["session"].keys()
    await send(talk, "session.update", session={"input_audio_format": "pcm16"})
    await append(talk, 0.5)
    told = await send(talk, "input_audio_buffer.commit")
    assert kinds(told)[:2] == ["input_audio_buffer.committed", "conversation.item.created"]
    told = await send(talk, "response.create", response={"modalities": ["text"], "max_response_output_tokens": "inf"})
    assert "response.text.delta" in kinds(told)
    assert not [kind for kind in kinds(told) if "output_text" in kind or kind == "conversation.item.done"]
    response = told[-1]["response"]
    assert response["modalities"] == ["text"]
    assert response["output"][0]["content"] == [{"type": "text", "text": "Hello there."}]
    await talk.session.close()


async def test_a_transcription_session_of_the_beta() -> None:
    talk = Talk(SessionConfig(type="transcription"), in_beta_form=True)
    assert talk.kinds()[0] == "transcription_session.created"
    session = {"input_audio_transcription": {"model": "whisper-1"}, "turn_detection": {"type": "server_vad"}}
    (updated,) = await send(talk, "transcription_session.update", session=session)
    assert updated["type"] == "transcription_session.updated"
    await talk.session.close()
