"""The converted tokenizer against plain sentencepiece."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import PreTrainedTokenizerBase

from models.config import CheckpointError
from models.tokenizer import from_sentencepiece
from tests.official_checkpoint import SENTENCES

# Runs of spaces and letters that merge, control tokens whole and broken, what looks like a byte token, any Unicode.
FRAGMENTS = [
    "<s>",
    "</s>",
    "<unk>",
    "<s",
    "/s>",
    "<0x41>",
    " ",
    "  ",
    "▁",
    "\n",
    "\t",
    "\0",
    "!!!",
    "zzzz",
    "1984",
    "é",
    "😀",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS + SENTENCES) | st.text(max_size=8), max_size=6).map("".join)


@given(text=TEXTS)
@example(text="")
@example(text=" ")
@example(text="<s> text </s> more")
@example(text="x<unk>y")
@settings(max_examples=200, deadline=None)
def test_ids_equal_sentencepiece(
    tokenizer: PreTrainedTokenizerBase, reference_ids: Callable[[str], list[int]], text: str
) -> None:
    assert tokenizer.encode(text, add_special_tokens=False) == reference_ids(text)
    assert tokenizer.encode(text) == [1, *reference_ids(text)]


@given(text=TEXTS)
@example(text="  two  spaces ")
@settings(max_examples=200, deadline=None)
def test_decoded_text_equals_sentencepiece(
    tokenizer: PreTrainedTokenizerBase,
    reference_ids: Callable[[str], list[int]],
    sentencepiece: SentencePieceProcessor,
    text: str,
) -> None:
    ids = reference_ids(text)
    expected = sentencepiece.decode([i for i in ids if i > 2])
    assert tokenizer.decode([1, *ids, 2], skip_special_tokens=True) == expected


def test_every_piece_keeps_its_id(tokenizer: PreTrainedTokenizerBase, sentencepiece: SentencePieceProcessor) -> None:
    assert len(tokenizer) == sentencepiece.get_piece_size()
    pieces = [sentencepiece.id_to_piece(i) for i in range(len(tokenizer))]
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == pieces


def test_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 2, 0)


@pytest.mark.parametrize("options", [{"model_type": "unigram", "byte_fallback": True}, {"model_type": "bpe"}])
def test_other_kinds_of_models_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=450, minloglevel=2, **options
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(CheckpointError, match="only SentencePiece BPE models with byte fallback"):
        from_sentencepiece(tmp_path / "tokenizer.model")
