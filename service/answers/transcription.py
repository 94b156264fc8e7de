"""OpenAI's `POST /v1/audio/transcriptions` and `/v1/audio/translations`.

A long recording is cut at quiet places into pieces, of at most 30 s, which the engine works on at the same time; their texts are joined in
order. About pieces in which nobody speaks nothing is asked of a small LLM, which would make up a text.
"""

import asyncio
import uuid
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from models.config import BlspConfig
from models.features import N_SAMPLES, SAMPLE_RATE
from models.prompt import Message, Speech, about
from models.spelling import Speller
from service.answers.fields import as_list
from service.answers.joint import hear, likeliest
from service.answers.prompting import QUOTE, Prompts
from service.answers.segments import quietest_cut, srt, vtt
from service.engine import Delta, Engine, Sampling, Token
from service.listening.deaf import Deaf
from service.listening.listener import Cut, Listener, Recording

SPARE_TOKENS = 16  # of a piece's text, beyond three for every two rows: more than anyone says, so that an LLM which loops comes to an end

LEAST_SPEECH = 0.5  # how probably somebody speaks in a piece about which a small LLM is asked

JOINT_SECONDS = 12.0  # of a piece that is decoded jointly, at most (models/smol/LOG.md)

QUIETLY = Cut(end=quietest_cut, least_speech=0.0)  # into pieces of 30 s at most

ResponseFormat: TypeAlias = Literal["json", "text", "srt", "verbose_json", "vtt"]


NO_WORDS = "The model tells no times of words: only segments have times."


class TranscriptionRequest(BaseModel):
    """The form fields beside `file`. Others are OpenAI's and other servers' that change nothing here; replies name them in a header."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    model: str | None = Field(None, description="a name that GET /v1/models lists; by default its first")
    language: str = Field("", description="language of the recording; said back in verbose_json")
    prompt: str = Field("", description="text that the model reads before the instruction")
    hotwords: str = Field(
        "", description="words that may be said, as faster-whisper's servers call them; read like the prompt"
    )
    temperature: float = Field(0.0, ge=0, le=1, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    response_format: ResponseFormat = "json"
    stream: bool = Field(False, description="server-sent events transcript.text.delta and transcript.text.done")
    keywords: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [], alias="keywords[]", description="words that may be said, as OpenAI calls them; read like the prompt"
    )
    include: Annotated[list[Literal["logprobs"]], BeforeValidator(as_list)] = Field(
        [], alias="include[]", description="logprobs: how likely each token of the text was, in JSON and in events"
    )
    timestamp_granularities: Annotated[list[Literal["segment", "word"]], BeforeValidator(as_list)] = Field(
        ["segment"],
        alias="timestamp_granularities[]",
        description="segments have times; for word a reply in verbose_json has a warning that words have none",
    )

    allow_truncated: bool = Field(
        False, description="writes down what there is of a file that was cut short; the reply says so"
    )

    @model_validator(mode="after")
    def _no_streamed_subtitles(self) -> "TranscriptionRequest":
        if self.stream and self.response_format in ("srt", "vtt"):
            raise ValueError(f"stream: {self.response_format} can't be streamed; leave out stream, or use json")
        return self

    @model_validator(mode="after")
    def _no_logprobs_in_text(self) -> "TranscriptionRequest":
        if self.include and not self.stream and self.response_format in ("text", "srt", "vtt"):
            raise ValueError(f"include: {self.response_format} has no place for logprobs; use json")
        return self

    def told(self) -> str:
        """What the model reads before the instruction."""
        return "\n".join(filter(None, (self.prompt, self.hotwords, ", ".join(self.keywords))))


@dataclass
class Piece:
    """What was said in one piece of the recording, as far as it is generated."""

    id: int
    start: float
    end: float
    text: str = ""
    speech: float | None = None
    """How probably somebody speaks, where that is known."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Token] = field(default_factory=list)
    logprob: float = 0.0
    prompt_tokens: int = 0
    finish_reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Takes one step."""
        self.text += delta.text
        self.tokens += delta.token_ids
        self.logprobs += delta.tokens
        self.logprob += delta.logprob
        self.prompt_tokens = delta.prompt_tokens
        self.finish_reason = delta.finish_reason

    def verbose(self, temperature: float) -> dict[str, Any]:
        """OpenAI's segment object; `finish_reason` says whether it was cut off."""
        data = self.text.encode()
        no_speech = {} if self.speech is None else {"no_speech_prob": 1 - self.speech}
        return {
            "id": self.id,
            "seek": round(self.start * 100),
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "tokens": self.tokens,
            "temperature": temperature,
            "avg_logprob": self.logprob / max(1, len(self.tokens)),
            "compression_ratio": len(data) / max(1, len(zlib.compress(data))),
            "finish_reason": self.finish_reason,
        } | no_speech


