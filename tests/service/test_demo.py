"""The demo model as it ships, through HTTP and vLLM: what it is reliable at, asserted on meaning."""

import base64
import subprocess
from collections.abc import Iterator

import openai
import pytest

from service.settings import DEMO, ServeSettings
from tests.killed_batch import INSTRUCTION, ROWS, SAMPLES, KilledBatch, chat
from tests.serving import BLSP, Server, serve


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(DEMO, tmp_path_factory.mktemp("cache")) as server:
        yield server


def ask(server: Server, file: str, instruction: str) -> str:
    with server.client() as client:
        audio = (SAMPLES / file).read_bytes()
        return str(client.post("/v1/speech", content=audio, params={"instruction": instruction}).json()["text"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_it_knows_what_the_speaker_wants(demo: Server, row: dict[str, str]) -> None:
    """Zero-shot: the adapter never saw an intent."""
    assert ask(demo, row["file"], "What does the speaker want?") == row["intent"]


def test_it_repeats_and_translates_words_of_every_sentence(demo: Server) -> None:
    """Zero-shot as well; not yet to the letter, see the model's card."""

    def shared(instruction: str, field: str) -> float:
        said = [set(ask(demo, row["file"], instruction).split()) for row in ROWS]
        right = [set(row[field].split()) for row in ROWS]
        return sum(len(a & b) / len(b) for a, b in zip(said, right, strict=True)) / len(ROWS)

    assert shared("Please repeat the words you hear.", "text") > 0.6
    assert shared("Please translate the following audio into German text.", "german") > 0.6


def test_text_is_understood_to_the_letter(demo: Server) -> None:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        for row in ROWS[:3]:
            message = f"Please translate the following audio into German text. {row['text']}"
            reply = client.chat.completions.create(
                model=demo.model, messages=[{"role": "user", "content": message}], temperature=0
            )
            assert reply.choices[0].message.content == row["german"]


def test_every_way_in_gives_the_same_greedy_text(demo: Server, killed_batch: KilledBatch) -> None:
    replies = [ask(demo, row["file"], INSTRUCTION) for row in ROWS]
    asked = subprocess.run(
        [BLSP, "ask", SAMPLES / ROWS[0]["file"], INSTRUCTION, "--dtype", "float32", "--cache", demo.cache],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert asked.stdout == replies[0] + "\n", asked.stderr
    with demo.client() as client:
        for row, reply in zip(ROWS, replies, strict=True):
            audio = (SAMPLES / row["file"]).read_bytes()
            answer = client.post("/v1/chat/completions", json=chat(base64.b64encode(audio).decode()))
            assert answer.json()["choices"][0]["message"]["content"] == reply
            transcript = client.post("/v1/audio/transcriptions", files={"file": audio}).json()
            assert transcript["text"] == reply
            forms = ("official", "chat", "speech", "transcription")
            assert killed_batch.replies(row["file"]) == dict.fromkeys(forms, reply)


def test_it_is_the_default() -> None:
    assert ServeSettings().name() == "blsp-demo"
