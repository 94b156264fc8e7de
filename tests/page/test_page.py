"""What people do with the page, in Chromium, against real servers."""

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
from playwright.sync_api import Browser, Page

from models.features import log_mel
from service.gate.keys import key_line, new_key
from service.settings import DEFAULT_MODEL
from tests.page.browser import (
    AXE,
    ask,
    at_48_khz,
    choose,
    chromium,
    comes_to,
    drop,
    launched,
    needs_axe,
    needs_browser,
    opened,
    ready,
    record,
    recorded,
    turn,
)
from tests.serving import Server, serve
from tests.sounds import voice, wav

pytestmark = needs_browser

SAMPLES = DEFAULT_MODEL.parent / "samples"
QUESTION, HEARD = "capital.flac", "France"
TRIES = 6  # on a busy machine the browser's microphone stutters
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}

# Keeps the text fields of each form that is sent, in `sent`.
SPY = """
  const send = window.fetch;
  window.sent = [];
  window.fetch = (path, options) => {
    if (options?.body) sent.push(Object.fromEntries([...options.body].filter(([, value]) => typeof value === "string")));
    return send(path, options);
  };
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    microphone = tmp_path_factory.mktemp("microphone") / "question.wav"
    microphone.write_bytes(at_48_khz(SAMPLES / QUESTION, pause=3.0))
    with chromium(microphone) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page of a server whose model talks nonsense at length."""
    with opened(browser, server.url) as page:
        ready(page)
        yield page


@pytest.fixture(scope="module")
def smol(smol_cache: Path) -> Iterator[Server]:
    with serve(DEFAULT_MODEL, smol_cache, "--max-model-len", "1024") as server:
        yield server


@pytest.fixture
def sensible(browser: Browser, smol: Server) -> Iterator[Page]:
    """The page of the model that ships."""
    with opened(browser, smol.url) as page:
        ready(page)
        yield page


def test_an_answer_is_seen_while_it_is_written(page: Page) -> None:
    drop(page, "speech.wav", wav(voice(1.0)))
    asked = ask(page)
    page.locator(".turn[data-state=writing] .answer:not(:empty)").wait_for()
    begun = asked.locator(".answer").inner_text()
    whole = comes_to(asked, "done")
    assert whole.startswith(begun.strip())
    assert "first words after" in asked.locator(".facts").inner_text()
    assert {"upload", "decode", "generate"} <= set(asked.locator(".legend").inner_text().split())


def test_an_answer_can_be_stopped(page: Page, server: Server) -> None:
    drop(page, "speech.wav", wav(voice(1.0)))
    asked = ask(page)
    page.locator(".turn[data-state=writing] .answer:not(:empty)").wait_for()
    page.get_by_role("button", name="Stop").click()
    assert comes_to(asked, "stopped")
    assert asked.locator(".facts").inner_text() == "stopped"
    server.wait_for(lambda: server.metric("vllm:num_requests_running") == 0)


def test_what_the_browser_cannot_decode_is_sent_all_the_same(page: Page) -> None:
    drop(page, "notes.txt", b"no sound at all")
    assert "cannot decode" in page.locator("#notice").inner_text()


def test_the_second_turn_brings_the_first_along(browser: Browser, server: Server) -> None:
    first, second = wav(voice(1.0)), wav(voice(1.5, seed=1))
    with opened(browser, server.url) as page:
        page.add_init_script(SPY)
        page.reload()
        ready(page)
        drop(page, "first.wav", first)
        choose(page, "Summarise")
        answer = comes_to(ask(page), "done")
        drop(page, "second.wav", second)
        asked = ask(page)
        comes_to(asked, "done")
        assert "1 earlier turn went along" in asked.locator(".facts").inner_text()
        sent = page.evaluate("sent")
    assert "history" not in sent[0]
    user, assistant = json.loads(sent[1]["history"])
    assert user["content"][0] == {"type": "text", "text": sent[0]["instruction"]}
    assert base64.b64decode(user["content"][1]["input_audio"]["data"]) == first
    assert assistant["content"].strip() == answer.strip()


