"""A first adapter by CTC: its rows are to spell the transcript's tokens, and half-way to them its letters.

No LLM runs, so a step costs a hundredth of one of alignment. CTC: Graves et al. 2006; a second loss between the layers: Lee and Watanabe
2021. Letters are learnt at once, and tokens by their letters.
"""

import re
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
from models.manifest import Example, InputError, ReadAudio
from models.spelling import SPACES, Speller, first_of_each
from models.training.align import AlignmentTrainer, first_adapter, shared_config, write_adapter
from models.training.low_rank import changed, freeze_but_changes
from models.training.states import EncoderStates, Heard, Progress, keep_states
from models.updates import ADAPTER
from models.weights import load_strict, read_tensors

MASKING = 0.15  # of the states' channels, at most
WEIGHT = 1.2  # of the letters' loss, a letter, beside the tokens', a token
ALPHABET = "abcdefghijklmnopqrstuvwxyz' "
HEAD, CHANGES = "head.pt", "changes.pt"
"""Of a checkpoint: the letters' head, and what a training of low rank goes on with, beside the adapter that it has made."""


class WarmStart(nn.Module):
    """An adapter that spells, with a head that tells letters behind its first convolution.

    Its loss is the negative log likelihood of the transcripts' tokens, a token, and of their letters, a letter. In a step the tokens of the
    batch are scored with `negatives` random others (None: with all, which is exact, and right on a GPU). With a `rank`, changes of that
    rank to the adapter's matrices are learnt.
    """

    def __init__(
        self,
        adapter: ModalityAdapter,
        states: EncoderStates,
        negatives: int | None = None,
        masking: float = 0.0,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.adapter = adapter.float().requires_grad_(True)
        self.rank = rank
        if rank:
            freeze_but_changes(self.adapter, rank)
        self.states = states
        self.negatives = negatives
        self.masking = masking
        first = adapter.subsampler.conv_layers[0]
        assert isinstance(first, nn.Conv1d)
        self.letters = nn.Linear(first.out_channels // 2, 1 + len(ALPHABET))

    @property
    def speller(self) -> Speller:
        """The adapter's."""
        assert self.adapter.speller is not None
        return self.adapter.speller

    def forward(
        self, places: Tensor, targets: Tensor, target_lengths: Tensor, letters: Tensor, letter_lengths: Tensor
    ) -> dict[str, Tensor]:
        """The loss of recordings at `places` (batch,).

        Targets are places of spoken tokens (batch, longest) of `target_lengths` (batch,); letters count from 1 on.
        """
        states, lengths = self.states.batch(places)
        if self.training:
            states = masked(states, lengths, self.masking)
        rows, counts, first, first_counts = self.adapter.padded_with_first(states, lengths)
        tokens = self._scored(targets)
        labels = targets if tokens is None else torch.searchsorted(tokens, targets)
        loss = ctc(self.speller.scores(rows, tokens), labels + 1, counts, target_lengths)
        return {"loss": loss + WEIGHT * ctc(self.letters(first), letters, first_counts, letter_lengths)}

    def _scored(self, targets: Tensor) -> Tensor | None:
        known = len(self.speller.ids)
        if self.negatives is None or self.negatives >= known:
            return None
        others = torch.randint(known, (self.negatives,), device=targets.device)
        return torch.unique(torch.cat([others, targets.flatten()]))

    @torch.inference_mode()
    def spell(self, places: Tensor) -> list[list[int]]:
        """The token ids that the rows of recordings say, greedily."""
        rows, counts = self.adapter.padded(*self.states.batch(places.to(self.letters.weight.device)))
        scores = [self.speller.scores(row[:n]) for row, n in zip(rows, counts.tolist(), strict=True)]
        return [self.speller.ids[item[first_of_each(item), 1:].argmax(-1)].tolist() for item in scores]


def ctc(scores: Tensor, labels: Tensor, counts: Tensor, label_counts: Tensor) -> Tensor:
    """The mean loss a label of scores (batch, n, 1 + classes) with `counts` real rows each."""
    logs = scores.float().log_softmax(-1).transpose(0, 1)
    loss = F.ctc_loss(logs, labels, counts, label_counts, reduction="none", zero_infinity=True)
    return loss.sum() / label_counts.sum()


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

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spoken: Tensor, places: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self._place_of = {token: place for place, token in enumerate(spoken.tolist())}
        self._places = places

    def targets(self, text: str) -> list[int] | None:
        """The places of a transcript's tokens among the spoken; None where one is not spoken.

        A space stands before the first word: the transcript is to be read behind an instruction, or behind what was said before.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        if ids and not self._tokenizer.convert_ids_to_tokens(ids[0]).startswith(SPACES):
            ids = self._tokenizer.encode(f" {text}", add_special_tokens=False)
        found = [self._place_of.get(i) for i in ids]
        return None if None in found else [place for place in found if place is not None]

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The batch; each transcript has targets."""
        targets = [torch.tensor(self.targets(example.text)) for example in examples]
        letters = [torch.tensor([ALPHABET.index(letter) + 1 for letter in in_letters(e.text)]) for e in examples]
        return {
            "places": torch.tensor([self._places[str(example.audio)] for example in examples]),
            "targets": pad_sequence(targets, batch_first=True, padding_value=int(targets[0][0])),
            "target_lengths": torch.tensor([len(item) for item in targets]),
            "letters": pad_sequence(letters, batch_first=True, padding_value=1),
            "letter_lengths": torch.tensor([len(item) for item in letters]),
        }


def in_letters(text: str) -> str:
    """A transcript in the letters of `ALPHABET`."""
    return " ".join(re.sub(f"[^{ALPHABET}]+", " ", text.lower()).split())


class WarmStartTrainer(AlignmentTrainer):
    """A trainer whose checkpoints hold the adapter, and the head beside it."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        out = Path(output_dir or self.args.output_dir)
        write_adapter(dict(changed(self.model.adapter)), self._config, out)
        if self.model.rank:
            torch.save(self.model.adapter.state_dict(), out / CHANGES)
        torch.save({name: value.cpu() for name, value in self.model.letters.state_dict().items()}, out / HEAD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.model.rank:
            self.model.adapter.load_state_dict(torch.load(folder / CHANGES, weights_only=True))
        else:
            load_strict(self.model.adapter, read_tensors(folder), resume_from_checkpoint)
        self.model.letters.load_state_dict(torch.load(folder / HEAD, weights_only=True))


def prepare(
    checkpoint: Checkpoint,
    examples: list[Example],
    read: ReadAudio,
    args: TrainingArguments,
    *,
    states: Path | None = None,
    negatives: int | None = None,
    masking: float = MASKING,
    rank: int = 0,
    progress: Progress = lambda done, total: None,
) -> WarmStartTrainer:
    """A trainer of the checkpoint's adapter, or of a new one, by recordings and transcripts, into `args.output_dir`; `run` has it train.

    The encoder is in bfloat16 with `args.bf16`, else in float32. Its states are kept in the folder `states`, or in the device's memory;
    `progress` hears of the recordings encoded and of all. A head beside the checkpoint's adapter is gone on with. Raises InputError where
    the adapter does not spell, or no transcript is of spoken tokens.
    """
    if not checkpoint.config.adapter.spelling_dim:
        raise InputError(f"{checkpoint.folder}: adapter.spelling_dim is 0: a warm start is for adapters that spell")
    out = Path(args.output_dir)
    with args.main_process_first():
        if args.should_save and not (out / ADAPTER).exists():
            embeddings = embedding_table(checkpoint.llm)
            write_adapter(first_adapter(checkpoint, embeddings, args.seed), shared_config(checkpoint), out)
        embedder = replace(checkpoint, folder=out).load_embedder()
        embedder.to(args.device).encoder.to(torch.bfloat16 if args.bf16 else torch.float32)
        heard = [Heard(example.audio, example.samples) for example in examples]
        kept = keep_states(heard, read, embedder, states, progress).to(args.device)
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        model = WarmStart(embedder.adapter, kept, negatives, masking, rank)
    if (checkpoint.folder / HEAD).exists():
        model.letters.load_state_dict(torch.load(checkpoint.folder / HEAD, weights_only=True))
    collator = Spelled(checkpoint.tokenizer(), model.speller.ids, kept.places)
    examples = [example for example in examples if collator.targets(example.text) and in_letters(example.text)]
    if not examples:
        raise InputError("no transcript is of letters and of tokens that can be spoken")
    return WarmStartTrainer(shared_config(checkpoint), examples, model=model, args=args, data_collator=collator)
