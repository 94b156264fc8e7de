"""The shapes that everything is measured with: Whisper encoder 384 wide, 4 layers; Llama 512 wide, 8 layers."""

import json
import shutil
from pathlib import Path

from transformers import LlamaConfig, WhisperConfig

from benchmarks.peer.checkpoint import write_peer
from models.random_init import init_checkpoint

BUILD = Path(__file__).parents[1] / "build"
OURS = BUILD / "small"
PEER = BUILD / "small-peer"
CONTEXT = 2048  # tokens
INNER_DIM = 512  # of our adapter's bottleneck; the peer's gated projector halves twice as many


def make_checkpoints() -> None:
    """Writes both checkpoints, with the same shapes, where they are not there yet."""
    if not OURS.exists():
        init_checkpoint(
            target=OURS,
            encoder_dim=384,
            encoder_layers=4,
            encoder_heads=6,
            n_mels=80,
            llm_dim=512,
            llm_layers=8,
            llm_heads=8,
            llm_ffn_dim=1408,
            vocabulary=1024,
            context=CONTEXT,
            conv_kernel_sizes=(5, 5, 5),
            adapter_inner_dim=INNER_DIM,
            padding="exact",
            prompt_format="blsp",
            seed=0,
        )
    shutil.rmtree(PEER, ignore_errors=True)
    encoder, llm = (json.loads((OURS / part / "config.json").read_text()) for part in ("encoder", "llm"))
    write_peer(PEER, WhisperConfig(**encoder), LlamaConfig(**llm), 2 * INNER_DIM)
