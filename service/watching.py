"""A folder of adapters, watched: each folder in it is a model while it is there, by the folder's name."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from watchfiles import awatch

from models.weights import Files, files_in
from service import memory
from service.errors import ApiError, OptionError
from service.model import Model, Models
from service.settings import check_name

QUIET_SECONDS = 1.0  # in which nothing of an adapter has changed that is loaded: it might be half copied
LOOK_SECONDS = 10.0  # between two looks where nothing is told: not every file system tells of changes

log = logging.getLogger(__name__)


class WatchedFolder:
    """Loads what comes into a folder, anew what changes, and unloads what goes. Belongs to one event loop.

    It touches no model but those that it has loaded itself.
    """

    def __init__(self, folder: Path, models: Models) -> None:
        self._folder = folder
        self._models = models
        self._tried: dict[str, Files] = {}  # what was there of each when it was last loaded, or refused
        self._loaded: WeakValueDictionary[str, Model] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Loads what is there, then watches until `close`."""
        await self.look()
        self._spawn(self._watch())

    async def close(self) -> None:
        """Ends the watch; what is loaded stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self) -> None:
        told = awatch(self._folder, watch_filter=None, rust_timeout=round(1000 * LOOK_SECONDS), yield_on_timeout=True)
        try:
            async with aclosing(told):
                async for _ in told:
                    await self.look()
        except OSError as error:  # no further watch is to be had, say
            log.error("The folder %s is not watched any more: %s", self._folder, error)

    async def look(self) -> None:
        """Brings the models to what is in the folder, until nothing in it changes any more."""
        try:
            now = await asyncio.to_thread(_adapters, self._folder)
            before = None
            while now != before:
                await asyncio.sleep(QUIET_SECONDS)
                before, now = now, await asyncio.to_thread(_adapters, self._folder)
                await self._follow(before, now)
        except OSError as error:
            log.error("The models of %s stay as they are: %s", self._folder, error)

    async def _follow(self, before: dict[str, Files], now: dict[str, Files]) -> None:
        """Loads and unloads what has been as it is `now` for a while."""
        for name in self._tried.keys() - before.keys() - now.keys():
            del self._tried[name]
            if (model := self._loaded.pop(name, None)) and self._models.serves(model):
                log.info("The adapter %r is gone", name)
                self._spawn(self._unload(name))
        for name, files in now.items():
            if files == before.get(name) and files != self._tried.get(name):
                self._tried[name] = files
                await self._load(name)

    async def _load(self, name: str) -> None:
        former = self._loaded.get(name)
        if former and not self._models.serves(former):  # an admin has unloaded it
            former = None
        try:
            check_name(name)
            self._loaded[name] = await self._models.load_adapter(name, str(self._folder / name), former)
        except (OptionError, ApiError) as error:
            log.error("%s", error)
            return
        log.info("The adapter %r is loaded", name)
        if former:
            self._spawn(self._end(former))

    async def _unload(self, name: str) -> None:
        await self._models.unload_adapter(name)
        await asyncio.to_thread(memory.collect)

    async def _end(self, model: Model) -> None:
        await self._models.end(model)
        del model
        await asyncio.to_thread(memory.collect)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _adapters(folder: Path) -> dict[str, Files]:
    """The files of each folder with a config.json, by its name. Raises OSError where `folder` is away.

    What begins with a dot is hidden, and so is what may not be entered: the root of a volume has such a folder.
    """
    found = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return {path.name: files_in(path) for path in found if _has_config(path)}


def _has_config(path: Path) -> bool:
    try:
        return (path / "config.json").is_file()
    except PermissionError:
        return False
