"""Writes the folder that vLLM loads as an Ultravox model; it holds no weights (`--load-format dummy`)."""

import json
import shutil
from pathlib import Path

from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

from models.random_init import byte_tokenizer

PROCESSOR = Path(__file__).with_name("processing_peer.py")


def write_peer(target: Path, encoder: WhisperConfig, llm: LlamaConfig, projector_dim: int) -> None:
    """A checkpoint without weights of the shapes `encoder` and `llm`; the projector's gated middle has `projector_dim` inputs."""
    auto_map = {"AutoProcessor": f"{PROCESSOR.stem}.PeerProcessor"}
    config = {
        "model_type": "ultravox",
        "architectures": ["UltravoxModel"],
        "auto_map": auto_map,
        "audio_config": encoder.to_dict(),
        "text_config": llm.to_dict() | {"architectures": ["LlamaForCausalLM"]},
        "audio_token_index": llm.vocab_size - 1,
        "hidden_size": projector_dim,
        "projector_ln_mid": True,
        "vocab_size": llm.vocab_size,
    }
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    byte_tokenizer(llm.vocab_size).save_pretrained(target)
    extractor = WhisperFeatureExtractor(feature_size=encoder.num_mel_bins).to_dict()
    extractor |= {"processor_class": "PeerProcessor", "auto_map": auto_map}
    (target / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2))
    shutil.copy(PROCESSOR, target)
