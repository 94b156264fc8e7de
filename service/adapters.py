"""What a model hears with: a checkpoint's adapter, and the encoder, which adapters of the same one share.

BLSP freezes encoder and LLM, so further adapters beside a first one cost little more than themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from models import lora
from models.checkpoint import Checkpoint, open_checkpoint
from models.config import CheckpointError
from models.embedder import Embedder
from models.encoder import WhisperEncoder
from service.settings import ModelSettings


@dataclass(frozen=True, eq=False)
class Adapter:
    """A checkpoint, of which the adapter is loaded, and the encoder, or its outline."""

    checkpoint: Checkpoint
    embedder: Embedder
    load_encoder: Callable[[], WhisperEncoder] | None = None
    """What loads the encoder where there is only the outline. Raises CheckpointError."""


def read_checkpoint(path: str, settings: ModelSettings) -> Checkpoint:
    """A checkpoint, with the instructions that the settings name in place of its own. Raises CheckpointError."""
    checkpoint = open_checkpoint(path, settings.cache)
    names = ("transcribe_instruction", "translate_instruction")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    if "transcribe_instruction" in given:
        given |= {"transcribe_begun": "", "transcribe_expecting": ""}
    return replace(checkpoint, config=checkpoint.config.model_copy(update=given))


def load_adapter(name: str, path: str, settings: ModelSettings, beside: Sequence[Adapter]) -> Adapter:
    """Loads the adapter of the checkpoint at `path` beside others, the first of which says what LLM it has to be for.

    It gets their device and dtype, and the encoder of one that has the same, else an outline. Raises CheckpointError, which begins with the
    name.
    """
    first = beside[0]
    dtype, device = first.embedder.dtype, first.embedder.device
    try:
        checkpoint = read_checkpoint(path, settings)
        _check_fits(checkpoint, first.checkpoint)
        if checkpoint.lora is not None:
            lora.check(checkpoint.llm, checkpoint.lora)
        same = (other.embedder.encoder for other in beside if checkpoint.has_encoder_of(other.checkpoint))
        encoder = next(same, None) or checkpoint.outline_encoder(dtype)
        embedder = checkpoint.load_embedder(dtype, device, encoder)
    except Exception as error:  # CheckpointError, and what libraries raise of files that are damaged
        raise CheckpointError(f"The adapter {name!r} can't be served: {error}") from error
    return Adapter(
        checkpoint, embedder, partial(checkpoint.load_encoder, dtype, device) if encoder.is_outline else None
    )


def _check_fits(checkpoint: Checkpoint, first: Checkpoint) -> None:
    if not checkpoint.has_llm_of(first):
        raise CheckpointError(
            f"{checkpoint.folder} is for the LLM {checkpoint.config.llm!r}, whose weights are not those of the one that is "
            f"served, {first.llm}"
        )
    if checkpoint.config.prompt_format != first.config.prompt_format:
        raise CheckpointError(
            f"{checkpoint.folder} has the prompt format {checkpoint.config.prompt_format!r}, and {first.folder} "
            f"{first.config.prompt_format!r}; models of one engine have the same"
        )
