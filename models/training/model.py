"""The model that is trained: frozen encoder, trained adapter, frozen LLM (paper, section 2.2)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from models.embedder import Embedder
from models.training.batches import IGNORED
from models.training.states import EncoderStates

TRAINED = "embedder.adapter."
"""How the names of the trained weights begin."""


class AdapterModel(nn.Module):
    """Encoder, adapter and LLM as one module whose loss trains the adapter; its state dict holds the adapter and nothing else.

    Of a reply it is the published one, the cross-entropy given the speech; or, where the batch has the transcript beside it, the
    divergence of the LLM's next-token distributions given the speech from those given the transcript. `states` are the encoder's of all
    recordings, where they are kept.
    """

    accepts_loss_kwargs = True  # transformers' Trainer passes num_items_in_batch

    def __init__(self, embedder: Embedder, llm: PreTrainedModel, states: EncoderStates | None = None) -> None:
        super().__init__()
        self.embedder = embedder.requires_grad_(False)
        self.llm = llm.requires_grad_(False)
        self.states = states
        self.config = llm.config  # where DeepSpeed's "auto" sizes come from
        embedder.adapter.float().requires_grad_(True)
        if embedder.adapter.speller is not None:
            # Which rows are no token, no gradient of a reply tells; and those of all tokens' spellings would take gigabytes.
            embedder.adapter.speller.blank.requires_grad_(False)
            embedder.adapter.speller.spelling.requires_grad_(False)
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_miss_nothing_frozen)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "AdapterModel":
        """The frozen parts stay in eval mode; but layers of the LLM checkpoint their activations in training mode only."""
        super().train(mode)
        self.embedder.encoder.eval()
        self.llm.train(mode and self.llm.is_gradient_checkpointing)
        return self

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recomputes the LLM's activations in the backward pass; called by transformers' Trainer."""
        self.llm.gradient_checkpointing_enable(**options)

    def forward(
        self,
        input_ids: Tensor,
        is_speech: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        features: Tensor | None = None,
        frames: Tensor | None = None,
        lengths: Tensor | None = None,
        places: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_labels: Tensor | None = None,
        compared: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch that `Collator` made: the mean over the tokens of the replies, or their sum / num_items_in_batch."""
        if places is None:
            assert features is not None
            assert frames is not None
            assert lengths is not None
            items = self.speech_rows(features, frames, lengths)
        else:
            items = self.rows_at(places)
        counts = torch.tensor([len(rows) for rows in items], device=labels.device)
        ids, is_speech, mask, labels = without_spare_rows(counts, input_ids, is_speech, attention_mask, labels)
        logits = predictions(self.llm, splice(self.llm, ids, is_speech, torch.cat(items)), mask, labels)
        right = labels[labels != IGNORED]
        if compared is None:
            total = F.cross_entropy(logits, right, reduction="sum")
        else:
            assert text_ids is not None
            assert text_mask is not None
            assert text_labels is not None
            token_compared = compared[(labels != IGNORED).nonzero()[:, 0]]
            teacher = self.from_transcript(text_ids, text_mask, text_labels)
            total = divergence(teacher, logits[token_compared]).sum()
            total = total + F.cross_entropy(logits[~token_compared], right[~token_compared], reduction="sum")
        return {"loss": total / (len(logits) if num_items_in_batch is None else num_items_in_batch)}

    def speech_rows(self, features: Tensor, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        """Features (batch, n_mels, T) with `frames` and `lengths` (batch,) -> the rows (n_i, llm_dim) of each item."""
        with torch.no_grad():
            states = self.embedder.encoder(features.to(self.embedder.dtype), frames)
        trained_dtype = self.embedder.adapter.speech_ln.weight.dtype  # DeepSpeed's bf16 engine converts it
        rows: list[Tensor] = self.embedder.adapter(states.to(trained_dtype), lengths)
        return rows

    def rows_at(self, places: Tensor) -> list[Tensor]:
        """The rows (n_i, llm_dim) of each of the recordings whose states are kept at `places` (batch,)."""
        assert self.states is not None
        adapter = self.embedder.adapter
        rows, counts = adapter.padded(*self.states.batch(places, adapter.speech_ln.weight.dtype))
        items = [item[:n] for item, n in zip(rows, counts.tolist(), strict=True)]
        return items if adapter.speller is None else [adapter.speller(item) for item in items]

    @torch.no_grad()
    def from_transcript(self, text_ids: Tensor, text_mask: Tensor, text_labels: Tensor) -> Tensor:
        """The logits given the transcript, (tokens of all replies, vocabulary)."""
        return predictions(self.llm, self.llm.get_input_embeddings()(text_ids), text_mask, text_labels)


def _drop_frozen(model: nn.Module, weights: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for name in [name for name in weights if not name.startswith(prefix + TRAINED)]:
        del weights[name]


def _miss_nothing_frozen(model: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [name for name in keys.missing_keys if TRAINED in name]


def without_spare_rows(
    counts: Tensor, ids: Tensor, is_speech: Tensor, mask: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch padded on the right in which item i has room for `counts[i]` rows and no more; all but counts (batch, length).

    A collator leaves room for all rows that a recording can have; an adapter that spells makes fewer.
    """
    real = mask.bool() & (~is_speech | (is_speech.cumsum(1) <= counts[:, None]))
    order = torch.argsort((~real).int(), dim=1, stable=True)[:, : int(real.sum(1).max())]
    ids, is_speech, mask, labels = (t.gather(1, order) for t in (ids, is_speech & real, real.to(mask.dtype), labels))
    return ids, is_speech, mask, labels


def splice(llm: PreTrainedModel, ids: Tensor, is_speech: Tensor, rows: Tensor) -> Tensor:
    """The LLM's embeddings of ids (batch, length), with rows (total, llm_dim) where speech stands: (batch, length, llm_dim)."""
    text: Tensor = llm.get_input_embeddings()(ids)
    return text.masked_scatter(is_speech[..., None], rows.to(text.dtype))


def predictions(llm: PreTrainedModel, embeddings: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """The logits, float32 (tokens of all replies, vocabulary), with which the LLM predicts every label.

    embeddings (batch, length, llm_dim) and mask, labels (batch, length). Only columns in which a reply stands are projected.
    """
    is_next = labels[:, 1:] != IGNORED
    columns = is_next.any(0).nonzero().squeeze(1)
    output = llm(inputs_embeds=embeddings, attention_mask=mask, logits_to_keep=columns, use_cache=False)
    logits: Tensor = output.logits[is_next[:, columns]]
    return logits.float()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of each token in nats; logits (n, vocabulary) -> (n,)."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)
