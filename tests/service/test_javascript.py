"""OpenAI's JavaScript client, see tests/javascript/client.test.js, against the running server."""

from pathlib import Path

from tests.javascript import needs_node, run
from tests.serving import Server
from tests.sounds import voice, wav


@needs_node
def test_the_javascript_client(server: Server, tmp_path: Path) -> None:
    audio = tmp_path / "speech.wav"
    audio.write_bytes(wav(voice(2.0)))
    run("client.test.js", server, audio)
