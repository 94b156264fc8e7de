"""`python -m tests.page.screenshots FOLDER`: how the page looks in each of its states, with the model that ships."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from service.settings import DEFAULT_MODEL, default_cache
from tests.page.browser import ask, at_48_khz, choose, chromium, comes_to, drop, opened, ready, record, recorded, turn
from tests.serving import serve

SAMPLES = DEFAULT_MODEL.parent / "samples"
DESK: dict[str, Any] = {"viewport": {"width": 1200, "height": 900}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


def main(folder: Path) -> None:
    """Makes them all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        microphone = Path(work) / "question.wav"
        microphone.write_bytes(at_48_khz(SAMPLES / "capital.flac", pause=2.0))
        with (
            serve(DEFAULT_MODEL, default_cache(), "--max-model-len", "1024") as server,
            chromium(microphone) as browser,
        ):
            for scheme in ("light", "dark"):
                _desk(browser, server.url, folder, scheme)
            _phone(browser, server.url, folder)


def _desk(browser: Browser, url: str, folder: Path, scheme: str) -> None:
    def shoot(page: Page, name: str) -> None:
        page.screenshot(path=folder / f"{name}-{scheme}.png")

    with opened(browser, url, ["400", "net::ERR"], **DESK, color_scheme=scheme) as page:
        ready(page)
        shoot(page, "empty")
        sample(page, "Capital of France")
        shoot(page, "chosen")
        comes_to(ask(page), "done")
        choose(page, "Transcribe")
        comes_to(ask(page), "done")
        choose(page, "Continue")
        asked = ask(page)
        comes_to(asked, "writing")
        shoot(page, "streaming")
        page.get_by_role("button", name="Stop").click()
        comes_to(asked, "stopped")
        choose(page, "Answer")
        page.locator("#record").press("Enter")
        recorded(page, 3.0)
        shoot(page, "recording")
        page.locator("#record").press("Enter")
        answered = turn(page, 3)
        comes_to(answered, "done")
        shoot(page, "answered")
        answered.locator("summary").click()
        answered.locator("pre").last.scroll_into_view_if_needed()
        shoot(page, "code")
        page.get_by_role("button", name="Clear").click()
        drop(page, "broken.wav", (SAMPLES / "sky.flac").read_bytes()[:40])
        comes_to(ask(page), "failed")
        shoot(page, "error")
        sample(page, "Color of the sky")
        page.route("**/ready", lambda route: route.abort())
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        page.get_by_text("The server does not answer.").wait_for()
        page.evaluate("document.getElementById('key-form').hidden = false")
        shoot(page, "away")
    with opened(browser, url, **DESK, color_scheme=scheme) as page:
        ready(page)
        page.get_by_role("button", name="Live").click()
        comes_to(turn(page, 0), "done")
        turn(page, 1)
        shoot(page, "live")


def _phone(browser: Browser, url: str, folder: Path) -> None:
    with opened(browser, url, **PHONE) as page:
        ready(page)
        page.screenshot(path=folder / "phone-empty.png", full_page=True)
        record(page, 3.0)
        comes_to(turn(page, 0), "done")
        page.screenshot(path=folder / "phone-answered.png", full_page=True)


def sample(page: Page, name: str) -> None:
    """Takes one of the page's samples."""
    page.get_by_role("button", name=name).click()
    page.locator("#heard[data-state=whole]").wait_for()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
