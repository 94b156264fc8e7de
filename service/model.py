"""What requests may name as `model`, all on one engine: models that hear, each by its adapter, and the LLM by itself."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from models.config import BlspConfig, CheckpointError
from service.adapters import Adapter, load_adapter
from service.answers.chat import ChatService
from service.answers.conversation import Conversations
from service.answers.fields import check_model
from service.answers.prompting import Prompts
from service.answers.speech import SpeechService
from service.answers.transcription import Task, TranscriptionService
from service.audio.fetch import Fetcher
from service.engine import Engine
from service.errors import InvalidRequest, NameTaken
from service.listening.deaf import Deaf
from service.listening.encoders import without_helpers
from service.listening.listener import Listener
from service.listening.voice import Detector
from service.realtime.session import Talks
from service.request import running
from service.settings import ModelSettings


@dataclass(frozen=True)
class Shared:
    """What all models have in common."""

    settings: ModelSettings
    engine: Engine
    prompts: Prompts
    fetcher: Fetcher
    detector: Detector


class Uses:
    """How many requests are using something. Belongs to one event loop."""

    def __init__(self) -> None:
        self._number = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts one for the duration of the block."""
        self._number += 1
        self._none.clear()
        try:
            yield
        finally:
            self._number -= 1
            if not self._number:
                self._none.set()

    async def end(self) -> None:
        """Waits until there is none."""
        await self._none.wait()


@dataclass(frozen=True, eq=False)
class Model:
    """A model: how it hears, and what answers each kind of request.

    `names` are its names in the API; replies carry the first. A model without an adapter reads text alone: its listener is deaf, and
    nobody talks with it.
    """

    names: Sequence[str]
    engine: Engine
    adapter: Adapter | None
    listener: Listener | Deaf
    speech: SpeechService
    chat: ChatService
    transcription: TranscriptionService
    transcribe: Task
    translate: Task
    talks: Talks | None
    uses: Uses = field(default_factory=Uses)

    @classmethod
    def make(
        cls,
        shared: Shared,
        names: Sequence[str],
        config: BlspConfig,
        listener: Listener | Deaf,
        adapter: Adapter | None = None,
    ) -> "Model":
        """A model whose listener hears by `adapter`, or is deaf."""
        settings, engine, prompts = shared.settings, shared.engine, shared.prompts
        conversations = Conversations(listener, shared.fetcher)
        speech = SpeechService(engine, conversations, prompts, names[0])
        chat = ChatService(engine, conversations, prompts, names, settings.tool_call_parser, settings.max_grammar_bytes)
        transcription = TranscriptionService(engine, prompts)
        transcribe, translate = Task.transcribe(config, listener), Task.translate(config, listener)
        talks = None
        if not isinstance(listener, Deaf):
            if adapter and config.transcribe_expecting and engine.is_guided:
                transcribe = _joined(transcribe, config.transcribe_expecting, listener, adapter)
            kept = (shared.detector, transcription, transcribe, names[0], settings.max_audio_seconds)
            talks = Talks(engine, prompts, listener, *kept)
        return cls(names, engine, adapter, listener, speech, chat, transcription, transcribe, translate, talks)


def _joined(task: Task, expecting: str, listener: Listener, adapter: Adapter) -> Task:
    speller = adapter.embedder.adapter.speller
    assert speller is not None
    unspelled = listener.with_embedder(adapter.embedder.without_speller(), adapter.load_encoder)
    return task.joined(expecting, unspelled, speller)


class Models:
    """All models by their names. Requests that name none get the first."""

    def __init__(self, shared: Shared, names: Sequence[str], adapter: Adapter, listener: Listener) -> None:
        """With the first one, which hears by `adapter`, as its `listener` does; those of others share its decoders and batches."""
        self._shared = shared
        self._listener = listener
        self._loading = asyncio.Lock()  # so that each finds the encoder that the one before has loaded
        self._ending: set[asyncio.Task[None]] = set()
        self._config = adapter.checkpoint.config
        self.first = Model.make(shared, names, self._config, listener, adapter)
        self._by_name = dict.fromkeys(names, self.first)

    def add_llm(self, name: str) -> None:
        """The LLM by itself, which reads text as the first model does."""
        self._by_name[name] = Model.make(self._shared, (name,), self._config, Deaf(name))

    async def add_adapter(self, name: str, adapter: Adapter) -> Model:
        """A model that hears by another adapter, and answers with its LoRA. Raises CheckpointError where the engine can't have that."""
        shared, checkpoint = self._shared, adapter.checkpoint
        if checkpoint.lora is not None:
            try:
                shared = replace(shared, engine=await shared.engine.with_lora(name, checkpoint.lora))
            except CheckpointError as error:
                raise CheckpointError(f"The adapter {name!r} can't be served: {error}") from error
        listener = self._listener.with_embedder(adapter.embedder, adapter.load_encoder)
        model = Model.make(shared, (name,), checkpoint.config, listener, adapter)
        self._by_name[name] = model
        return model

    async def load_adapter(self, name: str, path: str, instead_of: Model | None = None) -> Model:
        """Loads an adapter while others serve; the model of that name whose place it is to take answers until then, and is to be ended.

        Raises NameTaken, and InvalidRequest for one that can't be served.
        """
        async with self._loading:
            if self._by_name.get(name, instead_of) is not instead_of:
                raise NameTaken(
                    f"There is a model {name!r} already; unload it before, or take another name.", param="name"
                )
            beside = list(dict.fromkeys(model.adapter for model in self._by_name.values() if model.adapter))
            try:
                adapter = await asyncio.to_thread(_load_quietly, name, path, self._shared.settings, beside)
                return await self.add_adapter(name, adapter)
            except CheckpointError as error:
                raise InvalidRequest(str(error), param="path") from error

    async def unload_adapter(self, name: str) -> None:
        """Requests that name it get ModelNotFound from now on; returns when those that run are over.

        Raises ModelNotFound, and InvalidRequest for the first model and the LLM, which stay.
        """
        check_model(name, self.names())
        model = self._by_name[name]
        if model is self.first or model.adapter is None:
            raise InvalidRequest(f"The model {name!r} is no adapter that can be unloaded.", param="name")
        del self._by_name[name]
        await self.end(model)

    async def end(self, model: Model) -> None:
        """Returns when those requests are over that a model answers whose name is gone; then its LoRA is, too, even if nobody waits."""
        ending = asyncio.create_task(_end(model))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.shield(ending)

    def serves(self, model: Model) -> bool:
        """Whether its name is still its own."""
        return self._by_name.get(model.names[0]) is model

    def names(self) -> list[str]:
        """All names, those of the first model in front."""
        return list(self._by_name)

    def find(self, asked: str | None) -> Model:
        """The model that a request asks for, which stays until the request is over. Raises ModelNotFound."""
        check_model(asked, self.names())
        return _held(self.first if asked is None else self._by_name[asked])

    def known(self, *asked: str | None) -> Model:
        """As find; the model of the first of these names that is one's, else the first model: for clients that name OpenAI's."""
        return _held(next((self._by_name[name] for name in asked if name in self._by_name), self.first))


async def _end(model: Model) -> None:
    await model.uses.end()
    await model.engine.forget_lora()


def _held(model: Model) -> Model:
    request = running()
    request.model = model.names[0]
    request.held.enter_context(model.uses.one())
    return model


def _load_quietly(name: str, path: str, settings: ModelSettings, beside: Sequence[Adapter]) -> Adapter:
    without_helpers()
    return load_adapter(name, path, settings, beside)
