"""The demo model as it ships, through HTTP and vLLM: what it is reliable at, asserted on meaning."""

import io
import json
import wave
from collections.abc import Iterator
from itertools import cycle, pairwise
from typing import Literal

import openai
import pytest
import srt
import webvtt

from service.settings import DEFAULT_MODEL, ServeSettings
from tests.serving import Server, serve
from tests.sounds import RATE

SAMPLES = DEFAULT_MODEL.parent / "samples"
ROWS: list[dict[str, str]] = json.loads((SAMPLES / "samples.json").read_text())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(DEFAULT_MODEL, tmp_path_factory.mktemp("cache")) as server:
        yield server


def ask(server: Server, file: str, instruction: str) -> str:
    with server.client() as client:
        audio = (SAMPLES / file).read_bytes()
        return str(client.post("/v1/speech", content=audio, params={"instruction": instruction}).json()["text"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_it_knows_what_the_speaker_wants(demo: Server, row: dict[str, str]) -> None:
    """Zero-shot: the adapter never saw an intent."""
    assert ask(demo, row["file"], "What does the speaker want?") == row["intent"]


@pytest.mark.parametrize(
    ("instruction", "field"),
    [
        ("Please repeat the words you hear.", "text"),
        ("Please translate the following audio into German text.", "german"),
    ],
)
def test_it_repeats_and_translates_to_the_letter(demo: Server, instruction: str, field: str) -> None:
    """Zero-shot as well; nine in ten, but for the one voice that half of all sentences fail with: see the model's card."""
    clear = [row for row in ROWS if "ked" not in row["voice"]]
    assert len(clear) > len(ROWS) / 2
    replies = [ask(demo, row["file"], instruction) for row in clear]
    wrong = [(reply, row[field]) for reply, row in zip(replies, clear, strict=True) if reply != row[field]]
    assert len(wrong) <= 1, wrong


def test_text_is_understood_to_the_letter(demo: Server) -> None:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        for row in ROWS[:3]:
            message = f"Please translate the following audio into German text. {row['text']}"
            reply = client.chat.completions.create(
                model=demo.model, messages=[{"role": "user", "content": message}], temperature=0
            )
            assert reply.choices[0].message.content == row["german"]


@pytest.fixture(scope="module")
def ten_minutes() -> bytes:
    """The samples again and again, with pauses of a second: 600 s of 16-bit samples at 16 kHz, as a wav file."""
    pcm = b""
    for row in cycle(ROWS):
        with wave.open(str(SAMPLES / row["file"])) as file:
            assert file.getframerate() == RATE
            pcm += file.readframes(file.getnframes()) + bytes(2 * RATE)
        if len(pcm) >= 2 * RATE * 600:
            break
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(pcm[: 2 * RATE * 600])
    return file.getvalue()


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_ten_minutes_to_subtitles(demo: Server, ten_minutes: bytes, form: Literal["srt", "vtt"]) -> None:
    """As parsers that are not ours read them: times go forward, do not overlap, and cover the recording but for pieces without words."""
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        text = client.audio.transcriptions.create(model=demo.model, file=ten_minutes, response_format=form)
    if form == "srt":
        cues = [(c.start.total_seconds(), c.end.total_seconds(), c.content) for c in srt.parse(text)]
    else:
        cues = [(c.start_in_seconds, c.end_in_seconds, c.text) for c in webvtt.from_string(text).captions]
    assert all(start < end <= start + 30 for start, end, _ in cues)
    assert all(before[1] <= after[0] for before, after in pairwise(cues))
    assert cues[0][0] >= 0
    assert cues[-1][1] <= 600
    assert sum(end - start for start, end, _ in cues) > 500
    assert all(words for *_, words in cues)


def test_it_is_the_default() -> None:
    assert ServeSettings().name() == "blsp-demo"
