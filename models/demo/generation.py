"""Batched generation with the demo LLM from embeddings: of transcripts or of speech."""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo.prompts import Prompt, ids

MAX_NEW_TOKENS = 64
_BATCH = 250


def transcript_rows(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """The embeddings (n, dim) of a transcript."""
    return model.model.embed_tokens(torch.tensor(ids(tokenizer, text))).detach()


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: Prompt,
    slots: list[Tensor],
    top_p: float | None = None,
) -> list[str]:
    """One reply for each slot (n_i, dim) in the prompt: the likeliest words, or sampled ones with `top_p`."""
    replies: list[str] = []
    sampling = (
        {"do_sample": False} if top_p is None else {"do_sample": True, "top_p": top_p, "top_k": 0, "temperature": 1.0}
    )
    for begin in range(0, len(slots), _BATCH):
        embeddings, mask = _pad_left([_splice(model, prompt, slot) for slot in slots[begin : begin + _BATCH]])
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.generate(
                inputs_embeds=embeddings, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, **sampling
            )
        replies += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return replies


def _splice(model: LlamaForCausalLM, prompt: Prompt, slot: Tensor) -> Tensor:
    """The embeddings of the prompt with the slot's rows in it."""
    before, after = (model.model.embed_tokens(torch.tensor(part)) for part in prompt)
    return torch.cat([before, slot.to(before.dtype), after])


def _pad_left(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(batch, length, dim) with zeros before the shorter ones, and the mask."""
    length = max(map(len, rows))
    embeddings = torch.stack([torch.nn.functional.pad(row, (0, 0, length - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(length) >= length - len(row) for row in rows])
    return embeddings, mask.long()