def test_errors_are_in_words(browser: Browser, server: Server) -> None:
    with opened(browser, server.url, expected=["400 (Bad Request)"]) as page:
        ready(page)
        page.get_by_role("button", name="Ask", exact=True).click()
        assert "There is no recording yet." in page.get_by_role("status").inner_text()
        drop(page, "broken.wav", wav(voice(1.0))[:30])
        asked = ask(page)
        comes_to(asked, "failed")
        assert "Try another file, or record anew." in asked.locator(".facts").inner_text()


def test_the_picture_is_what_the_model_hears(page: Page) -> None:
    samples = np.concatenate([voice(1.234), np.zeros(4000, np.float32)])
    columns = page.evaluate(
        """async (samples) => {
          const { frameCount, logMels, scaled } = await import("./page/mel.js");
          return scaled(logMels(Float32Array.from(samples), 0, frameCount(samples.length))).map((one) => [...one]);
        }""",
        samples.tolist(),
    )
    expected = log_mel(torch.from_numpy(samples)).T
    assert torch.allclose(torch.tensor(columns), expected, atol=1e-3)


@pytest.mark.parametrize(("source", "target"), [(48_000, 16_000), (44_100, 24_000), (24_000, 16_000), (16_000, 24_000)])
def test_resampling_keeps_what_is_heard_and_nothing_else(page: Page, source: int, target: int) -> None:
    t = np.arange(source) / source
    heard, folded = np.sin(2 * np.pi * 1000 * t), np.sin(2 * np.pi * 11_900 * t) * (target == 16_000 < source / 2)
    result = page.evaluate(
        """async ([samples, source, target]) => {
          const { Resampler } = await import("./page/resampler.js");
          const resampler = new Resampler(source, target);
          const pieces = [];
          for (let i = 0; i < samples.length; i += 128) pieces.push(...resampler.push(Float32Array.from(samples.slice(i, i + 128))));
          return pieces;
        }""",
        [(heard + folded).tolist(), source, target],
    )
    assert len(result) == pytest.approx(target, abs=40)
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(result)) / target)
    assert np.abs(np.array(result) - expected)[100:].max() < 0.01


def test_it_fits_a_phone(browser: Browser, server: Server) -> None:
    with opened(browser, server.url, **PHONE) as page:
        ready(page)
        drop(page, "a-recording-with-quite-a-long-name-of-its-own.wav", wav(voice(1.0)))
        asked = ask(page)
        comes_to(asked, "done")
        asked.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") == 360


@needs_axe
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_everyone_can_use_it(browser: Browser, server: Server, colours: Any) -> None:
    with opened(browser, server.url, color_scheme=colours, bypass_csp=True) as page:
        ready(page)
        page.add_script_tag(path=AXE)
        assert violations(page) == []
        drop(page, "speech.wav", wav(voice(1.0)))
        asked = ask(page)
        comes_to(asked, "done")
        asked.locator("summary").click()
        choose(page, "Transcribe")
        page.evaluate("document.getElementById('key-form').hidden = false")
        assert violations(page) == []


