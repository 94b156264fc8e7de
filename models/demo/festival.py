"""festival as a child process. It is slow and tells no word times: its voices are only listened to in tests."""

import subprocess
import tempfile
import wave
from pathlib import Path

import numpy as np

from models.demo.speech import Utterance
from models.demo.voices import Voice


def speak_all(texts: list[str], voice: Voice) -> list[Utterance]:
    """Says each of `texts`, in one run of festival. Raises OSError where festival is not installed, CalledProcessError where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.wav" for i in range(len(texts))]
        lines = [f"(voice_{voice.name})"]
        for text, file in zip(texts, files, strict=True):
            lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{file}" \'riff)')
        script = Path(folder) / "speak.scm"
        script.write_text("\n".join(lines))
        subprocess.run(["festival", "--batch", str(script)], check=True, capture_output=True)
        return [_read(file) for file in files]


def speak(text: str, voice: Voice) -> Utterance:
    """Says `text`."""
    return speak_all([text], voice)[0]


def _read(file: Path) -> Utterance:
    with wave.open(str(file)) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
        return Utterance(samples.astype(np.float32) / np.float32(32768), recording.getframerate(), [])
