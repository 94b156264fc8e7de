"""JavaScript clients, see tests/javascript, against the running server: OpenAI's, and Vercel's AI SDK."""

from pathlib import Path

import pytest

from tests.javascript import needs_node, run
from tests.serving import Server
from tests.sounds import voice, wav


@needs_node
@pytest.mark.parametrize("script", ["client.test.js", "ai.test.js"])
def test_a_javascript_client(server: Server, tmp_path: Path, script: str) -> None:
    audio = tmp_path / "speech.wav"
    audio.write_bytes(wav(voice(2.0)))
    run(script, server, audio)
