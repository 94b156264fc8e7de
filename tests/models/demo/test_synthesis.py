import shutil
from importlib.util import find_spec

import numpy as np
import pytest

from models.demo.augment import Channel, transmit
from models.demo.speech import Utterance, WordSpan
from models.demo.voices import SEEN, UNSEEN, Voice
from models.features import SAMPLE_RATE

TEXT = "please wake me up at nine o'clock on friday"
needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
needs_pico = pytest.mark.skipif(find_spec("ttspico") is None, reason="ttspico is not installed")
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


def check_words(utterance):
    assert [span.word for span in utterance.words] == TEXT.split()
    times = [time for span in utterance.words for time in span[1:]]
    assert times == sorted(times)
    assert times[-1] <= len(utterance.samples) / utterance.sample_rate + 0.01


@needs_espeak
@pytest.mark.parametrize("voice", [SEEN["espeak"][0], SEEN["espeak"][100], UNSEEN["espeak-unseen"][3]], ids=str)
def test_espeak_tells_when_each_word_is_said(voice):
    from models.demo.espeak import espeak

    check_words(espeak().speak(TEXT, voice, 170, 50, 50))


@needs_espeak
def test_espeak_refuses_a_voice_that_it_does_not_have():
    from models.demo.espeak import espeak

    with pytest.raises(ValueError, match="no voice xx"):
        espeak().speak(TEXT, Voice("espeak", "xx"), 170, 50, 50)


@needs_flite
def test_flite_tells_when_each_word_is_said_and_can_be_slowed_down():
    from models.demo import flite

    normal, slow = (flite.speak(TEXT, Voice("flite", "kal16"), stretch) for stretch in (1.0, 1.5))
    check_words(normal)
    assert len(slow.samples) > 1.3 * len(normal.samples)


@needs_flite
def test_flite_speaks_higher():
    from models.demo import flite

    own, higher = (pitch(flite.speak("nine nine nine", Voice("flite", "slt"), pitch=factor)) for factor in (1.0, 1.3))
    assert higher / own == pytest.approx(1.3, rel=0.05)


def pitch(utterance):
    """Hz: the lag at which the recording is most like itself."""
    samples, shortest, longest = utterance.samples, *(utterance.sample_rate // hertz for hertz in (350, 90))
    likeness = [np.dot(samples[lag:], samples[:-lag]) for lag in range(shortest, longest)]
    return utterance.sample_rate / (shortest + int(np.argmax(likeness)))


@needs_pico
def test_pico_speaks_faster_and_higher():
    from models.demo import pico

    voice = Voice("pico", "en-US")
    slow, fast, high = (pico.speak(TEXT, voice, *how) for how in ((80, 100), (120, 100), (100, 130)))
    assert len(slow.samples) > 1.3 * len(fast.samples)
    assert pitch(high) > 1.15 * pitch(slow)
    assert np.abs(slow.samples).max() > 0.1


@needs_flite
def test_flite_tells_repeated_words_apart():
    from models.demo import flite

    assert [span.word for span in flite.speak("nine nine nine", Voice("flite", "kal16")).words] == ["nine"] * 3


def tone(seconds=2.0, rate=22_050):
    samples = 0.3 * np.sin(2 * np.pi * 500 * np.arange(int(seconds * rate)) / rate)
    return Utterance(samples.astype(np.float32), rate, [WordSpan("tone", 0.5, 1.0)])


def test_a_channel_resamples_and_moves_the_words_along():
    heard = transmit(tone(), Channel(speed=1.25, lead=0.5, tail=0.5), np.random.default_rng(0))
    assert heard.sample_rate == SAMPLE_RATE
    assert len(heard.samples) / SAMPLE_RATE == pytest.approx(3.0 / 1.25, rel=0.02)
    assert heard.words[0].begin == pytest.approx(1.0 / 1.25, rel=0.02)
    assert np.abs(heard.samples).max() == pytest.approx(0.5)


def test_a_channel_adds_noise_at_its_level():
    rng = np.random.default_rng(0)
    heard = transmit(tone(), Channel(snr=10, lead=0, tail=0), rng)
    power = np.abs(np.fft.rfft(heard.samples)) ** 2
    peak = int(power.argmax())
    signal = power[peak - 3 : peak + 4].sum()
    assert 10 * np.log10(signal / (power.sum() - signal)) == pytest.approx(10, abs=0.5)


def test_no_voice_is_both_seen_and_unseen():
    seen = {voice for voices in SEEN.values() for voice in voices}
    unseen = {voice for voices in UNSEEN.values() for voice in voices}
    assert not seen & unseen
    assert "festival" not in {voice.engine for voice in seen}
