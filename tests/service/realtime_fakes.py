"""What a session stands on, without an engine: all it hears is a row, and all it answers is words that a test lets go."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import torch

from models.prompt import Message, Prompt, Speech
from service.answers.transcription import Task
from service.audio.raw import Samples, encode
from service.engine import Delta, Sampling
from service.errors import ContextTooLong
from service.gate.admission import Admission, Limits, Queued
from service.listening.deaf import Deaf
from service.listening.listener import Cut
from service.listening.voice import FRAME, Voice
from service.realtime.config import SessionConfig
from service.realtime.session import Session, Talks

CONTEXT = 200
NO_LIMITS = Limits(0, 0, 0, 0, 0, 0)


class FakeEngine:
    """Answers `words`, one a step, while the gate is open; notes its prompts."""

    max_model_len = CONTEXT

    def __init__(self) -> None:
        self.words = ["Hello", " there", "."]
        self.gate = asyncio.Event()
        self.gate.set()
        self.prompts: list[Prompt] = []
        self.prefilled: list[Prompt] = []
        self.running = 0
        self.error: Exception | None = None

    async def stream(self, prompt: Prompt, sampling: Sampling, request_id: str) -> AsyncGenerator[Delta, None]:
        if len(prompt.token_ids) >= CONTEXT:
            raise ContextTooLong("too long")
        self.prompts.append(prompt)
        self.running += 1
        try:
            for i, word in enumerate(self.words):
                await self.gate.wait()
                if self.error:
                    raise self.error
                cut = sampling.max_tokens == i + 1
                last = "length" if cut else "stop" if i + 1 == len(self.words) else None
                yield Delta(word, [i], last, len(prompt.token_ids), 0, 0.0)
                await asyncio.sleep(0)
                if cut:
                    return
        finally:
            self.running -= 1

    async def prefill(self, prompt: Prompt, request_id: str) -> None:
        self.prefilled.append(prompt)


class FakePrompts:
    """A token for each character of text, and the rows of speech; notes the messages."""

    max_characters = 5000
    format = "chat-template"

    def __init__(self) -> None:
        self.messages: list[list[Message]] = []
        self.max_built = self.max_characters

    async def build(self, messages: list[Message], param: str) -> Prompt:
        self.messages.append(messages)
        ids: list[int] = []
        is_token: list[bool] = []
        for message in messages:
            for part in message.parts:
                ids += [0] * len(part.rows) if isinstance(part, Speech) else [1] * len(part)
                is_token += [isinstance(part, str)] * (len(ids) - len(is_token))
        self.check_length(len(ids) - self.max_built + self.max_characters, param)
        return Prompt(ids, is_token, torch.zeros(len(ids), 1))

    def check_pieces(self, pieces: int, param: str) -> None:
        pass

    def check_length(self, characters: int, param: str) -> None:
        if characters > self.max_characters:
            raise ContextTooLong("too long", param=param)


class FakeListener:
    """A row for each tenth of a second."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.done: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def hear_samples(self, samples: Samples) -> torch.Tensor:
        self.heard.append(len(samples))
        await self.gate.wait()
        self.done.append(len(samples))
        if self.error:
            raise self.error
        return torch.zeros(max(1, len(samples) // 1600), 1)


class FakeDetector:
    """What is loud is speech."""

    async def listen(self, voice: Voice, samples: Samples) -> tuple[Samples, list[float]]:
        samples = np.concatenate([voice.rest, samples])
        end = len(samples) - len(samples) % FRAME
        voice.rest = samples[end:]
        frames = samples[:end].reshape(-1, FRAME)
        await asyncio.sleep(0)
        return frames, [0.95 if np.abs(frame).max() > 0.01 else 0.02 for frame in frames]


class FakeTranscription:
    """Writes down how much was heard."""

    async def write(self, request: Any, transcript: Any, to_do: Task) -> AsyncGenerator[dict[str, Any], None]:
        text = f"{len(transcript.recording.rows)} rows" if transcript.pieces else ""
        for piece in transcript.pieces[:1]:
            piece.text = text
            yield {"type": "transcript.text.delta", "delta": text}
        yield {"type": "transcript.text.done", "text": text}


class Talk:
    """A session, what it stands on, and all that it has told."""

    def __init__(
        self, config: SessionConfig | None = None, limits: Limits = NO_LIMITS, in_beta_form: bool = False
    ) -> None:
        self.engine, self.prompts, self.listener = FakeEngine(), FakePrompts(), FakeListener()
        fakes: Any = (self.engine, self.prompts, self.listener, FakeDetector(), FakeTranscription())
        talks = Talks(
            *fakes,
            transcribe=Task(Deaf("fake"), "Write", cut=Cut(least_speech=0.5)),
            model="fake",
            max_audio_seconds=20.0,
        )  # type: ignore[misc]
        self.told: list[dict[str, Any]] = []
        admission = Admission(limits, lambda: Queued(0.0, 0))
        self.session = Session(talks, admission, config or SessionConfig(), 0, self.told.append, in_beta_form)

    async def settle(self) -> None:
        """Lets everything happen that can."""
        for _ in range(60):
            await asyncio.sleep(0)

    def kinds(self) -> list[str]:
        return [told["type"] for told in self.told]

    def last(self, kind: str) -> dict[str, Any]:
        return next(told for told in reversed(self.told) if told["type"] == kind)


def sound(seconds: float, loud: bool = True, rate: int = 24000) -> str:
    """Base64 of PCM, speech to the fake detector or silence."""
    tone = 0.5 * np.sin(np.arange(round(16000 * seconds)) * 0.2) * loud
    return base64.b64encode(encode(tone.astype(np.float32), "pcm_s16le", rate)).decode()
