"""A handful of examples to train on, and an end for trainings that nothing can prepare for."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoint import Checkpoint, embedding_table
from models.config import AdapterSizes
from models.manifest import AudioSpan, Example
from models.prompt import PromptBuilder
from models.training.align import first_adapter, shared_config, write_adapter
from models.training.batches import Collator
from tests.sounds import RATE, voice

SECONDS = [0.4, 1.3, 0.8, 2.0, 0.6, 1.1]
TEXTS = [
    "No.",
    "How far is it from here?",
    "The weather is fine.",
    "Er fährt mit dem Zug.",
    "Yes.",
    "Tell me a story.",
]
EXAMPLES = [
    Example(AudioSpan(Path(str(i))), round(s * RATE), t, f"{t} And then?")
    for i, (s, t) in enumerate(zip(SECONDS, TEXTS, strict=True))
]


def read(span: AudioSpan) -> Tensor:
    """The audio of the example of that name."""
    return torch.from_numpy(voice(SECONDS[int(str(span.path))], seed=int(str(span.path))))


PAUSE = """
import signal, sys
from models.training.trainer import LengthTrainer

save = LengthTrainer._save_rng_state

def pause(self, folder):
    if folder.endswith("-6"):
        print("half of checkpoint-6 is written", flush=True)
        signal.pause()
    save(self, folder)

LengthTrainer._save_rng_state = pause
"""


def kill_while_it_saves(script: str, *arguments: object) -> None:
    """Runs Python code that trains, and kills it with SIGKILL while it writes checkpoint-6."""
    command = [sys.executable, "-c", PAUSE + script, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert any("half of checkpoint-6" in line for line in process.stdout)
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return EXAMPLES


@pytest.fixture(scope="session")
def prompts(checkpoint: Checkpoint) -> PromptBuilder:
    return checkpoint.prompt_builder(torch.float32)


@pytest.fixture(scope="session")
def collator(checkpoint: Checkpoint, prompts: PromptBuilder) -> Collator:
    length = checkpoint.load_embedder().speech_length
    return Collator(read, prompts, length, 80, checkpoint.config.padding, "Continue:")


@pytest.fixture(scope="session")
def comparing(collator: Collator) -> Collator:
    """The same for the divergence from the LLM that reads the transcripts."""
    return replace(collator, objective="kl")


@pytest.fixture(scope="session")
def speller(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose adapter spells."""
    folder = tmp_path_factory.mktemp("speller")
    sizes = AdapterSizes(conv_kernel_sizes=(3, 3), context_layers=1, inner_dim=16, spelling_dim=32)
    config = shared_config(checkpoint).model_copy(update={"adapter": sizes})
    spelling = replace(checkpoint, folder=folder, config=config)
    write_adapter(first_adapter(spelling, embedding_table(checkpoint.llm), 0), config, folder)
    return spelling
