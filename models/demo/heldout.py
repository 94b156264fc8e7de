"""The sentences that no training saw, spoken by every group of voices."""

from pathlib import Path

import numpy as np
import torch

from models.demo import festival
from models.demo.augment import Channel, transmit
from models.demo.corpus import Shard
from models.demo.speech import Utterance
from models.demo.synthesis import speak
from models.demo.voices import SEEN, UNSEEN, Voice
from models.demo.world import Sentence, sentences
from models.encoder import encoder_length
from models.features import log_mel

SENTENCES = 500
QUIET = Channel()
NOISY = Channel(reverberation=0.3, room_level=0.3, snr=15.0, colour=0.7, peak=0.2)
GROUPS: dict[str, tuple[list[Voice], Channel]] = {
    "espeak, seen voices": (SEEN["espeak"], QUIET),
    "flite, seen voices": (SEEN["flite"], QUIET),
    "espeak, seen, noise 15 dB and room": (SEEN["espeak"], NOISY),
    "espeak, unseen accents and variants": (UNSEEN["espeak-unseen"], QUIET),
    "flite rms, unseen speaker": (UNSEEN["flite-rms"], QUIET),
    "festival ked, unseen engine": (UNSEEN["festival-ked"], QUIET),
    "festival hts, unseen engine": (UNSEEN["festival-hts"], QUIET),
    "pico, seen voices": (SEEN["pico"], QUIET),
}
"""Name of a group -> its voices, and the channel they are recorded through."""


def heldout_sentences(seed: int) -> list[Sentence]:
    """The sentences of every group, in the order of its recordings."""
    return list(sentences(seed, SENTENCES, test=True))


def record(texts: list[str], voices: list[Voice], channel: Channel, seed: int) -> list[Utterance]:
    """Each text in a voice drawn from `voices`, at 16 kHz."""
    rng = np.random.default_rng(seed)
    if voices[0].engine == "festival":
        dry = festival.speak_all(texts, voices[0])
    else:
        dry = [speak(text, voices[int(rng.integers(len(voices)))], rng) for text in texts]
    return [transmit(utterance, channel, rng) for utterance in dry]


def build(folder: Path, seed: int) -> None:
    """Writes a shard per group, where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [sentence.text for sentence in heldout_sentences(seed)]
    for number, (voices, channel) in enumerate(GROUPS.values()):
        if not (file := folder / f"{number:03}.npz").exists():
            to_shard(record(texts, voices, channel, seed + number), texts).save(file)


def to_shard(recordings: list[Utterance], texts: list[str]) -> Shard:
    """A shard without labels."""
    features = [log_mel(torch.from_numpy(recording.samples)).T.half().numpy() for recording in recordings]
    blank = np.zeros(sum(encoder_length(len(f)) for f in features), np.int16)
    frames = np.array([len(f) for f in features])
    return Shard(np.concatenate(features), blank, blank, frames, texts, np.ones(len(texts), bool))
