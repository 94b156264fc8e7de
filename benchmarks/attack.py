"""`make attack`: requests that are made to stop a server, each beside a client who streams an answer and one who asks /version.

What was found once, and the like: bodies whose parsing grows with their size, grammars that are long in compiling, audio that cannot fit
the context, uploads that stall. It measures how long the two clients wait at most, without and with the attack, and how soon the server's
processes are idle once all have left.
"""

import argparse
import asyncio
import io
import json
import time
import wave
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import aiohttp

from benchmarks import processes, report
from service.settings import DEFAULT_MODEL

SLOWER = 0.3  # seconds that a client may wait longer than without an attack
IDLE_WITHIN = 5.0  # seconds after the attackers have left
IDLE = 0.2  # cores, of all processes together
PATIENCE = 30.0  # of an attacker
AT_ONCE = 3  # attackers
DTYPE = "bfloat16"
BOUNDARY = "attack"
PRESS = {"Content-Type": "application/json"}
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@dataclass(frozen=True)
class Attack:
    """A body that is sent to a path, by several at once, who leave after `patience` seconds."""

    path: str
    body: Callable[[], Any]
    headers: dict[str, str] = field(default_factory=lambda: PRESS)
    patience: float = PATIENCE


def chat(**fields: Any) -> bytes:
    """A chat request's body."""
    return json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8} | fields).encode()


def choices(number: int, length: int) -> list[str]:
    """Different strings of letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return ["".join(letters[(i * 7 + j * (i + 1)) % 26] for j in range(length)) for i in range(number)]


def silence(seconds: int, rate: int) -> bytes:
    """A wav file of 8 bits a sample."""
    with io.BytesIO() as file, wave.open(file, "wb") as recording:
        recording.setparams((1, 1, rate, 0, "NONE", ""))
        recording.writeframes(b"\x80" * (seconds * rate))
        recording.close()
        return file.getvalue()


async def _dripping() -> AsyncIterator[bytes]:
    for _ in range(1000):
        yield b"RIFF"
        await asyncio.sleep(0.5)


RAW = {"Content-Type": "application/octet-stream"}
CHAT = "/v1/chat/completions"
ATTACKS = {
    "100,000 empty messages": Attack(CHAT, lambda: chat(messages=[{"role": "user", "content": ""}] * 100_000)),
    "a message of 200,000 empty parts": Attack(
        CHAT, lambda: chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 200_000}])
    ),
    "1 MB of history": Attack(
        "/v1/speech", lambda: _form(history=json.dumps([{"role": "user", "content": ""}] * 30_000)), FORM
    ),
    "12 MB of brackets in a field that does not exist": Attack(CHAT, lambda: chat(unknown=[[]] * 4_000_000)),
    "nested brackets": Attack(CHAT, lambda: b'{"messages": ' + b"[" * 5_000_000),
    "5,000,000 token ids": Attack("/v1/completions", lambda: json.dumps({"prompt": [1] * 5_000_000}).encode()),
    "200 choices of 1,000 letters": Attack(
        CHAT, lambda: chat(structured_outputs={"choice": choices(200, 1000)}), patience=3
    ),
    "choices as long as they may be": Attack(
        CHAT, lambda: chat(structured_outputs={"choice": choices(30, 1000)}), patience=3
    ),
    "a pattern that branches": Attack(
        CHAT, lambda: chat(structured_outputs={"regex": "((a|b|c)*(d|e|f)*){50}" * 20}), patience=3
    ),
    "a schema as long as it may be": Attack(
        CHAT,
        lambda: chat(
            structured_outputs={
                "json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(800)}}
            }
        ),
        patience=3,
    ),
    "ten minutes of silence at 1 kHz": Attack("/v1/speech", lambda: silence(590, 1000), RAW),
    "uploads that stall": Attack("/v1/speech", _dripping, RAW, patience=5),
}


def _form(**fields: str) -> bytes:
    """A form of these fields and a recording, whose boundary is `BOUNDARY`."""
    parts = [f'form-data; name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.append(b'form-data; name="file"; filename="a.wav"\r\n\r\n' + silence(1, 8000))
    edge = f"--{BOUNDARY}".encode()
    return b"".join(edge + b"\r\nContent-Disposition: " + part + b"\r\n" for part in parts) + edge + b"--\r\n"


class Bystanders:
    """A client who streams one answer after the other, and one who asks /version: the longest that each had to wait."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.gap = self.version = 0.0

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Both are at it while the block runs."""
        self.gap = self.version = 0.0
        tasks = [asyncio.create_task(self._stream()), asyncio.create_task(self._ask())]
        await asyncio.sleep(1)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(ended, asyncio.CancelledError):
                    raise RuntimeError("a bystander was not answered") from (
                        ended if isinstance(ended, Exception) else None
                    )

    async def _stream(self) -> None:
        question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 400, "ignore_eos": True}
        while True:
            async with self._session.post(CHAT, json=question | {"stream": True}) as response:
                assert response.status == 200, await response.text()
                last = time.perf_counter()
                async for _ in response.content:
                    now = time.perf_counter()
                    self.gap, last = max(self.gap, now - last), now

    async def _ask(self) -> None:
        while True:
            asked = time.perf_counter()
            async with self._session.get("/version") as response:
                assert response.status == 200
            self.version = max(self.version, time.perf_counter() - asked)
            await asyncio.sleep(0.02)


async def press(url: str, attack: Attack, body: Any) -> Counter[str]:
    """All attackers at once: what became of their requests."""

    async def one(session: aiohttp.ClientSession) -> str:
        with suppress(TimeoutError, aiohttp.ClientError):
            # A body of its own: one that is sent twice would be read up to its end.
            data = io.BytesIO(body) if isinstance(body, bytes) else _dripping()
            async with (
                asyncio.timeout(attack.patience),
                session.post(attack.path, data=data, headers=attack.headers) as response,
            ):
                await response.read()
                return str(response.status)
        return "left"

    async with aiohttp.ClientSession(url) as session:
        return Counter(await asyncio.gather(*(one(session) for _ in range(AT_ONCE))))


async def idle_after(server: processes.Server) -> float:
    """Seconds until the server's processes use next to no CPU; 60 where they do for longer."""
    start, used = time.perf_counter(), sum(server.cpu_seconds().values())
    for _ in range(60):
        await asyncio.sleep(1)
        before, used = used, sum(server.cpu_seconds().values())
        if used - before < IDLE:
            return time.perf_counter() - start - 1
    return 60.0


