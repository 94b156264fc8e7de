"""A bot of Pipecat's whose model is BLSP. It hears a file as it would hear a microphone, and writes what it answers.

With a transport: in the line that makes the pipeline, put `transport.input()` first and `tts, transport.output()` behind
`screen`; and leave out the line that begins to `play`. The model gives text.
"""

import argparse
import asyncio
import sys
import time

import soundfile
from loguru import logger
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    LLMRunFrame,
    LLMTextFrame,
    UserStartedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregator,
    UserTurnMessageAddedMessage,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.realtime.events import (
    AudioConfiguration,
    AudioInput,
    InputAudioTranscription,
    SessionProperties,
)
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner


class Screen(FrameProcessor):
    """Writes words as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = asyncio.Event()
        self._has_words = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Lets every frame pass."""
        await super().process_frame(frame, direction)
        match frame:
            case UserStartedSpeakingFrame():
                self.answered.clear()
                self._has_words = False
            case LLMTextFrame():
                print(frame.text, end="", flush=True)
                self._has_words = True
            case LLMFullResponseEndFrame() if self._has_words:
                print()
                self.answered.set()
        await self.push_frame(frame, direction)


async def play(file: str, worker: PipelineWorker, answered: asyncio.Event) -> None:
    """Lets the bot hear a file at the pace of speech, and silence from then on until what is said in it is answered."""
    await answered.wait()  # it greets first
    samples, rate = soundfile.read(file, dtype="int16", always_2d=True)
    tenth = rate // 10
    begin, due = 0, time.monotonic()
    while begin < len(samples) or not answered.is_set():
        mono = samples[begin : begin + tenth, 0].tobytes()
        await worker.queue_frame(InputAudioRawFrame(mono.ljust(2 * tenth, b"\0"), rate, num_channels=1))
        begin, due = begin + tenth, due + 0.1
        await asyncio.sleep(due - time.monotonic())
    await asyncio.sleep(1)  # a transcript may come after the answer
    await worker.cancel()


async def talk(url: str, model: str, key: str, file: str) -> None:
    """Lasts until what is said in the file is answered."""
    llm = OpenAIRealtimeLLMService(
        api_key=key,
        base_url=f"{url.replace('http', 'ws', 1)}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(
            model=model,
            system_instruction="Answer in one short sentence.",
            session_properties=SessionProperties(
                output_modalities=["text"],
                audio=AudioConfiguration(input=AudioInput(transcription=InputAudioTranscription())),
                max_output_tokens=100,
            ),
        ),
    )
    # Pipecat gives the service its context with the first run. Without one it would do so when the first turn is over, and
    # ask for a second answer to that.
    context = LLMContextAggregatorPair(LLMContext([{"role": "user", "content": "Hello!"}]))
    screen = Screen()
    worker = PipelineWorker(Pipeline([context.user(), llm, screen, context.assistant()]))

    @context.user().event_handler("on_user_turn_message_added")
    async def transcribed(_: LLMUserAggregator, message: UserTurnMessageAddedMessage) -> None:
        print(f"[You said: {message.content}]")

    @worker.event_handler("on_pipeline_error")
    async def went_wrong(_: PipelineWorker, frame: ErrorFrame) -> None:
        await worker.cancel(reason=frame.error)

    runner = WorkerRunner()
    await runner.add_workers(worker)
    await worker.queue_frame(LLMRunFrame())
    playing = asyncio.create_task(play(file, worker, screen.answered))
    await runner.run()
    if not playing.done():
        sys.exit(1)  # Pipecat has said why


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="blsp-smol")
    parser.add_argument("--key", default="none")
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    asyncio.run(talk(**vars(parser.parse_args())))
