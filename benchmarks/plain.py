"""The plain loop: the official code's way, in transformers. One request at a time, every recording padded to 30 s. Answers lines."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from benchmarks.processes import answer_lines
from benchmarks.small import OURS
from models.checkpoint import open_checkpoint
from models.features import SAMPLE_RATE
from service.load.client import Question


class PlainModel:
    """The models as transformers has them, with every core for each of them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        config = WhisperConfig.from_pretrained(OURS / "encoder")
        self.extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.encoder = WhisperEncoder(config)
        self.encoder.load_state_dict(load_file(OURS / "encoder" / "model.safetensors"))
        self.encoder.to(dtype).eval()
        self.adapter = open_checkpoint(str(OURS), Path("build/cache")).load_embedder(dtype, torch.device("cpu")).adapter
        self.llm = LlamaForCausalLM.from_pretrained(OURS / "llm", dtype=dtype).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(OURS / "llm")

    @torch.inference_mode()
    def answer(self, samples: np.ndarray) -> str:
        """Samples (n,) at 16 kHz to the reply."""
        question = Question()
        features = self.extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        states = self.encoder(features.to(self.dtype)).last_hidden_state  # (1, 1500, dim)
        (speech,) = self.adapter(states, torch.tensor([(len(samples) // 160 - 1) // 2 + 1]))
        before, after = (
            self.llm.get_input_embeddings()(self.tokenizer(text, return_tensors="pt").input_ids)[0]
            for text in (f"###[Human]:{question.instruction}", "\n\n\n###[Assistant]:")
        )
        prompt = torch.cat([before, speech, after])[None]
        ids = self.llm.generate(
            inputs_embeds=prompt,
            attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long),
            max_new_tokens=question.tokens,
            min_new_tokens=question.tokens,
            do_sample=False,
        )
        return str(self.tokenizer.decode(ids[0]))


def main(dtype: str) -> None:
    """Answers {"requests", "seconds"} with requests per second and the seconds of each."""
    model = PlainModel(getattr(torch, dtype))
    for asked in answer_lines():
        clips = np.random.default_rng(0).normal(0, 0.1, (asked["requests"], round(asked["seconds"] * SAMPLE_RATE)))
        took = []
        for clip in clips.astype(np.float32):
            start = time.perf_counter()
            model.answer(clip)
            took.append(time.perf_counter() - start)
        print(json.dumps({"requests_per_second": len(took) / sum(took), "seconds": took}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
