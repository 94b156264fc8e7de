"""SentencePiece models as fast tokenizers that give exactly the ids of the official BLSP code.

transformers 5 rebuilds a Llama tokenizer with other rules than transformers 4.31's "legacy" ones, which the official code ran on. So an
imported checkpoint gets a `tokenizer.json` with those rules written down: text is split at control tokens, every piece gets a dummy
space in front, spaces become "▁", unknown characters become bytes.
"""

from pathlib import Path

from google.protobuf.message import DecodeError
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SentencePieceExtractor

from models.config import CheckpointError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"


def from_sentencepiece(model: Path) -> PreTrainedTokenizerFast:
    """Turns a SentencePiece BPE model with byte fallback, as Llama's, into a fast tokenizer that puts BOS first.

    Raises CheckpointError where the file is missing, damaged, or a model of another kind.
    """
    try:
        extractor = SentencePieceExtractor(str(model))
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{model}: can't be read as a SentencePiece model: {error}") from error
    kind = extractor.proto.trainer_spec
    if kind.model_type != kind.BPE or not kind.byte_fallback:
        raise CheckpointError(f"{model}: only SentencePiece BPE models with byte fallback can be converted")
    parts = extractor.extract(BPE)
    tokenizer = Tokenizer(BPE(parts["vocab"], parts["merges"], unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (UNK, BOS, EOS)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=UNK,
        clean_up_tokenization_spaces=False,
    )
