"""What the tests of the models share: the official checkpoint, converted, and the reference for token ids."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerBase

from models.checkpoint import Checkpoint, open_checkpoint
from models.embedder import Embedder

CONTROL = ["<unk>", "<s>", "</s>"]


@pytest.fixture(scope="session")
def checkpoint(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The official checkpoint, converted and opened; not to be written to."""
    return open_checkpoint(str(official), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def embedder(checkpoint: Checkpoint) -> Embedder:
    return checkpoint.load_embedder()


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    return checkpoint.tokenizer()


@pytest.fixture(scope="session")
def sentencepiece(official: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(str(official / "tokenizer.model"))


@pytest.fixture(scope="session")
def reference_ids(sentencepiece: SentencePieceProcessor) -> Callable[[str], list[int]]:
    """Text to ids without BOS, as the official code has them: plain sentencepiece between control tokens."""

    def encode(text: str) -> list[int]:
        pieces = re.split("(<unk>|<s>|</s>)", text)
        return [
            i for piece in pieces for i in ([CONTROL.index(piece)] if piece in CONTROL else sentencepiece.encode(piece))
        ]

    return encode
