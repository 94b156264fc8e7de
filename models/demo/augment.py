"""What happens to an utterance on its way to a microphone: resampling, room, band, noise, all in one pass over the spectrum."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.demo.speech import Utterance, WordSpan
from models.features import SAMPLE_RATE

_BLOCK = 512  # spectra have a multiple of this many samples: fast transforms
_ROOM_SECONDS = 0.4


class Channel(NamedTuple):
    """How a recording sounds. The defaults change nothing but the sample rate."""

    speed: float = 1.0
    lead: float = 0.1
    """Seconds of silence before the speech."""
    tail: float = 0.1
    """And after it."""
    reverberation: float = 0.0
    """Seconds to decay by 60 dB; 0 for none."""
    room_level: float = 0.0
    """Amplitude of the reverberation against the direct sound."""
    high_cut: float = SAMPLE_RATE / 2
    """Hz."""
    low_cut: float = 0.0
    """Hz."""
    snr: float = np.inf
    """dB of the speech over the noise."""
    colour: float = 0.0
    """Exponent of the noise's spectrum: 0 white, 1 pink."""
    peak: float = 0.5
    """Amplitude of the loudest sample."""


def draw_channel(rng: np.random.Generator) -> Channel:
    """A channel for training: half of them with noise, a quarter in a room, some through a narrow band."""
    room = rng.random() < 0.3
    band = rng.random() < 0.2
    return Channel(
        speed=float(rng.uniform(0.87, 1.15)),
        lead=float(rng.uniform(0, 1.2) if rng.random() < 0.1 else rng.uniform(0, 0.25)),
        tail=float(rng.uniform(0, 1.2) if rng.random() < 0.1 else rng.uniform(0, 0.25)),
        reverberation=float(rng.uniform(0.1, 0.6)) if room else 0.0,
        room_level=float(rng.uniform(0.1, 0.7)) if room else 0.0,
        high_cut=float(rng.uniform(3400, 7000)) if band else SAMPLE_RATE / 2,
        low_cut=float(rng.uniform(50, 300)) if band else 0.0,
        snr=float(rng.uniform(5, 40)) if rng.random() < 0.6 else np.inf,
        colour=float(rng.uniform(0, 1.2)),
        peak=float(10 ** rng.uniform(-1.5, 0)),
    )


def transmit(utterance: Utterance, channel: Channel, rng: np.random.Generator) -> Utterance:
    """The utterance as a 16 kHz recording through `channel`; word times move along."""
    lead, tail = (round(seconds * utterance.sample_rate) for seconds in (channel.lead, channel.tail))
    dry = np.pad(utterance.samples, (lead, tail))
    spectrum_size = _round_up(len(dry) + round(_ROOM_SECONDS * utterance.sample_rate))
    size = _round_up(round(spectrum_size * SAMPLE_RATE / utterance.sample_rate / channel.speed))
    ratio = size / spectrum_size  # the speed that the rounding leaves
    spectrum = _fit(np.fft.rfft(dry, spectrum_size), size // 2 + 1) * ratio
    spectrum = spectrum * _response(channel, size, rng)
    length = int(len(dry) * ratio)
    power = np.sum(np.abs(spectrum) ** 2) * 2 / size / length
    wet = np.fft.irfft(spectrum + _noise(channel, size, power, rng), size)[:length]
    wet *= channel.peak / max(np.abs(wet).max(), 1e-5)
    stretch = ratio * utterance.sample_rate / SAMPLE_RATE
    words = [WordSpan(w, (b + channel.lead) * stretch, (e + channel.lead) * stretch) for w, b, e in utterance.words]
    return Utterance(wet.astype(np.float32), SAMPLE_RATE, words)


def _round_up(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _fit(spectrum: NDArray[np.complex128], bins: int) -> NDArray[np.complex128]:
    """Cuts or fills a spectrum to `bins`: this is the resampling."""
    return np.pad(spectrum[:bins], (0, max(0, bins - len(spectrum))))


def _response(channel: Channel, size: int, rng: np.random.Generator) -> NDArray[np.complex128]:
    """The channel's response (size / 2 + 1,): soft band limits times the room."""
    hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    response = np.ones(len(hertz), complex)
    if channel.high_cut < SAMPLE_RATE / 2:
        response /= 1 + (hertz / channel.high_cut) ** 8
    if channel.low_cut:
        response /= 1 + (channel.low_cut / np.maximum(hertz, 1)) ** 4
    if channel.reverberation:
        seconds = np.arange(int(_ROOM_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
        impulse = rng.standard_normal(len(seconds)) * np.exp(-6.9 * seconds / channel.reverberation)
        impulse *= channel.room_level / np.sqrt(np.sum(impulse**2))
        impulse[0] = 1
        response *= np.fft.rfft(impulse, size)
    return response


def _noise(channel: Channel, size: int, power: float, rng: np.random.Generator) -> NDArray[np.complex128]:
    """The spectrum of coloured noise at the channel's signal-to-noise ratio under a signal of mean `power`."""
    bins = size // 2 + 1
    if np.isinf(channel.snr):
        return np.zeros(bins, complex)
    noise = (rng.standard_normal(bins) + 1j * rng.standard_normal(bins)) * np.arange(1, bins + 1) ** (
        -channel.colour / 2
    )
    level = power * 10 ** (-channel.snr / 10) * size * size / 2
    return np.asarray(noise * np.sqrt(level / np.sum(np.abs(noise) ** 2)))
