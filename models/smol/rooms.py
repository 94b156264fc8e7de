"""What is between a speaker and the microphone: speed, rooms, bands, noise, loudness, all in one pass over the spectrum."""

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
_BLOCK = 512  # spectra have a multiple of this many samples: fast transforms
_ECHO = 0.6  # seconds
PAUSE = 3.0  # seconds before and after speech, at most
PAUSED = 0.25  # share of recordings that begin and end with such a pause

Sound = NDArray[np.float32]


def through_the_air(speech: Sound, rate: int, neighbours: list[Sound], rng: np.random.Generator) -> Sound:
    """Speech (n,) of any rate as it arrives at 16 kHz (m,); a quarter of it is changed but in loudness and the silence around it.

    `neighbours` are other recordings at 16 kHz, which are what babble is made of.
    """
    clean = rng.random() < 0.25
    speed = 1.0 if clean or rng.random() < 0.25 else rng.uniform(0.88, 1.14)  # faster is higher, as of a shorter throat
    echo = 0.0 if clean or rng.random() < 0.6 else rng.uniform(0.1, _ECHO)
    before, after = rng.uniform(0, PAUSE if rng.random() < PAUSED else 0.4, 2)
    speech = np.pad(speech, (round(before * rate), round((after + echo / 3) * rate)))
    size = _round_up(len(speech) + round(_ECHO * rate))
    heard_size = _round_up(round(size * RATE / rate / speed))
    spectrum = np.fft.rfft(speech, size)[: heard_size // 2 + 1]  # cut or filled up: this is the resampling
    spectrum = np.pad(spectrum, (0, heard_size // 2 + 1 - len(spectrum))) * (heard_size / size)
    if not clean:
        spectrum *= _band(heard_size, rng)
    if echo:
        spectrum *= np.fft.rfft(_impulse(echo, rng), heard_size)
    heard = np.fft.irfft(spectrum, heard_size)[: round(len(speech) * heard_size / size)]
    if not clean and rng.random() < 0.55:
        noise = _babble(len(heard), neighbours, rng) if neighbours and rng.random() < 0.25 else _hiss(len(heard), rng)
        heard += noise * (heard.std() / max(1e-6, noise.std()) * 10 ** (-rng.uniform(8, 35) / 20))
    return np.asarray(heard * (10 ** (-rng.uniform(0.2, 20) / 20) / max(1e-5, np.abs(heard).max())), np.float32)


def _round_up(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _band(size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The response (size // 2 + 1,) of a microphone or a line: a telephone, a narrow channel, a tilt of up to 6 dB, or nothing."""
    hertz = np.maximum(1, np.fft.rfftfreq(size, 1 / RATE))
    kind = rng.random()
    if kind < 0.1:
        return _between(hertz, 300, 3400)
    if kind < 0.25:
        return _between(hertz, rng.uniform(50, 150), rng.uniform(4500, 7000))
    if kind < 0.6:
        return np.asarray(10 ** (rng.uniform(-6, 6) / 20 * np.clip(np.log2(hertz / 1000) / 3, -1, 1)))
    return np.ones(len(hertz))


def _between(hertz: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + (hertz / high) ** 10) / (1 + (low / hertz) ** 6))


def _impulse(seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The direct sound and an echo that decays by 60 dB in so many seconds."""
    times = np.arange(round(seconds * RATE)) / RATE
    impulse = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    impulse *= rng.uniform(0.05, 0.45) / np.sqrt(np.sum(impulse**2))
    impulse[0] = 1.0
    return impulse


def _hiss(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise (n,) between white and a little darker than pink."""
    size = _round_up(n)
    bins = size // 2 + 1
    noise = rng.standard_normal(bins) + 1j * rng.standard_normal(bins)
    return np.fft.irfft(noise * np.arange(1, bins + 1) ** -rng.uniform(0, 0.6), size)[:n]


def _babble(n: int, neighbours: list[Sound], rng: np.random.Generator) -> NDArray[np.float64]:
    """The other recordings (n,) on top of each other, each from anywhere on and over again."""
    voices = [np.roll(np.resize(voice, n), rng.integers(n)) / max(1e-5, float(voice.std())) for voice in neighbours]
    return np.asarray(np.sum(voices, axis=0), np.float64)
