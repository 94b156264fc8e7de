"""The shapes that are measured on a GPU, and tiny ones to try the commands with on any machine; all weights are random."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, WhisperConfig

from benchmarks.peer.checkpoint import write_peer
from benchmarks.small import BUILD, CONTEXT
from models.random_init import init_checkpoint

INNER_DIM = 512  # of our adapter's bottleneck; the peer's gated projector halves twice as many
KERNELS = (5, 5, 5)


@dataclass(frozen=True)
class EncoderShape:
    """A Whisper encoder's, and the width of the LLM behind its adapter."""

    dim: int
    layers: int
    heads: int
    llm_dim: int = 4096

    def config(self) -> WhisperConfig:
        """As transformers has it."""
        return WhisperConfig(
            d_model=self.dim,
            encoder_layers=self.layers,
            encoder_attention_heads=self.heads,
            encoder_ffn_dim=4 * self.dim,
            num_mel_bins=80,
        )


ENCODERS = {"small": EncoderShape(768, 12, 12), "large-v2": EncoderShape(1280, 32, 20)}
TINY_ENCODER = EncoderShape(64, 2, 4, llm_dim=128)
LLAMA_7B: dict[str, Any] = {
    "llm_dim": 4096,
    "llm_layers": 32,
    "llm_heads": 32,
    "llm_ffn_dim": 11008,
    "vocabulary": 32000,
}
TINY_LLAMA: dict[str, Any] = {"llm_dim": 128, "llm_layers": 2, "llm_heads": 2, "llm_ffn_dim": 344, "vocabulary": 1024}


def make_checkpoints(*, tiny: bool) -> tuple[Path, Path]:
    """Folders of a checkpoint of ours and of the peer's with the same shapes; of the LLM they hold no more than its embeddings."""
    ours, peer = (BUILD / f"gpu-{name}{'-tiny' if tiny else ''}" for name in ("ours", "peer"))
    encoder = TINY_ENCODER if tiny else ENCODERS["small"]
    if not (ours / "config.json").exists():  # which is written last
        shutil.rmtree(ours, ignore_errors=True)
        init_checkpoint(
            target=ours,
            encoder_dim=encoder.dim,
            encoder_layers=encoder.layers,
            encoder_heads=encoder.heads,
            n_mels=80,
            context=CONTEXT,
            conv_kernel_sizes=KERNELS,
            adapter_inner_dim=INNER_DIM,
            padding="exact",
            prompt_format="blsp",
            seed=0,
            whole_llm=False,
            **(TINY_LLAMA if tiny else LLAMA_7B),
        )
    shutil.rmtree(peer, ignore_errors=True)
    llm = LlamaConfig(**json.loads((ours / "llm" / "config.json").read_text()))
    write_peer(peer, encoder.config(), llm, 2 * INNER_DIM)
    return ours, peer
