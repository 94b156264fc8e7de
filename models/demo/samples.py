"""A dozen recordings to try the model with, of sentences and partly of voices that it never heard in training."""

import json
import wave
from pathlib import Path

import numpy as np

from models.demo.heldout import GROUPS, heldout_sentences, record
from models.demo.speech import Utterance

COUNT = 12
_ORDER = (
    "espeak, unseen accents and variants",
    "flite rms, unseen speaker",
    "festival ked, unseen engine",
    "flite, seen voices",
)


def write_samples(folder: Path, seed: int) -> None:
    """Writes `COUNT` test sentences of different families as 16 kHz wave files, and samples.json with what is said in them."""
    folder.mkdir(parents=True, exist_ok=True)
    by_intent = {sentence.intent: sentence for sentence in heldout_sentences(seed)}
    rows = []
    for number, (intent, sentence) in enumerate(sorted(by_intent.items())[:COUNT]):
        group = _ORDER[number % len(_ORDER)]
        voices, channel = GROUPS[group]
        file = folder / f"{number:02}-{intent}.wav"
        _write(record([sentence.text], voices, channel, seed + number)[0], file)
        rows.append(
            {
                "file": file.name,
                "text": sentence.text,
                "german": sentence.german,
                "spanish": sentence.spanish,
                "intent": intent,
                "voice": group,
            }
        )
    (folder / "samples.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def _write(utterance: Utterance, file: Path) -> None:
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(utterance.sample_rate)
        out.writeframes((utterance.samples.clip(-1, 1) * 32767).astype(np.int16).tobytes())