async def measure(server: processes.Server, names: Iterable[str]) -> list[dict[str, Any]]:
    """Prints a line for each attack; returns the figures, first those without one."""
    rows = []
    limit = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(server.url, connector=limit, timeout=aiohttp.ClientTimeout(total=120)) as session:
        bystanders = Bystanders(session)
        async with bystanders.watching():
            await asyncio.sleep(5)  # warm
        async with bystanders.watching():
            await asyncio.sleep(10)
        rows.append(
            {"attack": "none", "gap": bystanders.gap, "version": bystanders.version, "idle": 0.0, "outcomes": {}}
        )
        _print(rows[-1])
        for name in names:
            attack = ATTACKS[name]
            body = attack.body()  # made before, and sent from a thread: making it must not keep the bystanders waiting
            async with bystanders.watching():
                outcomes = await asyncio.to_thread(asyncio.run, press(server.url, attack, body))
            idle = await idle_after(server)
            rows.append(
                {
                    "attack": name,
                    "gap": bystanders.gap,
                    "version": bystanders.version,
                    "idle": idle,
                    "outcomes": outcomes,
                }
            )
            _print(rows[-1])
    return rows


def _print(row: dict[str, Any]) -> None:
    told = ", ".join(f"{number} x {outcome}" for outcome, number in row["outcomes"].items())
    waits = f"gap {row['gap']:5.2f} s  /version {row['version']:5.2f} s  idle after {row['idle']:4.1f} s"
    print(f"{row['attack']:50} {waits}  {told}", flush=True)


def find_defects(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Sentences about what should not be."""
    usual, *attacks = rows
    for row in attacks:
        if row["gap"] > usual["gap"] + SLOWER or row["version"] > usual["version"] + SLOWER:
            yield f"{row['attack']}: others waited"
        if row["idle"] > IDLE_WITHIN:
            yield f"{row['attack']}: {row['idle']:.0f} s until idle"
        yield from (f"{row['attack']}: {outcome}" for outcome in row["outcomes"] if outcome.startswith("5"))


def main() -> None:
    """Prints the figures; ends with 1 where somebody had to wait or the server was not idle soon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ATTACKS), help="this attack; may be repeated")
    names = parser.parse_args().only or list(ATTACKS)
    with processes.ours(
        DTYPE, checkpoint=DEFAULT_MODEL
    ) as server:  # whose 49,152 tokens make grammars long in compiling
        rows = asyncio.run(measure(server, names))
    if len(rows) > len(ATTACKS):
        made = f"{date.today()}, {processes.machine()}, {DTYPE}, {AT_ONCE} attackers at once"
        report.ATTACK.write_text(json.dumps({"made": made, "attacks": rows}, indent=1))
        report.write(report.read())
    defects = list(find_defects(rows))
    print("\n".join(defects) or "Nobody had to wait.")
    raise SystemExit(bool(defects))


if __name__ == "__main__":
    main()
