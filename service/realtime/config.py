"""What a session is set to. Of what clients ask, all that is known here counts; what would change nothing is accepted and left out."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from service.audio.raw import Coding
from service.realtime.protocol import invalid

NESTED = {"audio", "input", "output"}  # whose keys are set one by one
SEMANTIC_SILENCE_MS = {"low": 1200, "medium": 700, "auto": 700, "high": 400}  # after which eagerness


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class PcmFormat(_Lenient):
    """16-bit little-endian samples, mono."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000, 16000] = 24000

    def coding(self) -> tuple[Coding, int]:
        """FFmpeg's name of it, and its rate."""
        return "pcm_s16le", self.rate


class G711Format(_Lenient):
    """8 bits a sample at 8 kHz, mono."""

    type: Literal["audio/pcmu", "audio/pcma"]

    def coding(self) -> tuple[Coding, int]:
        """FFmpeg's name of it, and its rate."""
        return ("pcm_mulaw" if self.type == "audio/pcmu" else "pcm_alaw"), 8000


AudioFormat = Annotated[PcmFormat | G711Format, Field(discriminator="type")]


class TranscriptionConfig(_Lenient):
    """That what is said is written down, too: by the model that is served, whichever is named."""

    model: str | None = Field(None, max_length=256)
    language: str | None = Field(None, max_length=64)
    prompt: str | None = Field(None, max_length=20_000)


def _nothing(_: Any) -> None:
    return None


def _as_server_vad(value: Any) -> Any:
    """What is asked to wait for the meaning's end waits for silence, as long as its eagerness allows."""
    if not isinstance(value, Mapping):
        return value
    value = {name: given for name, given in value.items() if given is not None}
    if value.get("type") != "semantic_vad":
        return value
    silence = SEMANTIC_SILENCE_MS.get(str(value.get("eagerness")), SEMANTIC_SILENCE_MS["auto"])
    return {**value, "type": "server_vad", "silence_duration_ms": silence}


class TurnDetection(_Lenient):
    """How the turns of the speaker are told."""

    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(300, ge=0, le=10_000)
    silence_duration_ms: int = Field(500, ge=0, le=30_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: Annotated[None, BeforeValidator(_nothing)] = None


class AudioInput(_Lenient):
    """What comes in."""

    format: AudioFormat = Field(default_factory=PcmFormat)
    transcription: Annotated[
        TranscriptionConfig | None,
        PlainSerializer(lambda config: config and config.model_dump(exclude_none=True)),
    ] = None
    noise_reduction: Annotated[None, BeforeValidator(_nothing)] = None
    turn_detection: Annotated[TurnDetection | None, BeforeValidator(_as_server_vad)] = Field(
        default_factory=TurnDetection
    )


class Audio(_Lenient):
    """What comes in; nothing goes out."""

    input: AudioInput = Field(default_factory=AudioInput)


class SessionConfig(_Lenient):
    """A session's settings; those of OpenAI's that are not here change nothing."""

    type: Literal["realtime", "transcription"] = "realtime"
    instructions: str = ""
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] = "inf"
    temperature: float = Field(0.0, ge=0, le=2)
    audio: Audio = Field(default_factory=Audio)

    @property
    def turn_detection(self) -> TurnDetection | None:
        """How turns are told; None: the client tells them."""
        return self.audio.input.turn_detection

    def updated(self, update: Mapping[str, Any]) -> "SessionConfig":
        """With the keys that are there; null sets one back. Raises InvalidRequest that names the key which is wrong."""
        try:
            return SessionConfig.model_validate(_merged(self.model_dump(), update))
        except ValidationError as error:
            raise invalid(error, "session") from error

    def shown(self) -> dict[str, Any]:
        """As OpenAI's clients read it, but for what the session itself knows."""
        audio_input = self.audio.input.model_dump()
        if self.type == "transcription":
            return {"type": self.type, "object": "realtime.transcription_session", "audio": {"input": audio_input}}
        return {
            "type": self.type,
            "object": "realtime.session",
            "output_modalities": ["text"],
            "instructions": self.instructions,
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": self.max_output_tokens,
            "tracing": None,
            "prompt": None,
            "truncation": "auto",
            "audio": {
                "input": audio_input,
                "output": {"format": PcmFormat().model_dump(), "voice": "none", "speed": 1.0},
            },
        }


def _merged(config: dict[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(config)
    for key, value in update.items():
        if value is None and key != "turn_detection":
            result.pop(key, None)
        elif key in NESTED and isinstance(value, Mapping):
            result[key] = _merged(config.get(key, {}), value)
        else:
            result[key] = value
    return result
