"""A folder whose folders are models: what comes, changes and goes, told by its files alone."""

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from models.config import BlspConfig, CheckpointError
from service import model as models
from service import watching
from service.adapters import Adapter
from service.errors import ModelNotFound, OptionError
from service.model import Model, Models, Shared
from service.request import RequestContext, begin
from service.settings import ModelSettings, ServeSettings
from service.watching import WatchedFolder


class FakeListener:
    def with_embedder(self, *_: object) -> "FakeListener":
        return FakeListener()


def adapter(path: str) -> Adapter:
    checkpoint = SimpleNamespace(config=BlspConfig(), folder=Path(path), lora=None)
    return Adapter(cast(Any, checkpoint), cast(Any, SimpleNamespace()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Models:
    """A first model; adapters are loaded unless their weights are `broken`, while each that was there is still served."""

    def load(name: str, path: str, *_: Any) -> Adapter:
        names = found.names()
        if (Path(path) / "weights").read_text() == "broken":
            raise CheckpointError(f"The adapter {name!r} can't be served: it is broken")
        assert found.names() == names
        return adapter(path)

    monkeypatch.setattr(watching, "QUIET_SECONDS", 0)
    monkeypatch.setattr(models, "ChatService", lambda *_: None)
    monkeypatch.setattr(models, "load_adapter", load)
    engine = SimpleNamespace(forget_lora=AsyncMock())
    shared = Shared(ModelSettings(), *cast(Any, [engine, None, None, None]))
    found = Models(shared, ("first",), adapter("first"), cast(Any, FakeListener()))
    return found


def put(folder: Path, weights: str = "fine") -> Path:
    """An adapter's folder, or other weights in it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    before = (folder / "weights").stat().st_mtime_ns if (folder / "weights").exists() else 0
    (folder / "weights").write_text(weights)
    # Whatever the clock of the file system is worth.
    for file, changed in (("config.json", 0), ("weights", before + 1)):
        os.utime(folder / file, ns=(0, changed))
    return folder


def in_use(served: Models, name: str) -> tuple[Model, RequestContext]:
    """The model of a name, and a request that it is answering."""

    def ask() -> tuple[Model, RequestContext]:
        request = begin()
        return served.find(name), request

    return copy_context().run(ask)


async def until(condition: Callable[[], bool]) -> None:
    """What follows by itself."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_what_is_there_is_loaded(
    folder: Path, served: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("sales", "field", ".hidden", "no name", "bad"):
        put(folder / name, "broken" if name == "bad" else "fine")
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    (folder / "linked").symlink_to(put(tmp_path / "elsewhere"))
    watched = WatchedFolder(folder, served)
    for _ in range(2):
        await watched.look()
        assert served.names() == ["first", "field", "linked", "sales"]
    told = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 2, "once, whatever often it is looked at"
    assert told[0] == "The adapter 'bad' can't be served: it is broken"
    assert "'no name' is not 1 to 64 letters" in told[1]


async def test_what_is_broken_is_tried_again_when_it_changes(folder: Path, served: Models) -> None:
    put(folder / "sales", "broken")
    watched = WatchedFolder(folder, served)
    await watched.look()
    assert served.names() == ["first"]
    put(folder / "sales")
    await watched.look()
    assert served.names() == ["first", "sales"]


async def test_what_is_still_being_copied_waits(folder: Path, served: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[list[str]] = []
    look = watching._adapters

    def looking(path: Path) -> Any:
        looks.append(served.names())
        if len(looks) in (2, 3):
            put(folder / "slow", "fine" * len(looks))
        return look(path)

    monkeypatch.setattr(watching, "_adapters", looking)
    put(folder / "quick")
    put(folder / "slow", "broken")
    watched = WatchedFolder(folder, served)
    await watched.look()
    assert looks == [["first"], ["first"], ["first", "quick"], ["first", "quick"]]
    assert served.names() == ["first", "quick", "slow"]


@pytest.mark.parametrize("by_link", [False, True])
async def test_what_changes_takes_the_place_of_what_answers(
    folder: Path, served: Models, tmp_path: Path, by_link: bool
) -> None:
    """Also where it is a link that leads elsewhere now, as Kubernetes changes a volume, to files of the same size and time."""
    if by_link:
        (folder / "..data").symlink_to(put(tmp_path / "one"))
        (folder / "sales").symlink_to("..data")
    else:
        put(folder / "sales", "one")
    watched = WatchedFolder(folder, served)
    await watched.look()
    former, request = in_use(served, "sales")
    if by_link:
        (folder / "new").symlink_to(put(tmp_path / "two"))
        (folder / "new").rename(folder / "..data")
    else:
        put(folder / "sales", "two")
    await watched.look()
    assert served.find("sales") is not former
    assert watched._tasks, "it waits for who is being answered"
    request.held.close()
    await until(lambda: not watched._tasks)


async def test_what_is_broken_by_a_change_answers_on_as_it_was(folder: Path, served: Models) -> None:
    put(folder / "sales")
    watched = WatchedFolder(folder, served)
    await watched.look()
    former = served.find("sales")
    put(folder / "sales", "broken")
    await watched.look()
    assert served.find("sales") is former
    put(folder / "sales", "mended")
    await watched.look()
    assert served.find("sales") is not former


async def test_what_goes_is_unloaded(folder: Path, served: Models) -> None:
    put(folder / "sales")
    watched = WatchedFolder(folder, served)
    await watched.look()
    _, request = in_use(served, "sales")
    shutil.rmtree(folder / "sales")
    await watched.look()
    await until(lambda: served.names() == ["first"])
    assert watched._tasks, "it waits for who is being answered"
    request.held.close()
    await until(lambda: not watched._tasks)
    put(folder / "sales")
    await watched.look()
    assert served.names() == ["first", "sales"]


async def test_models_that_others_have_loaded_are_not_touched(
    folder: Path, served: Models, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = await served.load_adapter("sales", str(put(tmp_path / "other")))
    put(folder / "sales")
    watched = WatchedFolder(folder, served)
    await watched.look()
    assert "There is a model 'sales' already" in caplog.text
    shutil.rmtree(folder / "sales")
    await watched.look()
    assert served.serves(other)
    assert not watched._tasks


async def test_what_an_admin_has_unloaded_comes_back_when_it_changes(
    folder: Path, served: Models, tmp_path: Path
) -> None:
    put(folder / "sales")
    watched = WatchedFolder(folder, served)
    await watched.look()
    await served.unload_adapter("sales")
    await watched.look()
    with pytest.raises(ModelNotFound):
        served.find("sales")
    put(folder / "sales", "newer")
    await watched.look()
    _, request = in_use(served, "sales")
    unloading = asyncio.create_task(served.unload_adapter("sales"))
    await until(lambda: "sales" not in served.names())
    other = await served.load_adapter("sales", str(put(tmp_path / "other")))
    shutil.rmtree(folder / "sales")
    await watched.look()
    await asyncio.sleep(0)
    assert served.serves(other), "though what came of the folder is still answering"
    request.held.close()
    await unloading


async def test_a_folder_that_is_away_unloads_nothing(
    folder: Path, served: Models, caplog: pytest.LogCaptureFixture
) -> None:
    put(folder / "sales")
    watched = WatchedFolder(folder, served)
    await watched.look()
    folder.rename(folder.parent / "away")
    await watched.look()
    assert served.names() == ["first", "sales"]
    assert "stay as they are" in caplog.text


async def test_a_folder_that_may_not_be_entered_is_passed_over(
    folder: Path, served: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "lost+found").mkdir()
    put(folder / "sales")
    is_file = Path.is_file

    def entered(path: Path) -> bool:
        if path.parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", entered)
    await WatchedFolder(folder, served).look()
    assert served.names() == ["first", "sales"]


async def test_it_is_told_of_changes(folder: Path, served: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 3600)
    watched = WatchedFolder(folder, served)
    await watched.start()
    put(folder / "sales")
    try:
        async with asyncio.timeout(20):
            while "sales" not in served.names():
                (folder / ".sign").touch()  # what was told first may have been told before the watch
                await asyncio.sleep(0)
    finally:
        await watched.close()
    assert not watched._tasks


@pytest.mark.parametrize("given", [{}, {"adapter_folder": "nowhere"}])
def test_there_has_to_be_a_folder_to_watch(given: dict[str, str], folder: Path) -> None:
    with pytest.raises(OptionError, match="--watch-adapters watches the folder that --adapter-folder names"):
        ServeSettings.model_validate({"watch_adapters": True, **given}).watched_folder()
    watching_it = ServeSettings.model_validate({"watch_adapters": True, "adapter_folder": folder})
    assert watching_it.watched_folder() == folder
    assert ServeSettings.model_validate({"adapter_folder": folder}).watched_folder() is None
