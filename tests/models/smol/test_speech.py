"""Speech for training: shards that a killed run leaves whole, and voices that stay in their splits."""

import json
import random
import signal
import wave
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import pytest

from models.smol import voices
from models.smol.natural import Hibari, Piper
from models.smol.needs import for_speech
from models.smol.rooms import PAUSE, RATE, Sound, through_the_air
from models.smol.speech import SYNTHESISERS, Speaker, trimmed

SENTENCES = ["Good morning.", "What is a river?", "He went home.", "I like tea.", "Turn on the light."]


needs_synthesisers = pytest.mark.skipif(bool(for_speech("train")), reason="; ".join(for_speech("train")))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _tone(seconds: float) -> Sound:
    return np.sin(np.arange(round(seconds * RATE)) * 0.3).astype(np.float32) * 0.5


@needs_synthesisers
def test_shards_hold_what_their_manifests_say(tmp_path: Path) -> None:
    Speaker(SENTENCES[:3], tmp_path, takes=2, size=6).shard(0)
    lines = [json.loads(line) for line in (tmp_path / "00000.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == SENTENCES[:3] * 2
    with wave.open(str(tmp_path / "00000.wav")) as file:
        assert file.getparams()[:3] == (1, 2, RATE)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
    end = 0
    for line in lines:
        name, start, frames = line["audio"].split(":")
        assert (name, int(start)) == ("00000.wav", end)
        end += int(frames)
        loudest = np.abs(samples[int(start) : end]).max()
        assert 3000 < loudest < 32767
    assert end == len(samples)


@pytest.mark.parametrize("program", ["piper", "hibari", "kokoro"])
def test_a_natural_voice_says_the_same_again(program: voices.Program) -> None:
    split: voices.Split = "natural-dev" if program == "kokoro" else "natural"
    if commands := for_speech(split):
        pytest.skip("; ".join(commands))
    drawn = (voices.draw(random.Random(i), split) for i in range(100))
    voice = next(voice for voice in drawn if voice.program == program)
    said = [SYNTHESISERS[program]().speak(voice, "Good morning.") for _ in range(2)]
    assert said[0][1] == said[1][1]
    assert 0.5 < len(trimmed(*said[0])) / said[0][1] < 3
    np.testing.assert_array_equal(said[0][0], said[1][0])


@pytest.mark.parametrize("synthesiser", [Piper, Hibari])
def test_a_voice_is_as_long_when_it_is_higher(synthesiser: type[Piper] | type[Hibari]) -> None:
    if commands := for_speech("natural"):
        pytest.skip("; ".join(commands))
    name = "American" if synthesiser is Hibari else "joe"
    (low, low_rate), (high, high_rate) = (
        synthesiser().speak(voices.Voice("piper", name, 1.0, pitch), "Good morning to all of you.")
        for pitch in (0.8, 1.2)
    )
    assert high_rate == pytest.approx(1.5 * low_rate, abs=1)
    assert len(high) / high_rate == pytest.approx(len(low) / low_rate, rel=0.25)  # Piper draws how long sounds are


@needs_synthesisers
def test_a_resumed_run_writes_the_same_bytes(tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    (resumed := tmp_path / "resumed").mkdir()
    for number in Speaker(SENTENCES, whole, size=2).shards(0, 4):
        Speaker(SENTENCES, whole, size=2).shard(number)
    (resumed / "00000.part").write_bytes(b"what a killed run left")
    for name in ("00000.wav", "00001.wav", "00001.jsonl"):  # it had renamed these
        (resumed / name).write_bytes((whole / name).read_bytes())
    Speaker(SENTENCES, resumed, size=2).shard(1)
    Speaker(SENTENCES, resumed, size=2).shard(0)
    assert _bytes(resumed) == _bytes(whole)


class _Crashing(Speaker):
    """Falls over its second utterance."""

    def _write(self, number: int, skipped: set[int], at: "Synchronized[int]", parent: int) -> None:
        if 1 not in skipped:
            at.value = 1
            signal.raise_signal(signal.SIGSEGV)
        super()._write(number, skipped, at, parent)


class _Failing(Speaker):
    """Has a mistake."""

    def _write(self, number: int, skipped: set[int], at: "Synchronized[int]", parent: int) -> None:
        raise SystemExit(1)


@needs_synthesisers
def test_a_crash_costs_one_utterance(tmp_path: Path) -> None:
    _Crashing(SENTENCES[:3], tmp_path).shard(0)
    texts = [json.loads(line)["text"] for line in (tmp_path / "00000.jsonl").read_text().splitlines()]
    assert texts == [SENTENCES[0], SENTENCES[2]]


def test_a_mistake_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shard 0 ended with 1"):
        _Failing(SENTENCES, tmp_path).shard(0)


@needs_synthesisers
def test_every_voice_of_espeak_is_there() -> None:
    synthesiser = voices.Espeak()
    accents = {(accent, variants) for accent, variants in voices.HELD_OUT.values()} | {
        (accent, voices.VARIANTS) for accent in voices.ACCENTS.split()
    }
    for accent, variants in accents:
        for variant in variants.split():
            samples, rate = synthesiser.speak(voices.Voice("espeak-ng", f"gmw/{accent}+{variant}", 160, 50), "Yes.")
            assert len(trimmed(samples, rate)) > rate / 10, variant
    with pytest.raises(ValueError, match="gmw/none"):
        synthesiser.speak(voices.Voice("espeak-ng", "gmw/none", 160, 50), "Yes.")


def test_no_voice_is_in_two_splits() -> None:
    rng = random.Random(0)
    names: dict[str, set[str]] = {
        split: {voices.draw(rng, split).name.rpartition("+")[2] for _ in range(3000)}
        for split in ("train", "dev", "test")
    }
    assert not names["train"] & names["dev"]
    assert not names["train"] & names["test"]
    assert not names["dev"] & names["test"]
    assert names["train"] == {*voices.VARIANTS.split(), *voices.FLITE}


@pytest.mark.parametrize(("first", "count", "shards"), [(0, None, [0, 1, 2]), (2, 2, [1]), (3, 9, [1, 2]), (0, 1, [0])])
def test_shards_of_a_part(tmp_path: Path, first: int, count: int | None, shards: list[int]) -> None:
    assert list(Speaker(SENTENCES, tmp_path, size=2).shards(first, count)) == shards


def test_silence_is_trimmed() -> None:
    silence = np.zeros(RATE, np.float32)
    speech_alone = trimmed(np.concatenate([silence, _tone(1), silence]), RATE)
    assert 1 < len(speech_alone) / RATE < 1.1
    assert len(trimmed(silence, RATE)) == 0


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_what_arrives_is_a_little_longer_and_never_clipped(rate: int) -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        heard = through_the_air(_tone(rate / RATE), rate, [_tone(0.5), _tone(2)], rng)
        assert 0.85 < len(heard) / RATE < (1 + 2 * PAUSE) / 0.88 + 0.3
        assert 0.09 < np.abs(heard).max() < 1
        assert heard.dtype == np.float32
