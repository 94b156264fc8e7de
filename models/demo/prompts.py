"""Training texts of the demo LLM as token ids, in the form that serving builds: each piece of the prompt is tokenized on its own."""

from functools import cache
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from models.prompt import ASSISTANT, HUMAN


class Prompt(NamedTuple):
    """Ids before the transcript (or the speech), and after it up to the reply."""

    before: list[int]
    after: list[int]


def prompt(tokenizer: PreTrainedTokenizerFast, instruction: str) -> Prompt:
    """[bos] ###[Human]:{instruction} | transcript or speech | \\n\\n\\n###[Assistant]:"""
    return Prompt([tokenizer.bos_token_id, *ids(tokenizer, HUMAN + instruction)], ids(tokenizer, ASSISTANT))


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of `text`, without bos and eos."""
    return list(_ids(tokenizer, text))


@cache
def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()
