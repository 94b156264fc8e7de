"""OpenAI's JavaScript client, see tests/javascript/client.test.js, against the running server."""

import os
import subprocess
from pathlib import Path

from tests.javascript import FOLDER, needs_node
from tests.serving import Server
from tests.sounds import voice, wav


@needs_node
def test_the_javascript_client(server: Server, tmp_path: Path) -> None:
    audio = tmp_path / "speech.wav"
    audio.write_bytes(wav(voice(2.0)))
    done = subprocess.run(
        ["node", "--test", "client.test.js"],
        cwd=FOLDER,
        env=os.environ | {"BASE_URL": server.url, "MODEL": server.model, "AUDIO": str(audio)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fail 0" in done.stdout
