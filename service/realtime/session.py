"""One talk: what each event of the client does, and what is told of it.

Events are handled one after the other; answers and transcripts are made beside them. What is to be sent is handed to `emit` in the order in
which it came about. This file knows nothing about sockets.
"""

import asyncio
import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from models.features import SAMPLE_RATE
from service.answers.prompting import Prompts
from service.answers.transcription import Task, Transcript, TranscriptionRequest, TranscriptionService
from service.audio.raw import RawDecoder, Samples, encode
from service.engine import Engine
from service.errors import ApiError
from service.gate.admission import Admission, current_client
from service.listening.deaf import Deaf
from service.listening.listener import Listener, Recording
from service.listening.voice import FRAME, Detector, Voice
from service.realtime import beta
from service.realtime.answers import Answers
from service.realtime.config import SessionConfig, TranscriptionConfig
from service.realtime.conversation import Conversation, Heard, Item, read_audio, read_item
from service.realtime.ear import Ear, Said
from service.realtime.protocol import (
    Append,
    Clear,
    ClientEvent,
    Commit,
    Event,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    ItemTruncate,
    OutputClear,
    RealtimeError,
    ResponseCancel,
    ResponseCreate,
    SessionUpdate,
    error_event,
    event,
    new_id,
    read_event,
    read_values,
)
from service.realtime.response import Emit
from service.realtime.utterance import Utterance
from service.telemetry import metrics

T = TypeVar("T")

log = logging.getLogger(__name__)

KEPT_SECONDS = 600  # of what was said
MAX_TASKS = 8  # utterances that are being heard or written down, before the client is heard again
AT_ONCE_BYTES = 1 << 15  # of audio: some seconds, which a moment's work goes with


@dataclass(frozen=True)
class Talks:
    """What all sessions share."""

    engine: Engine
    prompts: Prompts
    listener: Listener
    detector: Detector
    transcription: TranscriptionService
    transcribe: Task
    model: str
    max_audio_seconds: float


