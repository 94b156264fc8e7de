"""Home Assistant's integrations for speech to text, and its bridge from the Wyoming protocol, by the requests that they send.

The integrations run within it only; it and the bridge need a newer Python than the service does.
"""

import base64
import io
import json
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from websockets.sync.client import connect

from service.audio.decode import decode
from service.audio.raw import encode
from service.settings import DEFAULT_MODEL
from tests.serving import Server
from tests.sounds import encoded, voice, wav

VERSION = "2026.11.0"
WYOMING_OPENAI = "0.8.0"
OPENAI_STT = "be01d18"  # commits
WHISPER_CLOUD = "4298845"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def stereo(width: int) -> bytes:
    """A wav file as its microphones may give it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(width)
        out.setframerate(44_100)
        out.writeframes(bytes(2 * width * 44_100))
    return file.getvalue()


@pytest.mark.parametrize(
    "file", [("a.wav", wav(voice(2.0))), ("a.wav", stereo(3)), ("a.ogg", encoded("ogg", "libopus", 2.0))]
)
def test_the_integration_of_its_own(client: openai.OpenAI, server: Server, file: tuple[str, bytes]) -> None:
    """Home Assistant, homeassistant/components/openai_conversation/stt.py: through OpenAI's client, with its default prompt."""
    prompt = "The following conversation is a smart home user talking to Home Assistant."
    reply = client.audio.transcriptions.create(
        model=server.model, file=file, response_format="json", language="en", prompt=prompt
    )
    assert reply.text


def test_the_bridge(client: openai.OpenAI, server: Server) -> None:
    """wyoming_openai/handler.py, through OpenAI's client: streamed where STT_STREAMING_MODELS names the model."""
    asked: Any = {
        "model": server.model,
        "language": "en",
        "temperature": 0.0,
        "prompt": "Lamps.",
        "response_format": "json",
    }
    whole = client.audio.transcriptions.create(file=("recording.wav", wav(voice(2.0))), **asked)
    events = client.audio.transcriptions.create(file=("recording.wav", wav(voice(2.0))), **asked, stream=True)
    assert whole.text
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == whole.text


def test_the_bridge_while_it_listens(server: Server) -> None:
    """The same, with STT_REALTIME_MODELS: no turns, and the end said by the bridge."""
    audio = {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": None}
    transcription = {"model": server.model, "language": "en"}
    session = {"type": "transcription", "audio": {"input": audio | {"transcription": transcription}}}
    told = transcribed(server, {"type": "session.update", "session": session}, {})
    assert "transcript" in told


def test_openai_stt(server: Server) -> None:
    """einToast/openai_stt_ha, custom_components/openai_stt/http_client.py: every field is a part of its own, an empty prompt too."""
    parts: Any = {
        "file": ("whisper_audio.wav", wav(voice(2.0)), "audio/wav"),
        "model": (None, server.model),
        "language": (None, "en"),
        "prompt": (None, ""),
        "temperature": (None, "0"),
        "response_format": (None, "json"),
    }
    with server.client() as http:
        reply = http.post("/v1/audio/transcriptions", headers={"Authorization": "Bearer none"}, files=parts)
    assert reply.status_code == 200, reply.text
    assert reply.json()["text"]


def test_openai_stt_that_talks(server: Server) -> None:
    """The same, websocket_client.py, with `realtime: true`: in the words of the beta, and the end said by the client."""
    session = {
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"model": "gpt-4o-mini-transcribe", "prompt": "", "language": "en"},
        "turn_detection": {"type": "server_vad"},
        "input_audio_noise_reduction": None,
    }
    update = {"type": "transcription_session.update", "session": session}
    assert "transcript" in transcribed(server, update, {"OpenAI-Beta": "realtime=v1"})


def transcribed(server: Server, update: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    """What a socket tells of a recording that is sent after an update of its session, and committed."""
    with (DEFAULT_MODEL.parent / "samples" / "japan.flac").open("rb") as file:
        samples = np.concatenate(list(decode(file, max_seconds=60)))
    address = f"{server.url.replace('http', 'ws', 1)}/v1/realtime?intent=transcription"
    headers = {"Authorization": "Bearer none"} | headers
    with connect(address, additional_headers=headers, open_timeout=60) as socket:
        socket.send(json.dumps(update))
        data = encode(samples, "pcm_s16le", 24_000)
        for begin in range(0, len(data), 4096):
            audio = base64.b64encode(data[begin : begin + 4096]).decode()
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        told: dict[str, Any] = {}
        while told.get("type") != "conversation.item.input_audio_transcription.completed":
            told = json.loads(socket.recv(timeout=60))
    return told


@pytest.mark.parametrize("later", [{}, {"response_format": "json"}])
def test_whisper_cloud(server: Server, later: dict[str, str]) -> None:
    """fabio-garavini/ha-openai-whisper-stt-api, custom_components/openai_whisper_cloud/stt.py; later ones have one field more.

    Its config_flow.py asks for the models first; a custom provider is given no key, and sends this.
    """
    headers = {"Authorization": "Bearer None"}
    fields: Any = {"model": server.model, "language": "en", "temperature": 0, "prompt": ""} | later
    file = ("audio.wav", wav(voice(2.0)), "audio/wav")
    with server.client() as http:
        models = http.get("/v1/models", headers=headers | {"Content-Type": "application/json"})
        model = http.get(f"/v1/models/{server.model}", headers=headers)
        reply = http.post("/v1/audio/transcriptions", headers=headers, files={"file": file}, data=fields)
    assert server.model in [model["id"] for model in models.json()["data"]]
    assert model.status_code == 200
    assert reply.status_code == 200, reply.text
    assert reply.json()["text"]
