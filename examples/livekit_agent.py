"""An agent of LiveKit's whose model is BLSP. It hears a file as it would hear a microphone, and writes what it answers.

In a room: leave out the line that sets `session.input.audio`, and give `room=ctx.room` to `session.start`. To be heard
there, it needs a voice, too: `AgentSession(llm=…, tts=…)`. The model gives text.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterable

from livekit.agents import (
    Agent,
    AgentSession,
    ConversationItemAddedEvent,
    ErrorEvent,
    ModelSettings,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
)
from livekit.agents.llm import ChatMessage
from livekit.agents.utils.audio import AudioByteStream, audio_frames_from_file
from livekit.agents.voice.io import AudioInput
from livekit.plugins.openai.realtime import RealtimeModel
from livekit.rtc import AudioFrame

RATE = 24_000
TENTH = RATE // 10  # of a second, in samples


class Microphone(AudioInput):
    """Hears a file at the pace of speech, and silence from then on."""

    def __init__(self, file: str) -> None:
        super().__init__(label="file")
        self.has_heard = asyncio.Event()
        self._frames = self._hear(file)

    async def __anext__(self) -> AudioFrame:
        return await anext(self._frames)

    async def _hear(self, file: str) -> AsyncGenerator[AudioFrame]:
        due = time.monotonic()
        async for frame in self._read(file):
            due += frame.duration
            await asyncio.sleep(due - time.monotonic())
            yield frame

    async def _read(self, file: str) -> AsyncGenerator[AudioFrame]:
        stream = AudioByteStream(RATE, num_channels=1, samples_per_channel=TENTH)
        async for decoded in audio_frames_from_file(file, RATE):
            for frame in stream.push(decoded.data):
                yield frame
        self.has_heard.set()
        while True:
            yield AudioFrame(bytes(2 * TENTH), RATE, num_channels=1, samples_per_channel=TENTH)


class Assistant(Agent):
    """Writes its words as they come."""

    async def transcription_node(self, text: AsyncIterable[str], model_settings: ModelSettings) -> AsyncGenerator[str]:
        """Gives the words on, too, as every agent's does."""
        async for words in text:
            print(words, end="", flush=True)
            yield words
        print()


async def talk(url: str, model: str, key: str, file: str) -> None:
    """Lasts until what is said in the file is answered."""
    llm = RealtimeModel(base_url=f"{url}/v1", model=model, api_key=key, modalities=["text"])
    session: AgentSession[None] = AgentSession(llm=llm)
    answered = asyncio.Event()
    failed = asyncio.Event()

    @session.on("user_state_changed")
    def user_changed(event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            answered.clear()

    @session.on("user_input_transcribed")
    def transcribed(event: UserInputTranscribedEvent) -> None:
        if event.is_final:
            print(f"\n[You said: {event.transcript.strip()}]")

    @session.on("conversation_item_added")
    def added(event: ConversationItemAddedEvent) -> None:
        match event.item:
            case ChatMessage(role="assistant", interrupted=False):
                answered.set()

    @session.on("error")
    def went_wrong(event: ErrorEvent) -> None:
        if not event.error.recoverable:
            failed.set()

    async def whole() -> None:
        await microphone.has_heard.wait()
        await answered.wait()
        await asyncio.sleep(1)  # a transcript may come after the answer

    session.input.audio = microphone = Microphone(file)
    await session.start(Assistant(instructions="Answer in one short sentence."))
    ends = [asyncio.create_task(whole()), asyncio.create_task(failed.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if failed.is_set():
        sys.exit(1)  # LiveKit has said why
    await session.aclose()
    await llm.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="blsp-smol")
    parser.add_argument("--key", default="none")
    asyncio.run(talk(**vars(parser.parse_args())))
