"""Clients in Python, with the versions of requirements.txt, against the running server."""

from pathlib import Path

import pytest

from tests.clients import needs_clients, run
from tests.serving import Server
from tests.sounds import voice, wav


@needs_clients
@pytest.mark.parametrize("client", ["litellm", "langchain", "pydantic_ai"])
def test_a_client_hears_and_writes(server: Server, tmp_path: Path, client: str) -> None:
    recording = tmp_path / "speech.wav"
    recording.write_bytes(wav(voice(2.0)))
    run(f"with_{client}.py", server, recording)