@dataclass
class Transcript:
    """All pieces of a recording."""

    recording: Recording
    pieces: list[Piece]

    @classmethod
    def of(cls, recording: Recording) -> "Transcript":
        """An empty transcript, with a piece for each window that has rows."""
        times = pairwise([0.0, *(end / SAMPLE_RATE for end in accumulate(recording.lengths))])
        speech = recording.speech or [None] * len(recording.windows)
        windows = zip(times, speech, recording.windows, strict=True)
        spoken = [(start, end, speech) for (start, end), speech, rows in windows if len(rows)]
        return cls(recording, [Piece(i, start, end, speech=speech) for i, (start, end, speech) in enumerate(spoken)])

    @property
    def text(self) -> str:
        """The pieces' texts, joined by spaces."""
        return " ".join(filter(None, (piece.text.strip() for piece in self.pieces)))

    @property
    def finish_reason(self) -> str:
        """ "length" where the text of a piece was cut off, by the context's end or by the most that a piece may have; else "stop"."""
        return "length" if any(piece.finish_reason == "length" for piece in self.pieces) else "stop"

    def logprobs(self, request: TranscriptionRequest) -> dict[str, Any]:
        """OpenAI's `logprobs` of all pieces, where they are asked for."""
        return _logprobs(request, [token for piece in self.pieces for token in piece.logprobs])

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage by tokens, over all pieces."""
        prompt = sum(piece.prompt_tokens for piece in self.pieces)
        completion = sum(len(piece.tokens) for piece in self.pieces)
        audio = len(self.recording.rows)
        return {
            "type": "tokens",
            "input_tokens": prompt,
            "output_tokens": completion,
            "total_tokens": prompt + completion,
            "input_token_details": {"audio_tokens": audio, "text_tokens": prompt - audio},
        }

    def body(self, request: TranscriptionRequest) -> str | dict[str, Any]:
        """The reply to a transcription: text for the formats that are text, else a JSON object."""
        if request.response_format == "text":
            return self.text + "\n"
        if request.response_format in ("srt", "vtt"):  # players count from the beginning of the file's timeline
            return (srt if request.response_format == "srt" else vtt)(self.pieces, self.recording.begins)
        warnings = [NO_WORDS] if "word" in request.timestamp_granularities and request.response_format != "json" else []
        if self.recording.truncated:
            warnings.append(self.recording.truncated.message)
        warned = self.logprobs(request) | ({"warnings": warnings} if warnings else {})
        if request.response_format == "json":
            return {"text": self.text, "usage": self.usage()} | warned
        body: dict[str, Any] = {
            "task": "transcribe",
            "duration": self.recording.seconds,
            "language": request.language,
            "text": self.text,
            "segments": [piece.verbose(request.temperature) for piece in self.pieces],
            "finish_reason": self.finish_reason,
            "usage": {"type": "duration", "seconds": self.recording.seconds},
        }
        return body | warned

    def translation(self, request: TranscriptionRequest) -> str | dict[str, Any]:
        """The reply to a translation: OpenAI's has no usage, and the language is that of the text."""
        body = self.body(request)
        if isinstance(body, str):
            return body
        del body["usage"]
        return body | ({"language": "english", "task": "translate"} if "language" in body else {})


def _logprobs(request: TranscriptionRequest, tokens: Sequence[Token]) -> dict[str, Any]:
    told = [{"token": one.text, "logprob": one.logprob, "bytes": list(one.text.encode())} for one in tokens]
    return {"logprobs": told} if request.include else {}


Shape: TypeAlias = Callable[[Transcript, TranscriptionRequest], str | dict[str, Any]]
"""How a transcript becomes a reply: Transcript.body or Transcript.translation."""


