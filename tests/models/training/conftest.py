"""A handful of examples to train on."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.prompt import PromptBuilder
from models.training.batches import Collator
from models.training.manifest import AudioSpan, Example
from tests.sounds import RATE, voice

SECONDS = [0.4, 1.3, 0.8, 2.0, 0.6, 1.1]


def read(span: AudioSpan) -> Tensor:
    """The audio of the example of that name."""
    return torch.from_numpy(voice(SECONDS[int(str(span.path))], seed=int(str(span.path))))


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    texts = [
        "No.",
        "How far is it from here?",
        "The weather is fine.",
        "Er fährt mit dem Zug.",
        "Yes.",
        "Tell me a story.",
    ]
    return [
        Example(AudioSpan(Path(str(i))), round(s * RATE), t, f"{t} And then?")
        for i, (s, t) in enumerate(zip(SECONDS, texts, strict=True))
    ]


@pytest.fixture(scope="session")
def prompts(checkpoint: Checkpoint) -> PromptBuilder:
    return checkpoint.prompt_builder(torch.float32)


@pytest.fixture(scope="session")
def collator(checkpoint: Checkpoint, prompts: PromptBuilder) -> Collator:
    length = checkpoint.load_embedder().speech_length
    return Collator(read, prompts, length, 80, checkpoint.config.padding, "Continue:", transcripts=True)
