"""Models by their names, and how one goes."""

import asyncio
import gc
import weakref
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from models.config import BlspConfig, CheckpointError
from models.features import SAMPLE_RATE
from service import model as models
from service.adapters import Adapter
from service.errors import InvalidRequest, ModelNotFound, NameTaken
from service.listening.deaf import Deaf
from service.model import Models, Shared
from service.request import RequestContext, begin, running
from service.settings import ModelSettings


class Ears:
    """Stands in for an embedder."""

    adapter = SimpleNamespace(speller=object())

    def without_speller(self) -> str:
        return "unspelled"


class FakeListener:
    def __init__(self, embedder: object = None) -> None:
        self.embedder = embedder

    def with_embedder(self, embedder: object, _: object) -> "FakeListener":
        return FakeListener(embedder)


class FakeEngine:
    """With the LoRA of a model that it was `tuned` for, or without; `forgotten` are those that went."""

    is_guided = True

    def __init__(self, tuned: str | None = None, forgotten: list[str] | None = None) -> None:
        self.tuned = tuned
        self.forgotten: list[str] = [] if forgotten is None else forgotten

    async def with_lora(self, name: str, folder: Path) -> "FakeEngine":
        if folder == Path("wide"):
            raise CheckpointError("the rank is too high")
        return FakeEngine(name, self.forgotten)

    async def forget_lora(self) -> None:
        if self.tuned:
            self.forgotten.append(self.tuned)


def adapter(lora: Path | None = None, **config: Any) -> Adapter:
    checkpoint = SimpleNamespace(config=BlspConfig(**config), folder=Path("x"), lora=lora)
    return Adapter(cast(Any, checkpoint), cast(Any, Ears()))


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def several(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> Models:
    """A first model of two names, the LLM by itself, and an adapter."""
    monkeypatch.setattr(models, "ChatService", lambda *_: None)
    shared = Shared(ModelSettings(), *cast(Any, [engine, None, None, None]))
    several = Models(shared, ("first", "1st"), adapter(), cast(Any, FakeListener()))
    several.add_llm("llm")
    await several.add_adapter("second", adapter(transcribe_instruction="Write."))
    return several


def test_names(several: Models) -> None:
    assert several.names() == ["first", "1st", "llm", "second"]
    assert several.find(None) is several.find("first") is several.find("1st") is several.first
    second = several.find("second")
    assert second.transcribe.instruction == "Write."
    assert second.adapter is not None
    assert cast(Any, second.listener).embedder is second.adapter.embedder
    with pytest.raises(ModelNotFound, match="this server has 'first', '1st', 'llm', 'second'"):
        several.find("nope")


@pytest.mark.parametrize("is_guided", [True, False])
async def test_what_is_heard_is_joined_with_what_the_llm_expects(
    several: Models, engine: FakeEngine, is_guided: bool
) -> None:
    engine.is_guided = is_guided
    asks: dict[str, Any] = {
        "transcribe_expecting": "Say it.",
        "transcribe_begun": '"',
        "transcribe_seconds": 7,
        "adapter": {"spelling_dim": 8},
    }
    third = await several.add_adapter("third", adapter(**asks))
    task = third.transcribe
    assert (task.speller is Ears.adapter.speller) is is_guided
    assert (task.instruction == "Say it.") is is_guided
    assert (cast(Any, task.listener).embedder == "unspelled") is is_guided
    assert task.cut.longest == (12 if is_guided else 7) * SAMPLE_RATE
    assert third.talks is not None
    assert third.talks.transcribe is task
    assert third.talks.listener is third.translate.listener is third.listener
    assert several.first.transcribe.speller is None


def test_clients_that_name_openais(several: Models) -> None:
    assert several.known("gpt", None) is several.known(None) is several.first
    assert several.known("gpt", "second") is several.known("second", "llm") is several.find("second")


async def test_the_llm_by_itself_is_deaf(several: Models) -> None:
    llm = several.find("llm")
    assert isinstance(llm.listener, Deaf)
    assert llm.talks is None
    with pytest.raises(InvalidRequest, match="'llm' reads text alone"):
        await llm.listener.hear(b"")


async def test_it_goes_when_the_last_request_is_over_that_it_answers(several: Models) -> None:
    def ask() -> RequestContext:
        """In a context of its own, as each request is."""
        context = begin()
        several.find("second")
        several.find("second")
        return context

    requests = [copy_context().run(ask) for _ in range(2)]
    ears = weakref.ref(cast(Any, several.find("second").adapter).embedder)
    running().held.close()  # the test's own
    unloading = asyncio.create_task(several.unload_adapter("second"))
    await asyncio.sleep(0)
    with pytest.raises(ModelNotFound):
        several.find("second")
    for context in requests:
        assert not unloading.done()
        context.held.close()
        await asyncio.sleep(0)
    await unloading
    assert "second" not in several.names()
    gc.collect()
    assert ears() is None


async def test_a_model_with_a_lora_answers_with_it_until_it_goes(several: Models, engine: FakeEngine) -> None:
    model = await several.add_adapter("tuned", adapter(Path("lora")))
    assert model.talks is not None
    asked: list[Any] = [cast(Any, model.speech)._engine, cast(Any, model.transcription)._engine, model.talks.engine]
    assert [each.tuned for each in asked] == ["tuned"] * 3
    assert cast(Any, several.find("second").speech)._engine is engine
    context = copy_context()
    request = context.run(begin)
    context.run(several.find, "tuned")
    unloading = asyncio.create_task(several.unload_adapter("tuned"))
    await asyncio.sleep(0)
    assert engine.forgotten == []
    request.held.close()
    await unloading
    assert engine.forgotten == ["tuned"]


@pytest.mark.parametrize(
    ("name", "error"), [("first", InvalidRequest), ("1st", InvalidRequest), ("llm", InvalidRequest)]
)
async def test_what_stays(several: Models, name: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="no adapter"):
        await several.unload_adapter(name)
    assert name in several.names()


async def test_each_that_is_loaded_finds_those_before(several: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two are loaded at once; and one that fails leaves nothing."""
    beside: list[int] = []

    def load(name: str, path: str, settings: ModelSettings, others: list[Adapter]) -> Adapter:
        beside.append(len(others))
        if path == "bad":
            raise CheckpointError("The adapter 'd' can't be served: it is bad")
        return adapter(Path("wide") if path == "wide" else None)

    monkeypatch.setattr(models, "load_adapter", load)
    await asyncio.gather(*(several.load_adapter(name, name) for name in "abc"))
    assert beside == [2, 3, 4]
    with pytest.raises(InvalidRequest, match="'d' can't be served: it is bad"):
        await several.load_adapter("d", "bad")
    with pytest.raises(InvalidRequest, match="The adapter 'd' can't be served: the rank is too high"):
        await several.load_adapter("d", "wide")
    with pytest.raises(NameTaken):
        await several.load_adapter("llm", "x")
    assert several.names() == ["first", "1st", "llm", "second", "a", "b", "c"]