@dataclass(frozen=True)
class Task:
    """What the model is asked of each piece of a recording, which `cut` makes, and how its reply is begun.

    A quotation mark at the end of that ends the reply, too. With a speller, the model is asked without the speech, and its reply is joined
    with what was heard.
    """

    listener: Listener | Deaf
    """Who is to hear the recording."""
    instruction: str
    begun: str = ""
    cut: Cut = QUIETLY
    speller: Speller | None = None

    @classmethod
    def transcribe(cls, config: BlspConfig, listener: Listener | Deaf) -> "Task":
        """To write down what is said: the LLM repeats what it hears."""
        cut = Cut(round(config.transcribe_seconds * SAMPLE_RATE), quietest_cut, _least_speech(config))
        return cls(listener, config.transcribe_instruction, config.transcribe_begun, cut)

    @classmethod
    def translate(cls, config: BlspConfig, listener: Listener | Deaf) -> "Task":
        """To write down in English what is said."""
        return cls(listener, config.translate_instruction, cut=replace(QUIETLY, least_speech=_least_speech(config)))

    def joined(self, expecting: str, listener: Listener, speller: Speller) -> "Task":
        """The same, where the LLM is asked what it expects; `listener` hears rows before the speller."""
        cut = replace(self.cut, longest=round(JOINT_SECONDS * SAMPLE_RATE))
        return replace(self, instruction=expecting, listener=listener, cut=cut, speller=speller)


def _least_speech(config: BlspConfig) -> float:
    return LEAST_SPEECH if round(config.transcribe_seconds * SAMPLE_RATE) < N_SAMPLES else 0.0


class TranscriptionService:
    """Writes down what is said, or what it means in English."""

    def __init__(self, engine: Engine, prompts: Prompts) -> None:
        self._engine = engine
        self._prompts = prompts

    async def write(
        self, request: TranscriptionRequest, transcript: Transcript, to_do: Task
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Fills a transcript; yields OpenAI's `transcript.text.delta` events in the order of the recording, then the `done` event.

        Closing the iterator ends all generations. Raises ApiError.
        """
        queues = [asyncio.Queue[Delta | None]() for _ in transcript.pieces]
        spoken = [rows for rows in transcript.recording.windows if len(rows)]
        parts = zip(transcript.pieces, spoken, queues, strict=True)
        tasks = [asyncio.create_task(self._write_piece(request, to_do, *part)) for part in parts]
        try:
            space = ""  # what the text so far ends with: it is said only when text follows
            for queue, task in zip(queues, tasks, strict=True):
                async for text, tokens in _texts(queue):
                    yield {"type": "transcript.text.delta", "delta": space + text} | _logprobs(request, tokens)
                    space = ""
                await task
                space = " " if transcript.text else ""
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        yield (
            {"type": "transcript.text.done", "text": transcript.text, "finish_reason": transcript.finish_reason}
            | {"usage": transcript.usage()}
            | transcript.logprobs(request)
        )

    async def _write_piece(
        self,
        request: TranscriptionRequest,
        to_do: Task,
        piece: Piece,
        rows: Tensor,
        queue: asyncio.Queue[Delta | None],
    ) -> None:
        system = [Message("system", [told])] if (told := request.told()) else []
        request_id, speller = f"transcription-{uuid.uuid4().hex}", to_do.speller
        stop = (QUOTE,) if to_do.begun.endswith(QUOTE) else ()
        likely = bool(request.include) or request.response_format == "verbose_json"
        limit = SPARE_TOKENS + 3 * len(rows) // 2
        sampling = Sampling(limit, 0, request.temperature, request.top_p, stop, request.seed, logprobs=likely)
        try:
            asked = about(to_do.instruction, Speech(rows)) if speller is None else Message("user", [to_do.instruction])
            prompt = await self._prompts.build([*system, asked], "prompt", begun=to_do.begun)
            if speller is None:
                deltas = self._engine.stream(prompt, sampling, request_id)
            else:
                lattice = await asyncio.to_thread(hear, speller, rows)
                deltas = likeliest(self._engine, lattice, prompt, sampling, self._prompts.quotes, request_id)
            async with aclosing(deltas):
                async for delta in deltas:
                    piece.add(delta)
                    queue.put_nowait(delta)
        finally:
            queue.put_nowait(None)


async def _texts(queue: asyncio.Queue[Delta | None]) -> AsyncIterator[tuple[str, list[Token]]]:
    """The texts up to None, less the white space around the whole, and the tokens that have come with each and since the one before."""
    begun, space = False, ""
    tokens: list[Token] = []
    while (delta := await queue.get()) is not None:
        text = space + delta.text if begun else delta.text.lstrip()
        tokens += delta.tokens
        space = text[len(text.rstrip()) :]
        if text := text.rstrip():
            begun = True
            yield text, tokens
            tokens = []
