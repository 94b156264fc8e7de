"""Opening a checkpoint: from a folder or a Hugging Face id to an embedder, a prompt builder and the folder of the LLM."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from pydantic import ValidationError
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, WhisperConfig

from models import official
from models.adapter import ModalityAdapter
from models.config import BlspConfig, CheckpointError
from models.embedder import Embedder
from models.encoder import WhisperEncoder
from models.features import SAMPLE_RATE
from models.lora import merged
from models.pretrained import PartError, find_part, how_to_get
from models.prompt import PromptBuilder
from models.updates import ADAPTER, adapter_tensors
from models.weights import Files, files_in, fitting, have_same_weights, load_strict, read_tensors

# LLMs embed tokens with norms around 1; a layer norm of width 4096 that was never trained gives 64. Beyond this ratio the adapter was
# made for another LLM, or is broken.
MAX_NORM_RATIO = 300.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in our layout whose parts are all on this machine."""

    name: str
    config: BlspConfig
    folder: Path
    encoder: Path
    llm: Path
    encoder_files: Files
    """As they were when the checkpoint was opened."""
    lora: Path | None = None
    """What the engine adds to the LLM's weights, where it does."""

    def llm_dim(self) -> int:
        """The width of the LLM's embeddings."""
        return int(AutoConfig.from_pretrained(self.llm).get_text_config().hidden_size)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The LLM's tokenizer."""
        return AutoTokenizer.from_pretrained(self.llm)

    def llm_alone(self) -> Path:
        """The LLM, for what can't add a LoRA to it as the engine does; raises CheckpointError where the checkpoint has one."""
        if self.lora is not None:
            raise CheckpointError(
                f"{self.folder}: its 'lora' is added by the engine that serves it, and here it would be left out; 'llm_lora' is merged"
            )
        return self.llm

    def prompt_builder(self, dtype: torch.dtype) -> PromptBuilder:
        """Builds this checkpoint's prompts, with rows of the LLM's dtype."""
        return PromptBuilder(self.tokenizer(), self.config.prompt_format, self.llm_dim(), dtype)

    def load_embedder(
        self,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        encoder: WhisperEncoder | None = None,
    ) -> Embedder:
        """Loads encoder and adapter, strictly; an `encoder` of the same weights that is there already, or its outline, is not loaded again.

        Raises CheckpointError for missing or unexpected tensors, wrong shapes or dtypes, values that are not finite, and for an adapter
        whose output is far from the LLM's embeddings.
        """
        if encoder is None:
            encoder = self.load_encoder(dtype, device)
        adapter = self._load_adapter(encoder.config.d_model).to(device=device, dtype=dtype)
        embedder = Embedder(encoder, adapter, self.config.padding).requires_grad_(False).eval()
        self._check_norms(embedder)
        return embedder

    def load_encoder(self, dtype: torch.dtype, device: str | torch.device) -> WhisperEncoder:
        """Loads the encoder, strictly. Raises CheckpointError, also where its files have changed since the checkpoint was opened."""
        if files_in(self.encoder) != self.encoder_files:
            raise CheckpointError(f"{self.encoder} has changed since it was first read")
        encoder = self._outline().to_empty(device="cpu")
        load_strict(encoder, _encoder_tensors(self.encoder), str(self.encoder))
        return encoder.requires_grad_(False).eval().to(device=device, dtype=dtype)

    def outline_encoder(self, dtype: torch.dtype) -> WhisperEncoder:
        """The encoder's outline; raises CheckpointError where the files have other tensors, whose values are not read."""
        encoder = self._outline()
        for _ in fitting(encoder, _encoder_tensors(self.encoder), str(self.encoder)):
            pass
        return encoder.to(dtype)

    def has_encoder_of(self, other: "Checkpoint") -> bool:
        """Whether both have the same encoder, byte for byte, and the other's is still the one that it was opened with."""
        if files_in(other.encoder) != other.encoder_files:
            return False
        heads, others_heads = (WhisperConfig.from_pretrained(c.encoder).encoder_attention_heads for c in (self, other))
        return bool(heads == others_heads) and have_same_weights(self.encoder, other.encoder)

    def has_llm_of(self, other: "Checkpoint") -> bool:
        """Whether both have the same LLM, byte for byte."""
        return have_same_weights(self.llm, other.llm)

    def _outline(self) -> WhisperEncoder:
        with torch.device("meta"):
            return WhisperEncoder(WhisperConfig.from_pretrained(self.encoder))

    def _load_adapter(self, encoder_dim: int) -> ModalityAdapter:
        with torch.device("meta"):
            adapter = ModalityAdapter(encoder_dim, self.llm_dim(), self.config.adapter)
        adapter.to_empty(device="cpu")
        load_strict(adapter, adapter_tensors(self.folder), str(self.folder / ADAPTER))
        if adapter.speller is not None:
            adapter.speller.know(self.tokenizer().get_vocab(), embedding_table(self.llm).float())
        return adapter

    def _check_norms(self, embedder: Embedder) -> None:
        generator = torch.Generator().manual_seed(0)
        if embedder.encoder.is_outline:  # its states come out of a layer norm, and so are about as large as these
            states = torch.randn(1, 50, embedder.encoder.config.d_model, generator=generator)
            [rows] = embedder.adapter(states.to(embedder.device, embedder.dtype), torch.tensor([50]))
        else:
            [rows] = embedder.embed([torch.randn(SAMPLE_RATE, generator=generator) * 0.1])
        speech = rows.float().norm(dim=1).mean().item()
        text = embedding_table(self.llm).float().norm(dim=1).mean().item()
        if not text / MAX_NORM_RATIO <= speech <= text * MAX_NORM_RATIO:
            raise CheckpointError(
                f"{self.folder}: speech embeddings have norm {speech:.3g}, the LLM's token embeddings {text:.3g}; "
                "this adapter was not trained for this LLM"
            )


