"""The protocol as it was called before: for clients that ask for `realtime=v1`, names are changed on the way in and out."""

from collections.abc import Iterator, Mapping
from typing import Any

from service.realtime.protocol import Event

HEADER = "realtime=v1"  # in OpenAI-Beta
SUBPROTOCOL = "openai-beta.realtime-v1"

FORMATS: dict[str, dict[str, Any]] = {
    "pcm16": {"type": "audio/pcm", "rate": 24000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}
OF_INPUT = {
    "input_audio_format": "format",
    "input_audio_transcription": "transcription",
    "input_audio_noise_reduction": "noise_reduction",
    "turn_detection": "turn_detection",
}
ELSEWHERE = {"modalities": "output_modalities", "max_response_output_tokens": "max_output_tokens"}
EVENTS = {
    "conversation.item.added": "conversation.item.created",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
}


def to_today(values: Any) -> Any:
    """An event of such a client's, as it is called today."""
    if not isinstance(values, Mapping):
        return values
    kind = values.get("type")
    if kind in ("session.update", "transcription_session.update"):
        return {**values, "type": "session.update", "session": _session_to_today(values.get("session"))}
    if kind == "response.create" and isinstance(values.get("response"), Mapping):
        return {**values, "response": _renamed(values["response"], ELSEWHERE)}
    return values


def from_today(event: Event, conversation_id: str) -> Iterator[Event]:
    """What such a client is told in place of an event."""
    if event["type"] == "conversation.item.done":
        return
    changed = event | {"type": EVENTS.get(event["type"], event["type"])}
    if "session" in event:
        changed["session"] = _session_from_today(event["session"])
        if event["session"]["type"] == "transcription":
            changed["type"] = f"transcription_{changed['type']}"
    if "response" in event:
        response = _renamed(event["response"], {"output_modalities": "modalities"})
        changed["response"] = response | {"output": [_item_from_today(item) for item in response["output"]]}
    if "item" in event:
        changed["item"] = _item_from_today(event["item"])
    yield changed
    if event["type"] == "session.created":
        conversation = {"id": conversation_id, "object": "realtime.conversation"}
        yield {"type": "conversation.created", "event_id": f"{event['event_id']}c", "conversation": conversation}


def _session_to_today(session: Any) -> Any:
    if not isinstance(session, Mapping):
        return session
    audio = {new: session[old] for old, new in OF_INPUT.items() if old in session}
    if isinstance(audio.get("format"), str):
        audio["format"] = FORMATS.get(audio["format"], audio["format"])
    rest = {name: value for name, value in session.items() if name not in OF_INPUT}
    return _renamed(rest, ELSEWHERE) | ({"audio": {"input": audio}} if audio else {})


def _session_from_today(session: Event) -> Event:
    audio = session["audio"]["input"]
    (form,) = (name for name, form in FORMATS.items() if form["type"] == audio["format"]["type"])
    told = {name: value for name, value in session.items() if name not in ("audio", "type")}
    told |= {old: audio[new] for old, new in OF_INPUT.items()} | {"input_audio_format": form}
    if session["type"] == "realtime":
        told |= {"output_audio_format": "pcm16", "voice": session["audio"]["output"]["voice"]}
    return _renamed(told, {new: old for old, new in ELSEWHERE.items()})


def _item_from_today(item: Event) -> Event:
    content = [part | {"type": "text"} if part["type"] == "output_text" else part for part in item["content"]]
    return item | {"content": content}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
