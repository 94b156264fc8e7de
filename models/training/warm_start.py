"""A first adapter by CTC: its rows are compared with the LLM's own token embeddings and are to spell the transcript's tokens.

No LLM runs, so a step costs a hundredth of one of alignment. CTC: Graves et al. 2006. The rows' scores are their products with the frozen
embeddings times a learned scale; a learned vector stands for the blank.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, TrainingArguments

from models.adapter import ModalityAdapter
from models.checkpoint import Checkpoint, embedding_table
from models.training.align import ADAPTER, AlignmentTrainer, first_adapter, shared_config, write_adapter
from models.training.manifest import Example, ReadAudio
from models.training.states import EncoderStates, Heard, Progress, keep_states
from models.weights import load_strict, read_tensors

MASKING = 0.1  # of the states' channels, at most
SHARPNESS = 15.0  # of the scores at first: their spread between a row's own token and any other
HEAD = "head.pt"


class WarmStart(nn.Module):
    """The adapter with a head that spells: its loss is the negative log likelihood of the transcripts' tokens, a token.

    `embeddings` (vocabulary, llm_dim) are the LLM's; `candidates`, sorted token ids, all that any transcript has. In a step the tokens of
    the batch are scored with `negatives` random others of them (None: with all, which is exact, and right on a GPU).
    """

    embeddings: Tensor
    candidates: Tensor

    def __init__(
        self,
        adapter: ModalityAdapter,
        states: EncoderStates,
        embeddings: Tensor,
        candidates: Tensor,
        negatives: int | None = None,
        masking: float = 0.0,
    ) -> None:
        super().__init__()
        self.adapter = adapter.float().requires_grad_(True)
        self.states = states
        self.negatives = negatives
        self.masking = masking
        self.register_buffer("embeddings", embeddings.float(), persistent=False)
        self.register_buffer("candidates", candidates, persistent=False)
        norm = embeddings.float().norm(dim=1).mean()
        self.scale = nn.Parameter((SHARPNESS / norm**2).log())
        self.blank = nn.Parameter(torch.zeros(embeddings.shape[1]))
        self.blank_bias = nn.Parameter(torch.zeros(()))

    def forward(self, places: Tensor, targets: Tensor, target_lengths: Tensor) -> dict[str, Tensor]:
        """The loss of recordings at `places` (batch,) with token ids `targets` (batch, longest) of `target_lengths` (batch,)."""
        states, lengths = self.states.batch(places)
        if self.training:
            states = masked(states, lengths, self.masking)
        rows, counts = self.adapter.padded(states, lengths)
        candidates = self._scored(targets)
        scores = self.scores(rows, self.embeddings[candidates]).log_softmax(-1)  # (batch, n, 1 + candidates)
        labels = torch.searchsorted(candidates, targets) + 1
        loss = F.ctc_loss(scores.transpose(0, 1), labels, counts, target_lengths, reduction="none", zero_infinity=True)
        return {"loss": loss.sum() / target_lengths.sum()}

    def scores(self, rows: Tensor, embeddings: Tensor) -> Tensor:
        """Rows (..., llm_dim) and embeddings (n, llm_dim) -> float32 scores (..., 1 + n), the blank's first."""
        blank = rows @ self.blank + self.blank_bias
        return torch.cat([blank[..., None].float(), (rows @ embeddings.T).float() * self.scale.exp()], -1)

    def _scored(self, targets: Tensor) -> Tensor:
        if self.negatives is None or self.negatives >= len(self.candidates):
            return self.candidates
        others = torch.randint(len(self.candidates), (self.negatives,), device=targets.device)
        return torch.unique(torch.cat([self.candidates[others], targets.flatten()]))

    @torch.inference_mode()
    def spell(self, places: Tensor) -> list[list[int]]:
        """The token ids that the rows of recordings say, greedily."""
        rows, counts = self.adapter.padded(*self.states.batch(places.to(self.blank.device)))
        best = self.scores(rows, self.embeddings[self.candidates]).argmax(-1)
        return [
            self.candidates[ids[ids > 0] - 1].tolist()
            for ids in (torch.unique_consecutive(best[i, :n]) for i, n in enumerate(counts.tolist()))
        ]