def violations(page: Page) -> list[str]:
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{one['id']}: {one['help']} {[node['html'] for node in one['nodes']]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def test_it_asks_for_a_key_and_outlives_a_restart_of_the_server(
    browser: Browser, official: Path, tmp_path: Path
) -> None:
    key = new_key()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ("--port", port, "--keys", key_line("alice", key))
    expected = ["401 (Unauthorized)", "503 (Service Unavailable)", "net::ERR_"]
    with ExitStack() as running:
        running.enter_context(serve(official, tmp_path, *options))
        with opened(browser, f"http://127.0.0.1:{port}", expected) as page:
            field = page.get_by_label("API key")
            field.fill("wrong")
            field.press("Enter")
            page.locator("#key-why", has_text="This API key is nobody's.").wait_for()
            field.fill(key)
            field.press("Enter")
            page.get_by_text("The key is good.").wait_for()
            page.reload()
            ready(page)
            assert not field.is_visible()
            assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
            page.get_by_role("button", name="Live").click()
            page.get_by_role("button", name="End live").click()
            page.get_by_text("Live speech has ended.").wait_for()

            running.close()
            page.get_by_text("The server does not answer.").wait_for()
            with serve(official, tmp_path, *options):
                page.get_by_text("The server is ready again.").wait_for()
                drop(page, "speech.wav", wav(voice(1.0)))
                assert comes_to(ask(page), "done")


def is_heard(page: Page, speak: Callable[[], None]) -> bool:
    """Whether what is said comes through, once in some tries; each is answered."""
    for _ in range(TRIES):
        number = page.locator(".turn").count()
        speak()
        if HEARD in comes_to(turn(page, number), "done"):
            return True
    return False


def test_who_holds_the_button_and_speaks_is_answered(sensible: Page) -> None:
    assert is_heard(sensible, lambda: record(sensible, seconds=3.0))
    assert turn(sensible, 0).locator("[data-length]").inner_text().endswith(" s")


def test_the_space_bar_and_single_presses_record_too(sensible: Page) -> None:
    def by_space() -> None:
        sensible.keyboard.down("Space")
        recorded(sensible, 3.0)
        sensible.keyboard.up("Space")

    def by_presses() -> None:
        sensible.locator("#record").press("Enter")
        recorded(sensible, 3.0)
        sensible.locator("#record").press("Enter")

    for way in (by_space, by_presses):
        assert is_heard(sensible, way)


def test_a_sample_is_written_down(sensible: Page) -> None:
    sensible.get_by_role("button", name="Capital of France").click()
    sensible.locator("#heard[data-state=whole]").wait_for()
    choose(sensible, "Transcribe")
    assert "capital of France" in comes_to(ask(sensible), "done")


def test_the_code_beside_an_answer_gets_the_same_answer(sensible: Page, tmp_path: Path) -> None:
    drop(sensible, "what's this.flac", (SAMPLES / QUESTION).read_bytes())
    comes_to(ask(sensible), "done")
    asked = ask(sensible)
    answer = comes_to(asked, "done").strip()
    asked.locator("summary").click()
    for link in asked.locator("[data-files] a").all():
        with sensible.expect_download() as download:
            link.click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
    commands = (["bash", "-c"], [sys.executable, "-c"])
    by_curl, by_python = (
        subprocess.run(
            [*command, asked.locator(f"[data-{name}]").text_content() or ""],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        for command, name in zip(commands, ("curl", "python"), strict=True)
    )
    assert by_python.stdout.strip() == answer, by_python.stderr
    assert f'"text": "{answer}"' in by_curl.stdout, by_curl.stderr


def test_live_speech_is_answered_when_one_pauses(sensible: Page) -> None:
    sensible.get_by_role("button", name="Live").click()
    answered = sensible.locator(".turn", has_text=HEARD).first
    answered.wait_for(timeout=60_000)
    assert 2 < float(answered.locator("[data-length]").inner_text().removesuffix(" s")) < 4
    sensible.get_by_role("button", name="End live").click()
    sensible.get_by_text("Live speech has ended.").wait_for()
    drop(sensible, QUESTION, (SAMPLES / QUESTION).read_bytes())
    asked = ask(sensible)
    comes_to(asked, "done")
    assert "went along" in asked.locator(".facts").inner_text()


def test_live_speech_is_written_down(sensible: Page) -> None:
    choose(sensible, "Transcribe")
    sensible.get_by_role("button", name="Live").click()
    written = sensible.locator(".turn", has_text="capital of France").first
    written.wait_for(timeout=60_000)
    comes_to(written, "done")
    choose(sensible, "Answer")
    sensible.locator(".turn", has_text="Paris").first.wait_for(timeout=60_000)
    sensible.get_by_role("button", name="End live").click()


def test_who_speaks_again_interrupts_the_answer(browser: Browser, server: Server, tmp_path: Path) -> None:
    """Of a model that talks at length, between two utterances close to each other."""
    microphone = tmp_path / "question.wav"
    microphone.write_bytes(at_48_khz(SAMPLES / QUESTION, pause=1.0))
    with launched(browser.browser_type, microphone) as hasty, opened(hasty, server.url) as page:
        ready(page)
        page.get_by_role("button", name="Live").click()
        interrupted = page.locator(".turn[data-state=stopped]", has_text="interrupted by what was said next").first
        interrupted.wait_for(timeout=60_000)
        assert interrupted.locator(".answer").inner_text()
