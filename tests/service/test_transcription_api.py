"""Transcriptions and translations, as OpenAI's own client sees them."""

import json
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import openai
import pytest
import srt
import webvtt

from service.settings import DEFAULT_MODEL
from tests.serving import Server
from tests.sounds import RATE, voice, wav

# Three voices with pauses between them, 73 s in all.
PARTS = [voice(25.0, 1), voice(20.0, 2), voice(27.0, 3)]
PAUSE = np.zeros(RATE // 2, np.float32)
LONG = wav(np.concatenate([PARTS[0], PAUSE, PARTS[1], PAUSE, PARTS[2]]))
CUTS = [0.0, 25.25, 45.75, 73.0]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_json_is_what_the_native_endpoint_says(client: openai.OpenAI, server: Server) -> None:
    audio = wav(voice(3.0))
    reply = client.audio.transcriptions.create(model=server.model, file=audio)
    with server.client() as http:
        fields = {"instruction": "Please repeat the words you hear.", "max_tokens": "44"}
        native = http.post("/v1/speech", files={"file": audio}, data=fields).json()
    assert reply.text == native["text"].strip()
    assert reply.usage is not None
    assert reply.usage.type == "tokens"
    assert reply.usage.input_tokens == native["usage"]["prompt_tokens"]
    assert reply.usage.input_token_details is not None
    assert reply.usage.input_token_details.audio_tokens == 19


def test_a_translation_asks_something_else(client: openai.OpenAI, server: Server) -> None:
    audio = wav(voice(3.0))
    with pytest.deprecated_call():  # the client's own
        reply = client.audio.translations.create(model=server.model, file=audio)
    with server.client() as http:
        fields = {"instruction": "Please translate the following audio into English text.", "max_tokens": "44"}
        native = http.post("/v1/speech", files={"file": audio}, data=fields).json()
    assert (
        reply.text == native["text"].strip() != client.audio.transcriptions.create(model=server.model, file=audio).text
    )


def test_a_long_recording_is_cut_at_its_pauses(client: openai.OpenAI, server: Server) -> None:
    reply = client.audio.transcriptions.create(
        model=server.model,
        file=LONG,
        response_format="verbose_json",
        language="en",
        timestamp_granularities=["segment"],
    )
    assert reply.duration == 73.0
    assert reply.language == "en"
    assert reply.segments is not None
    assert [s.start for s in reply.segments] == pytest.approx(CUTS[:-1], abs=0.2)
    assert [s.end for s in reply.segments] == [*(s.start for s in reply.segments[1:]), 73.0]
    assert reply.text == " ".join(s.text.strip() for s in reply.segments if s.text.strip())
    assert all(s.avg_logprob < 0 < s.compression_ratio and s.tokens for s in reply.segments)


def test_that_nobody_speaks_is_measured(client: openai.OpenAI, server: Server) -> None:
    silence = wav(0.01 * np.random.default_rng(0).normal(size=2 * RATE).astype(np.float32))
    found = []
    for audio in (silence, (DEFAULT_MODEL.parent / "samples" / "coffee.flac").read_bytes()):
        reply = client.audio.transcriptions.create(model=server.model, file=audio, response_format="verbose_json")
        assert reply.segments is not None
        found += [segment.no_speech_prob for segment in reply.segments]
    in_silence, in_speech = found
    assert 0 <= in_speech < 0.1 < 0.5 < in_silence <= 1


def test_usage_is_that_of_all_pieces(client: openai.OpenAI, server: Server) -> None:
    verbose = client.audio.transcriptions.create(model=server.model, file=LONG, response_format="verbose_json")
    usage = client.audio.transcriptions.create(model=server.model, file=LONG).usage
    assert verbose.segments is not None
    assert usage is not None
    assert usage.type == "tokens"
    assert usage.output_tokens == sum(len(segment.tokens) for segment in verbose.segments)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_piece_is_transcribed_as_if_it_were_alone(client: openai.OpenAI, server: Server) -> None:
    reply = client.audio.transcriptions.create(model=server.model, file=LONG, response_format="verbose_json")
    assert reply.segments is not None
    start, end = (round(t * RATE) for t in (reply.segments[1].start, reply.segments[1].end))
    samples = np.frombuffer(LONG[44:], "<i2")[start:end] / 32768
    alone = client.audio.transcriptions.create(
        model=server.model, file=wav((samples * 32768 / 32767).astype(np.float32))
    )
    assert alone.text == reply.segments[1].text.strip()


@pytest.mark.parametrize(("form", "precision"), [("srt", 0.2), ("vtt", 1)])
def test_subtitles_have_times_that_only_go_forward(
    client: openai.OpenAI, server: Server, form: Literal["srt", "vtt"], precision: float
) -> None:
    """As parsers that are not ours read them; one of them to the second."""
    text = client.audio.transcriptions.create(model=server.model, file=LONG, response_format=form)
    if form == "srt":
        cues = [(c.start.total_seconds(), c.end.total_seconds(), c.content) for c in srt.parse(text)]
    else:
        cues = [(c.start_in_seconds, c.end_in_seconds, c.text) for c in webvtt.from_string(text).captions]
    assert [start for start, *_ in cues] == pytest.approx(CUTS[:-1], abs=precision)
    assert all(before[1] == after[0] for before, after in pairwise(cues))
    assert cues[-1][1] == 73.0
    assert all(words for *_, words in cues)


def test_plain_text(client: openai.OpenAI, server: Server) -> None:
    text = client.audio.transcriptions.create(model=server.model, file=wav(voice(3.0)), response_format="text")
    assert text == client.audio.transcriptions.create(model=server.model, file=wav(voice(3.0))).text + "\n"


def test_a_stream_is_the_transcript_in_order(client: openai.OpenAI, server: Server) -> None:
    whole = client.audio.transcriptions.create(model=server.model, file=LONG)
    events = list(client.audio.transcriptions.create(model=server.model, file=LONG, stream=True))
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done"
    assert "".join(event.delta for event in deltas) == done.text == whole.text  # type: ignore[union-attr]
    assert done.usage.model_dump() == whole.usage.model_dump()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": "1.5"}, "temperature"),
    ],
)
def test_bad_fields(server: Server, fields: dict[str, str], param: str) -> None:
    with server.client() as http:
        response = http.post("/v1/audio/transcriptions", files={"file": wav(voice(1.0))}, data=fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
def test_times_of_words_are_not_made_up(server: Server, name: str) -> None:
    fields = {name: ["segment", "word"], "response_format": "verbose_json"}
    with server.client() as http:
        reply = http.post("/v1/audio/transcriptions", files={"file": wav(voice(1.0))}, data=fields).json()
    assert len(reply["segments"]) == 1
    assert "words" not in reply
    assert "no times of words" in reply["warnings"][0]


def test_logprobs_are_those_of_the_text(client: openai.OpenAI, server: Server) -> None:
    include: list[Literal["logprobs"]] = ["logprobs"]
    reply = client.audio.transcriptions.create(model=server.model, file=LONG, include=include)
    assert reply.logprobs is not None
    assert "".join("".join(one.token or "" for one in reply.logprobs).split()) == "".join(reply.text.split())
    assert all(bytes(map(int, one.bytes or ())) == (one.token or "").encode() for one in reply.logprobs)
    assert all(one.logprob is not None and one.logprob < 0 for one in reply.logprobs)
    *deltas, done = client.audio.transcriptions.create(model=server.model, file=LONG, include=include, stream=True)
    told = [one.to_dict() for one in done.logprobs]  # type: ignore[union-attr]
    assert [one.to_dict() for delta in deltas for one in delta.logprobs] == told  # type: ignore[union-attr]
    assert [one["token"] for one in told] == [one.token for one in reply.logprobs]


@pytest.mark.parametrize(
    "fields", [{"include[]": "logprobs", "response_format": "srt"}, {"include[]": "word_confidences"}]
)
def test_logprobs_are_refused_where_they_have_no_place(server: Server, fields: dict[str, str]) -> None:
    with server.client() as http:
        response = http.post("/v1/audio/transcriptions", files={"file": wav(voice(1.0))}, data=fields)
    assert response.status_code == 400
    assert "logprobs" in response.json()["error"]["message"]


def test_keywords_are_read(server: Server) -> None:
    with server.client() as http:
        post = partial(http.post, "/v1/audio/transcriptions", files={"file": wav(voice(1.0))})
        plain, told = post(), post(data={"keywords[]": ["Thingamajig", "Zork"]})
    assert "x-ignored-fields" not in told.headers
    assert told.json()["usage"]["input_tokens"] > plain.json()["usage"]["input_tokens"]


def test_what_other_servers_know_is_taken_and_named(server: Server) -> None:
    fields = {
        **{
            "languages[]": "en",
            "chunking_strategy": "auto",
            "known_speaker_names[]": ["a", "b"],
            "vad_filter": "true",
        },
        **{"hotwords": "Thingamajig", "seed": "3", "top_p": "0.9", "temperature": "0.5"},
    }
    with server.client() as http:
        post = partial(http.post, "/v1/audio/transcriptions?api-version=2025-03-01", files={"file": wav(voice(2.0))})
        one, two = (post(data=fields) for _ in range(2))
        plain = post(data={"seed": "3", "top_p": "0.9", "temperature": "0.5"})
    assert one.status_code == 200
    assert one.headers["x-ignored-fields"].split(", ") == [
        *("languages[]", "chunking_strategy", "known_speaker_names[]", "vad_filter"),
    ]
    assert one.json() == two.json()  # the seed holds
    assert one.json()["usage"]["input_tokens"] > plain.json()["usage"]["input_tokens"]  # the hotwords are read


def test_a_text_that_is_cut_off_is_marked(server: Server) -> None:
    """The tiny model never ends by itself."""
    with server.client() as http:
        post = partial(http.post, "/v1/audio/transcriptions", files={"file": wav(voice(1.0))})
        verbose = post(data={"response_format": "verbose_json"}).json()
        done = json.loads(post(data={"stream": "true"}).text.split("data: ")[-2])
    assert verbose["finish_reason"] == verbose["segments"][0]["finish_reason"] == "length"
    assert done["finish_reason"] == "length"


def test_subtitles_are_not_streamed(server: Server) -> None:
    with server.client() as http:
        fields = {"stream": "true", "response_format": "srt"}
        response = http.post("/v1/audio/transcriptions", files={"file": wav(voice(1.0))}, data=fields)
    assert response.status_code == 400
    assert "srt can't be streamed" in response.json()["error"]["message"]


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model="nope", file=wav(voice(1.0)))