class Session:
    """A client's talk, until `close`; belongs to the client whose request is running."""

    def __init__(
        self,
        talks: Talks,
        admission: Admission,
        config: SessionConfig,
        expires_at: int,
        emit: Emit,
        in_beta_form: bool = False,
    ) -> None:
        self.id = new_id("sess")
        self._talks = talks
        self._config = config
        self._expires_at = expires_at
        self._emit: Emit | None = emit
        self._in_beta_form = in_beta_form
        self._conversation = Conversation(KEPT_SECONDS * SAMPLE_RATE, talks.prompts.max_characters)
        self._answers = Answers(
            talks.engine,
            talks.prompts,
            admission,
            current_client(),
            self._conversation,
            lambda: self._config,
            self._tell,
        )
        self._ear = Ear(
            talks.listener,
            talks.detector,
            config.audio.input,
            talks.max_audio_seconds,
            reader=self._answers.reader if self._gives_answers else None,
            began=self._turn_began,
            ended=self._turn_ended,
        )
        self._item_id = new_id("item")  # of what is being said
        self._tasks: set[asyncio.Task[Any]] = set()
        self._tell(event("session.created", session=self._shown()))

    @property
    def _gives_answers(self) -> bool:
        return self._config.type == "realtime"

    def _tell(self, told: Event) -> None:
        if self._emit is None:
            return
        for named in beta.from_today(told, self._conversation.id) if self._in_beta_form else (told,):
            self._emit(named)

    def _beside(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Something is done beside the events."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Ends everything; nothing is told any more."""
        self._emit = None
        self._ear.clear()
        await self._answers.close()
        for item in self._conversation.items():
            item.drop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def end_answers(self) -> None:
        """Ends what is being answered, which is told."""
        await self._answers.close()

    async def answered(self) -> None:
        """Waits until no answer is being given, and all that was said is written down."""
        await self._answers.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def handle(self, text: str) -> None:
        """Does what an event asks, or tells what is wrong with it."""
        event_id = None
        try:
            values = read_values(text)
            given = values.get("event_id") if isinstance(values, Mapping) else None
            event_id = given if isinstance(given, str) else None
            await self._handle(read_event(beta.to_today(values) if self._in_beta_form else values))
            await self._keep_up()
        except ApiError as error:
            self.refuse(error, event_id)
        except Exception:
            log.exception("an event could not be handled")
            self.refuse(ApiError("The server had an error while handling the event."), event_id)

    async def _keep_up(self) -> None:
        """Waits while too much is still to be heard and written down: so does the client, then."""
        while len(self._tasks) > MAX_TASKS:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def refuse(self, error: ApiError, event_id: str | None = None) -> None:
        """Tells what is wrong with an event."""
        metrics.REFUSALS.labels(error.code or error.type).inc()
        self._tell(error_event(error, event_id))

    async def _handle(self, asked: ClientEvent) -> None:
        match asked:
            case Append():
                data = read_audio(asked.audio, "audio")
                for begin in range(0, len(data), AT_ONCE_BYTES):
                    await self._ear.take(data[begin : begin + AT_ONCE_BYTES])
                    await self._keep_up()
            case Commit():
                self._ear.check_commit()
                self._commit()
            case Clear():
                self._ear.clear()
                self._tell(event("input_audio_buffer.cleared"))
            case SessionUpdate():
                self._update(asked.session)
            case ItemCreate():
                await self._create_item(asked)
            case ItemRetrieve():
                item = self._conversation.find(asked.item_id)
                self._tell(event("conversation.item.retrieved", item=await self._with_audio(item)))
            case ItemDelete():
                self._conversation.remove(asked.item_id)
                self._tell(event("conversation.item.deleted", item_id=asked.item_id))
            case ItemTruncate():
                self._conversation.find(asked.item_id)
                raise RealtimeError(
                    "Only model output audio messages can be truncated.",
                    code="unsupported_content_type",
                    param="item_id",
                )
            case ResponseCreate():
                await self._create_response(asked)
            case ResponseCancel():
                self._answers.cancel("client_cancelled", asked.response_id)
            case OutputClear():
                pass

    # What the session is.

    def _update(self, update: Mapping[str, Any]) -> None:
        if update.get("type", self._config.type) != self._config.type:
            raise RealtimeError(
                f"This is a {self._config.type!r} session, and stays one.", code="invalid_value", param="session.type"
            )
        config = self._config.updated(update)
        self._talks.prompts.check_length(len(config.instructions), "session.instructions")
        self._config = config
        self._ear.set(self._config.audio.input)
        self._tell(event("session.updated", session=self._shown()))

    def _shown(self) -> Event:
        shown = {"id": self.id, **self._config.shown(), "expires_at": self._expires_at, "include": None}
        return shown if self._config.type == "transcription" else {**shown, "model": self._talks.model}

    # What is said.

    def _turn_began(self, milliseconds: int) -> None:
        self._tell(
            event("input_audio_buffer.speech_started", audio_start_ms=max(0, milliseconds), item_id=self._item_id)
        )
        detection = self._config.turn_detection
        if detection and detection.interrupt_response:
            self._answers.interrupt()

    def _turn_ended(self, milliseconds: int) -> None:
        self._tell(event("input_audio_buffer.speech_stopped", audio_end_ms=milliseconds, item_id=self._item_id))
        said = self._commit()
        detection = self._config.turn_detection
        if detection and detection.create_response and self._gives_answers:
            self._answers.answer(said.ended)

    def _commit(self) -> Said:
        said = self._ear.commit()
        heard = Heard.of(self._beside(said.recording), said.samples)
        item = Item("user", [heard], id=self._item_id)
        self._item_id = new_id("item")
        before = self._conversation.add(item)
        self._tell(event("input_audio_buffer.committed", previous_item_id=before, item_id=item.id))
        self._added(item, before)
        return said

    async def _transcribe(self, item: Item, heard: Heard, index: int, config: TranscriptionConfig) -> None:
        """Writes down what was said."""
        place = {"item_id": item.id, "content_index": index}
        kind = "conversation.item.input_audio_transcription"
        try:
            recording = (await self._heard(heard)).spoken(self._talks.transcribe.cut.least_speech)
            transcript = Transcript.of(recording)
            request = TranscriptionRequest(prompt=config.prompt or "", language=config.language or "")
            async for told in self._talks.transcription.write(request, transcript, self._talks.transcribe):
                if told["type"] == "transcript.text.delta":
                    self._tell(event(f"{kind}.delta", **place, delta=told["delta"]))
            heard.transcript = transcript.text
            self._tell(event(f"{kind}.completed", **place, transcript=transcript.text, usage=transcript.usage()))
        except ApiError as error:
            told = {"type": error.type, "code": error.code, "message": error.message, "param": error.param}
            self._tell(event(f"{kind}.failed", **place, error=told))

    async def _heard(self, heard: Heard) -> Recording:
        """What was said, as transcriptions hear it; answers have been heard before."""
        recording, task = await heard.heard(), self._talks.transcribe
        if task.speller is None or isinstance(task.listener, Deaf):
            return recording
        return await self._hear(await asyncio.to_thread(heard.floats), task.listener)

    # What is in the conversation.

    async def _create_item(self, asked: ItemCreate) -> None:
        item, audio = self._read_item(asked.item, "item")
        self._conversation.place(item, asked.previous_item_id)
        await self._hear_parts(item, audio, "item")
        self._added(item, self._conversation.add(item, asked.previous_item_id))

    def _read_item(self, values: Mapping[str, Any], where: str) -> tuple[Item, dict[int, bytes]]:
        item, audio = read_item(values, where)
        self._talks.prompts.check_length(item.characters, where)
        self._talks.prompts.check_pieces(len(item.parts), where)
        return item, audio

    async def _hear_parts(self, item: Item, audio: Mapping[int, bytes], where: str) -> None:
        """Puts in place what is said in an item; where one part can't be heard, none is."""
        try:
            for i, data in audio.items():
                item.parts[i] = await self._hear_at_once(data, f"{where}.content.{i}.audio")
                await self._keep_up()
        except BaseException:
            item.drop()
            raise

    async def _hear_at_once(self, data: bytes, where: str) -> Heard:
        """Hears what is said as a whole."""
        decoder = RawDecoder(*self._config.audio.input.format.coding())
        samples = await asyncio.to_thread(decoder.decode, data)
        seconds = len(samples) / SAMPLE_RATE
        if not 0 < seconds <= self._talks.max_audio_seconds:
            raise RealtimeError(
                f"The audio lasts {seconds:.1f} s; it may be up to {self._talks.max_audio_seconds:g} s.",
                code="invalid_value",
                param=where,
            )
        return Heard.of(self._beside(asyncio.create_task(self._hear(samples, self._talks.listener))), samples)

    async def _hear(self, samples: Samples, listener: Listener) -> Recording:
        utterance = Utterance(listener.hear_samples)
        frames, probabilities = await self._talks.detector.listen(Voice(), samples)
        try:
            for frame, probability in zip(frames, probabilities, strict=True):
                await utterance.add(frame, probability)
            return await utterance.finish(samples[len(samples) - len(samples) % FRAME :])
        except BaseException:
            utterance.drop()
            raise

    def _added(self, item: Item, before: str | None) -> None:
        """An item has joined the conversation: has written down what is said in it, and forgets what is too much."""
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._tell(event(kind, previous_item_id=before, item=item.shown()))
        if transcription := self._config.audio.input.transcription:
            for index, part in enumerate(item.parts):
                if isinstance(part, Heard):
                    self._beside(asyncio.create_task(self._transcribe(item, part, index, transcription)))
        for item_id in self._conversation.forget():
            self._tell(event("conversation.item.deleted", item_id=item_id))

    async def _with_audio(self, item: Item) -> Event:
        shown = item.shown()
        coding = self._config.audio.input.format.coding()
        for part, content in zip(item.parts, shown["content"], strict=True):
            if isinstance(part, Heard):
                data = await asyncio.to_thread(encode, part.floats(), *coding)
                content["audio"] = base64.b64encode(data).decode()
        return shown

    # What is answered.

    async def _create_response(self, asked: ResponseCreate) -> None:
        if not self._gives_answers:
            raise RealtimeError("A transcription session has no responses.", code="invalid_value", param="type")
        options = asked.response
        await self._answers.make_way(options)
        context = None if options.input is None else await self._context(options.input)
        self._answers.create(options, context)

    async def _context(self, entries: Sequence[Mapping[str, Any]]) -> list[Item]:
        items: list[Item] = []
        for i, values in enumerate(entries):
            where = f"response.input.{i}"
            if values.get("type") == "item_reference":
                items.append(self._conversation.find(str(values.get("id")), f"{where}.id"))
                continue
            item, audio = self._read_item(values, where)
            await self._hear_parts(item, audio, where)
            items.append(item)
        return items