def open_checkpoint(name: str, cache: Path) -> Checkpoint:
    """Opens a folder or Hugging Face id of either layout; an official one is converted once, into `cache`.

    Raises CheckpointError that says what is missing.
    """
    folder = fetch(name, None, Path(), cache)
    if official.is_official(folder):
        folder = official.cached_import(folder, cache)
    try:
        config = BlspConfig.read(folder)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no config.json; this is not a BLSP checkpoint") from error
    except ValidationError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    encoder = fetch(config.encoder, config.encoder_revision, folder, cache)
    llm = fetch(config.llm, config.llm_revision, folder, cache)
    for part in (encoder, llm):
        if not (part / "config.json").exists():
            raise CheckpointError(f"{part}: no config.json")
    if config.llm_lora is not None:
        llm = merged(llm, folder / config.llm_lora, cache)
    lora = None if config.lora is None else fetch(config.lora, None, folder, cache)
    return Checkpoint(name, config, folder, encoder, llm, files_in(encoder), lora)


def fetch(name: str, revision: str | None, base: Path, cache: Path) -> Path:
    """A folder as it is, relative to `base`; else a Hugging Face id: out of installed packages, the Hub's cache or the Hub.

    A revision asks for the Hub's very files, so no package stands in for them. Raises CheckpointError that says how what is missing can
    be had.
    """
    if (base / name).is_dir():
        return base / name
    try:
        if revision is None and (part := find_part(name, cache, logging.getLogger(__name__).info)) is not None:
            return part
    except PartError as error:
        raise CheckpointError(f"{name!r}: {error}") from error
    try:
        return Path(
            snapshot_download(name, revision=revision, ignore_patterns=["*.h5", "*.msgpack", "*.onnx", "*.gguf"])
        )
    except Exception as error:
        hint = how_to_get(name) if revision is None else ""
        raise CheckpointError(
            f"{name!r} is neither a folder here nor a Hugging Face model that can be reached{hint}: {error}"
        ) from error


def _encoder_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The encoder's tensors, also out of a whole Whisper model, whose decoder is passed over."""
    for name, tensor in read_tensors(folder):
        if name.startswith("model.encoder."):
            yield name.removeprefix("model.encoder."), tensor
        elif not name.startswith(("model.decoder.", "proj_out.")):
            yield name, tensor


def embedding_table(llm: Path) -> Tensor:
    """The LLM's token embeddings (vocabulary, llm_dim)."""
    for name, tensor in read_tensors(llm):
        if name.endswith(("embed_tokens.weight", "wte.weight", "tok_embeddings.weight")):
            return tensor
    raise CheckpointError(f"{llm}: no token embeddings among the weights")
