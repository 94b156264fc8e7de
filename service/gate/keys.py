"""Who may ask: API keys by name, of which only hashes are kept.

A key is 32 random bytes. That can't be guessed however fast a hash is, so one SHA-256 is enough; the slow hashes that passwords need
would only cost every request their time. This file knows nothing about HTTP.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from service.errors import OptionError

log = logging.getLogger(__name__)

ANONYMOUS = "anonymous"  # the client of a request that needs no key
_LINE = re.compile(r"([A-Za-z0-9._-]{1,64})\s+sha256:([0-9a-f]{64})")

LENT = "ek_"  # how keys begin that are lent: OpenAI's clients go by it
MAX_LENT = 100  # to one

_Entry = tuple[str, bytes]  # a name and the SHA-256 of its key


def new_key() -> str:
    """A key that nobody has."""
    return f"blsp-{secrets.token_urlsafe(32)}"


def key_line(name: str, key: str) -> str:
    """The line of a key file that lets a key in; raises OptionError for a name that could not stand there."""
    line = f"{name} sha256:{_hash(key).hex()}"
    if _LINE.fullmatch(line) is None or name == ANONYMOUS:
        raise OptionError(f"The name {name!r} is not 1 to 64 letters, digits, '.', '_' or '-', or is {ANONYMOUS!r}.")
    return line


class Lent(NamedTuple):
    """A key for a while."""

    name: str  # whose it is
    until: float
    what_for: Any


class Keys:
    """The keys of a file, which is read again when it changes, and of a text (lines separated by commas).

    A name may have several keys, so that one can be exchanged without a gap. Raises OptionError for a line that is no key and for a file
    that is no text, OSError for one that can't be read; where a file goes bad later, its former keys stay.
    """

    def __init__(self, text: str = "", file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lent: dict[bytes, Lent] = {}
        self._fixed = _parse(text.split(","), "the setting 'keys'")
        self._file = file
        self._seen = _state(file)
        self._from_file = _read(file)
        self.required = bool(self._fixed) or file is not None

    def lend(self, name: str, seconds: float, what_for: Any = None) -> str:
        """A further key of somebody's, for so long; where one has too many, the oldest of them makes room."""
        now = self._clock()
        self._lent = {digest: lent for digest, lent in self._lent.items() if lent.until > now}
        own = [digest for digest, lent in self._lent.items() if lent.name == name]
        if len(own) >= MAX_LENT:
            del self._lent[own[0]]
        key = f"{LENT}{secrets.token_urlsafe(32)}"
        self._lent[_hash(key)] = Lent(name, now + seconds, what_for)
        return key

    def lent(self, key: str) -> "Lent | None":
        """What goes with a key that is lent, by who still has one; None for any other."""
        found = self._lent.get(_hash(key)) if key.startswith(LENT) else None
        if not found or found.until <= self._clock():
            return None
        self._refresh()
        still_has_one = any(name == found.name for name, _ in (*self._fixed, *self._from_file))
        return found if still_has_one or not self.required else None

    def name_of(self, key: str) -> str | None:
        """The name that goes with a key, None for a key that nobody has; takes as long for the one as for the other."""
        self._refresh()
        digest = _hash(key)
        found = None
        for name, known in (*self._fixed, *self._from_file):
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _refresh(self) -> None:
        state = _state(self._file)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._from_file = _read(self._file)
            log.info("%s has changed: %d keys", self._file, len(self._from_file))
        except (OSError, OptionError) as error:
            log.error("the former keys stay: %s", error)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _state(file: Path | None) -> tuple[int, int, int] | None:
    """What changes whenever a file is written or another put in its place; None while there is none."""
    try:
        stat = None if file is None else os.stat(file)
    except OSError:
        return None
    return None if stat is None else (stat.st_ctime_ns, stat.st_size, stat.st_ino)


def _read(file: Path | None) -> list[_Entry]:
    if file is None:
        return []
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{file} is not UTF-8: {error}.") from error
    return _parse(text.splitlines(), str(file))


def _parse(lines: Iterable[str], where: str) -> list[_Entry]:
    entries: list[_Entry] = []
    for number, line in enumerate(lines, 1):
        if not (line := line.partition("#")[0].strip()):
            continue
        match = _LINE.fullmatch(line)
        if match is None or match[1] == ANONYMOUS:
            raise OptionError(f"{where}, line {number} is not 'NAME sha256:…' as `blsp key NAME` prints it.")
        entries.append((match[1], bytes.fromhex(match[2])))
    return entries
