"""The Ultravox processor that vLLM asks of a checkpoint: audio to padded features and counts of frames and tokens.

It is copied into the checkpoint's folder and loaded from there. The names of arguments, attributes and outputs are those that
vllm/model_executor/models/ultravox.py reads.
"""

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

FRAMES_PER_TOKEN = 2 * 8  # the encoder halves the frames, the projector stacks eight positions


class PeerProcessor(ProcessorMixin):
    """Cuts audio into chunks of 30 s and computes their features, padded to the longest chunk."""

    audio_token_replacement = "<|audio|>"
    audio_replacement_token_id = 0

    @classmethod
    def get_attributes(cls) -> list[str]:
        """What from_pretrained loads and hands to the constructor."""
        return ["audio_processor", "tokenizer"]

    def __init__(self, audio_processor: Any, tokenizer: Any) -> None:
        super().__init__(audio_processor, tokenizer)

    def __call__(
        self,
        text: str | None = None,
        audios: Any = None,
        sampling_rate: int | None = None,
        include_audio_num_chunks: bool = True,
        return_tensors: str = "pt",
        **_: Any,
    ) -> BatchFeature:
        """Audios (samples,) each -> features (chunks, n_mels, frames), with every chunk's frames and tokens."""
        size = self.audio_processor.n_samples
        parts = [np.split(audio, range(size, len(audio), size)) for audio in audios or ()]
        chunks = [chunk for part in parts for chunk in part]
        data: dict[str, Any] = self.tokenizer(text, return_tensors=return_tensors, add_special_tokens=False)
        if chunks:
            features = self.audio_processor(
                chunks,
                sampling_rate=sampling_rate,
                padding="longest",
                pad_to_multiple_of=self.audio_processor.hop_length,
                truncation=False,
                return_attention_mask=True,
                return_tensors=return_tensors,
            )
            frames = features["attention_mask"].sum(-1)
            data["audio_values"] = features["input_features"]
            data["audio_lens"] = frames
            data["audio_token_len"] = (frames + FRAMES_PER_TOKEN - 1) // FRAMES_PER_TOKEN
            data["audio_num_chunks"] = torch.tensor([len(part) for part in parts])
        return BatchFeature(data)
