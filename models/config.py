"""What a BLSP checkpoint says of itself: `config.json` in our layout."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

PaddingPolicy = Literal["30s", "exact"]
PromptFormat = Literal["blsp", "chat-template"]


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says what does not fit and where."""


class AdapterSizes(BaseModel):
    """Sizes of the trained part; input and output widths are those of the encoder and the LLM."""

    model_config = ConfigDict(extra="forbid")

    conv_kernel_sizes: tuple[int, ...] = Field((5, 5, 5), min_length=1)
    """Width of each convolution of the subsampler; each one halves the number of frames."""
    context_layers: int = Field(0, ge=0)
    """Convolutional layers between the subsampler and the bottleneck, each of which sees 4 positions to both sides; the paper has none."""
    spelling_dim: int = Field(0, ge=0)
    """Width in which rows are compared with the spelling of the LLM's tokens, whose embeddings then take their place; 0, as in the paper:
    the LLM reads the rows themselves."""
    inner_dim: int = Field(512, gt=0)
    """Width of the adapter's bottleneck."""

    @field_validator("conv_kernel_sizes")
    @classmethod
    def _odd(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 1 or size % 2 == 0 for size in sizes):
            raise ValueError(
                f"kernel widths must be odd, not {sizes}: only then is the output length ceil(input length / 2)"
            )
        return sizes


class BlspConfig(BaseModel):
    """`config.json` of a checkpoint.

    `encoder` and `llm` are folders relative to the checkpoint, or Hugging Face ids with an optional revision.
    """

    model_config = ConfigDict(extra="forbid")

    model_type: Literal["blsp"] = "blsp"
    encoder: str = "encoder"
    encoder_revision: str | None = None
    llm: str = "llm"
    llm_revision: str | None = None
    llm_lora: str | None = None
    """A folder, relative to the checkpoint, with a LoRA in PEFT's layout that is merged into the LLM: how it was instruction-tuned."""
    lora: str | None = None
    """Another, as it is, which the engine adds to the LLM's weights for this model's requests: of an adapter beside a first model alone.
    A folder relative to the checkpoint, or a Hugging Face id."""
    adapter: AdapterSizes = AdapterSizes()
    prompt_format: PromptFormat = "blsp"
    transcribe_instruction: str = "Please repeat the words you hear."
    """What a transcription asks the model; the speech stands at its "{speech}", or behind it."""
    transcribe_begun: str = ""
    """How the reply to that is begun; where it ends in a quotation mark, the reply ends at the next one: small LLMs repeat better so."""
    transcribe_expecting: str = ""
    """For an adapter that spells: what the LLM is asked without the speech, so that it expects what people say.

    A transcription is then the likeliest text by what it expects and by what was heard; where this is empty, the LLM is asked for it by
    `transcribe_instruction`. In both cases `transcribe_begun` begins the reply."""
    transcribe_seconds: float = Field(30.0, gt=0, le=30)
    """The longest piece of a recording that the model is to repeat at once: small LLMs repeat little better than much.

    Below 30, the model is not asked about pieces in which nobody speaks: small LLMs make up a text then."""
    translate_instruction: str = "Please translate the following audio into English text."
    """What a translation into English asks the model; the speech as in a transcription."""
    padding: PaddingPolicy = "30s"
    """"30s": every window is padded to 30 s, as the official code does. "exact": only real frames are encoded."""

    @model_validator(mode="after")
    def _can_expect(self) -> "BlspConfig":
        if self.transcribe_expecting and not (self.adapter.spelling_dim and self.transcribe_begun.endswith('"')):
            raise ValueError(
                "transcribe_expecting: it takes an adapter that spells (spelling_dim), and a transcribe_begun that ends in a quotation mark"
            )
        return self

    @classmethod
    def read(cls, folder: Path) -> "BlspConfig":
        """Reads `folder/config.json`; raises FileNotFoundError or pydantic's ValidationError, which names the field."""
        return cls.model_validate_json((folder / "config.json").read_bytes())

    def write(self, folder: Path) -> None:
        """Writes `folder/config.json`."""
        (folder / "config.json").write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n")
