"""The examples, run as their README says."""

import functools
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.settings import DEFAULT_MODEL
from tests.serving import Server, serve

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
AGENTS = ROOT / "build" / "agents" / "bin" / "python"
QUESTION = DEFAULT_MODEL.parent / "samples" / "japan.flac"

needs_agents = pytest.mark.skipif(not AGENTS.exists(), reason="no LiveKit and no Pipecat: run make build/agents")


@needs_agents
@pytest.mark.parametrize("agent", ["livekit_agent.py", "pipecat_agent.py"])
def test_an_agent_answers(server: Server, agent: str) -> None:
    done = subprocess.run(
        [AGENTS, EXAMPLES / agent, "--url", server.url, "--model", server.model, QUESTION],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.strip() and not line.startswith("[You said")] != []
    assert "Traceback" not in done.stderr


@needs_agents
@pytest.mark.parametrize("agent", ["livekit_agent.py", "pipecat_agent.py"])
def test_an_agent_whom_nobody_answers_ends(agent: str) -> None:
    done = subprocess.run(
        [AGENTS, EXAMPLES / agent, "--url", "http://127.0.0.1:1", QUESTION],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "connect" in done.stderr.lower()


def test_the_page_in_a_browser(official: Path, tmp_path: Path) -> None:
    """From another origin than the server's, as anybody's page would be."""
    pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    from tests.page.browser import CHROMIUM, at_48_khz, chromium, opened

    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("no browser: apt-get install chromium")
    microphone = tmp_path / "question.wav"
    microphone.write_bytes(at_48_khz(QUESTION, pause=3.0))
    (tmp_path / "site").mkdir()
    shutil.copy(EXAMPLES / "browser.html", tmp_path / "site" / "index.html")
    with (
        site(tmp_path / "site") as origin,
        serve(official, tmp_path / "cache", "--cors-origins", origin) as server,
        chromium(microphone) as browser,
    ):
        address = server.url.replace("http", "ws", 1)
        with opened(browser, origin, expected=[address]) as page:
            page.get_by_label("Server").fill(address)
            page.get_by_label("Model").fill(server.model)
            page.get_by_role("button", name="Talk").click()
            items = page.locator("#said p[id^=item_]:not(:empty)")
            items.filter(has_text="You: ").first.wait_for(timeout=60_000)
            items.filter(has_not_text="You: ").first.wait_for(timeout=60_000)
            assert page.locator("#said p:not([id^=item_])").all_inner_texts() == []  # nothing went wrong


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """Serves a folder; its origin."""
    handler = functools.partial(Silent, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass
