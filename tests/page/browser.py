"""A headless Chromium that hears a file as its microphone, and pages of it that fail a test for what no page of ours may do."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserType, Locator, Page, sync_playwright

from tests.sounds import wav

CHROMIUM = shutil.which("chromium")
AXE = Path(__file__).parents[1] / "javascript" / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]

# On CI the tests run whatever is there, so that a missing browser fails them.
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no browser: apt-get install chromium"
)
needs_axe = pytest.mark.skipif(
    not AXE.is_file() and not os.environ.get("CI"), reason="no axe-core: run npm ci in tests/javascript"
)


@contextmanager
def chromium(microphone: Path) -> Iterator[Browser]:
    """A browser whose microphone hears a wav file, again and again."""
    with sync_playwright() as playwright, launched(playwright.chromium, microphone) as browser:
        yield browser


@contextmanager
def launched(kind: BrowserType, microphone: Path) -> Iterator[Browser]:
    """Another, beside one that runs already and whose `browser_type` is given."""
    browser = kind.launch(executable_path=CHROMIUM, args=[*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"])
    yield browser
    browser.close()


@contextmanager
def opened(browser: Browser, url: str, expected: Sequence[str] = (), **options: Any) -> Iterator[Page]:
    """The page of the server at `url`, in a fresh context; in the end, nothing may have gone wrong in it but what is expected.

    That is: no error on the console, no exception that nobody caught, and no request to any other origin.
    """
    wrong: list[str] = []
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(f"uncaught: {error}"))
        page.on("request", lambda request: wrong.append(request.url) if is_elsewhere(request.url, url) else None)
        page.on("websocket", lambda socket: wrong.append(socket.url) if is_elsewhere(socket.url, url) else None)
        page.goto(f"{url}/")
        yield page
    assert [text for text in wrong if not any(part in text for part in expected)] == []


def is_elsewhere(target: str, url: str) -> bool:
    address = urlsplit(target)
    return address.scheme in ("http", "https", "ws", "wss") and address.netloc != urlsplit(url).netloc


def ready(page: Page) -> None:
    """Waits until the page knows that the server is there."""
    page.locator("#state[data-state=ready]").wait_for()
    page.locator("#model option").wait_for(state="attached")


def drop(page: Page, name: str, data: bytes) -> None:
    """Drops a file on the page, and waits until it is taken."""
    transfer = page.evaluate_handle(
        """([name, data]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([Uint8Array.from(data)], name));
          return transfer;
        }""",
        [name, list(data)],
    )
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    page.locator("#heard #name", has_text=name).wait_for()


def choose(page: Page, task: str) -> None:
    """Chooses what to do with the recording, by the keyboard: while turns come in, the page scrolls, and a click may miss."""
    page.get_by_label(task, exact=True).press("Space")


def ask(page: Page) -> Locator:
    """Asks about the recording; the turn that begins with it."""
    turns = page.locator(".turn").count()
    page.get_by_role("button", name="Ask", exact=True).click()
    return turn(page, turns)


def turn(page: Page, number: int) -> Locator:
    """A turn of the conversation, once it has begun."""
    found = page.locator(".turn").nth(number)
    found.wait_for()
    return found


def comes_to(turn: Locator, state: str) -> str:
    """Waits until a turn is in a state; its answer by then."""
    turn.and_(turn.page.locator(f"[data-state={state}]")).wait_for(timeout=60_000)
    return turn.locator(".answer").inner_text()


def record(page: Page, seconds: float) -> None:
    """Holds the button for so much of speech."""
    box = page.locator("#record").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    recorded(page, seconds)
    page.mouse.up()


def recorded(page: Page, seconds: float) -> None:
    """Waits until so much has been recorded."""
    page.locator("#heard[data-state=rolling]").wait_for()
    page.wait_for_function("least => parseFloat(document.getElementById('length').textContent) >= least", arg=seconds)


def at_48_khz(file: Path, pause: float) -> bytes:
    """A recording, and a pause behind it, as the wav file that a browser takes for a microphone."""
    import av

    resampler = av.AudioResampler("flt", "mono", 48_000)
    with av.open(str(file)) as container:
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    samples = np.concatenate([frame.to_ndarray()[0] for frame in [*frames, *resampler.resample(None)]])
    return wav(np.concatenate([samples, np.zeros(round(pause * 48_000), np.float32)]), 48_000)