def masked(states: Tensor, lengths: Tensor, share: float) -> Tensor:
    """States (batch, length, d) with spans of time and of channels set to zero, after SpecAugment (Park et al. 2019).

    `share` of the channels at most, and one span of up to 0.4 s in each two seconds: a word is then told by what is around it.
    """
    if not share:
        return states
    batch, length, width = states.shape
    spans = max(1, length // 100)  # one for each two seconds
    starts = torch.rand(batch, spans, 1, device=states.device) * lengths[:, None, None]
    ends = starts + torch.rand(batch, spans, 1, device=states.device) * 20 * min(1.0, 5 * share)
    at = torch.arange(length, device=states.device)
    hidden = ((at >= starts) & (at < ends)).any(1)  # (batch, length)
    first = torch.randint(width, (batch, 1), device=states.device)
    channels = (torch.arange(width, device=states.device) - first) % width < width * share * torch.rand_like(
        first.float()
    )
    return states * ~hidden[..., None] * ~channels[:, None]


class Spelled:
    """A collator: examples to the arguments of WarmStart.forward."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, places: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._places = places

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """places, targets and target_lengths of the batch."""
        ids = [
            torch.tensor(ids)
            for ids in self._tokenizer([e.text for e in examples], add_special_tokens=False)["input_ids"]
        ]
        return {
            "places": torch.tensor([self._places[str(example.audio)] for example in examples]),
            "targets": pad_sequence(ids, batch_first=True, padding_value=int(ids[0][0])),
            "target_lengths": torch.tensor([len(item) for item in ids]),
        }


def tokens_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """All token ids that texts have, sorted."""
    return torch.tensor(
        sorted({i for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for i in ids})
    )


class WarmStartTrainer(AlignmentTrainer):
    """A trainer whose checkpoints hold the adapter, and the head beside it."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        out = Path(output_dir or self.args.output_dir)
        write_adapter(self.model.adapter.state_dict(), self._config, out)
        head = {name: value.detach().cpu() for name, value in self.model.named_parameters() if "." not in name}
        torch.save(head, out / HEAD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_strict(self.model.adapter, read_tensors(folder), resume_from_checkpoint)
        for name, value in torch.load(folder / HEAD, weights_only=True).items():
            getattr(self.model, name).data.copy_(value)


def prepare(
    checkpoint: Checkpoint,
    examples: list[Example],
    read: ReadAudio,
    args: TrainingArguments,
    *,
    states: Path | None = None,
    negatives: int | None = None,
    masking: float = MASKING,
    progress: Progress = lambda done, total: None,
) -> WarmStartTrainer:
    """A trainer of the checkpoint's adapter, or of a new one, by recordings and transcripts, into `args.output_dir`; `run` has it train.

    The encoder is in bfloat16 with `args.bf16`, else in float32. Its states are kept in the folder `states`, or in the device's memory;
    `progress` hears of the recordings encoded and of all.
    """
    out = Path(args.output_dir)
    embeddings = embedding_table(checkpoint.llm)
    with args.main_process_first():
        if args.should_save and not (out / ADAPTER).exists():
            write_adapter(first_adapter(checkpoint, embeddings, args.seed), shared_config(checkpoint), out)
        embedder = replace(checkpoint, folder=out).load_embedder()
        embedder.encoder.to(args.device, torch.bfloat16 if args.bf16 else torch.float32)
        heard = [Heard(example.audio, example.samples) for example in examples]
        kept = keep_states(heard, read, embedder, states, progress).to(args.device)
    tokenizer = checkpoint.tokenizer()
    candidates = tokens_of(tokenizer, [example.text for example in examples])
    model = WarmStart(embedder.adapter, kept, embeddings, candidates, negatives, masking)
    collator = Spelled(tokenizer, kept.places)
    return WarmStartTrainer(shared_config(checkpoint), examples, model=model, args=args, data_collator=collator)
