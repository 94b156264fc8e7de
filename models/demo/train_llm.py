"""Trains the demo LLM on text alone: tasks about sentences of the world, given as transcripts that are sometimes damaged.

The damage prepares it for speech, which has about two rows to a word: long words are stretched over several rows, neighbours
blend at their edges, pauses are rows of noise, words that the others imply are missing, and every row is a little off and of
the same length. The model never sees a speech embedding here.
"""

import logging
import random
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo import state, tasks
from models.demo.families import FAMILIES
from models.demo.prompts import ids, prompt
from models.demo.world import is_test, sample, spoken_words

BATCH = 96
POOL = 8  # batches whose examples are sorted by length together
WIDTHS, ROWS = 8, 256  # lengths and predictions are padded to multiples of these
PEAK_RATE, WARMUP = 2e-3, 100
SAVE_EVERY, LOG_EVERY = 250, 50
CLEAN_SHARE = 0.35  # transcripts left as they are
RANDOM_WORDS_SHARE = 0.2  # examples that repeat random words
DIGITS_SHARE = 0.12  # more sentences with digits: their order is what is hardest to learn
DIGIT_FAMILIES = [family for family in FAMILIES if "{digits}" in family.english]
UNKNOWN_SHARE = 0.03  # words of the instruction that become <unk>
DROP = 0.25  # of the words that the others imply
MOST_BLEND = 0.5  # share of a neighbour in a row at a word's edge
NOISE = 1.5  # spreads of the embeddings, at most: a row may stand at 56 degrees to its word
STRAY = 0.2  # rows that hold a share of a word that is not there
IGNORED = -100

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One row of a slot: an embedding, mixed with a share of another; the id -1 is a row that is no word."""

    token: int
    other: int = 0
    share: float = 0.0


class Example(NamedTuple):
    """One training text."""

    before: list[int]
    slot: list[Row]
    after: list[int]
    reply: list[int]
    noise: float
    """Standard deviation of the noise on the slot's rows, in spreads of the embeddings; negative for a slot left as it is."""


def config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The demo LLM's shape; the head size is one that vLLM's CPU attention knows."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def draw_task(rng: random.Random) -> tuple[str, str, str]:
    """Something to read, never a test sentence, with an instruction and the reply to it."""
    while True:
        if rng.random() < RANDOM_WORDS_SHARE:
            text = tasks.random_words(rng)
            instruction, reply = rng.choice(tasks.INSTRUCTIONS["repeat"]), text
        else:
            sentence = sample(rng, rng.choice(DIGIT_FAMILIES) if rng.random() < DIGITS_SHARE else None)
            text, (instruction, reply) = sentence.text, tasks.draw(sentence, rng)
        if not is_test(text):
            return text, instruction, reply


def draw_example(tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Example:
    """A task, its transcript perhaps damaged."""
    text, instruction, reply = draw_task(rng)
    before, after = prompt(tokenizer, instruction)
    before = before[:2] + [tokenizer.unk_token_id if rng.random() < UNKNOWN_SHARE else i for i in before[2:]]
    slot, noise = [Row(token) for token in ids(tokenizer, text)], -1.0
    if rng.random() > CLEAN_SHARE:
        slot, noise = damage(text.split(), tokenizer, rng), rng.random() * NOISE
    return Example(before, slot, after, [*ids(tokenizer, reply), tokenizer.eos_token_id], noise)


def damage(words: list[str], tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> list[Row]:
    """A transcript as speech might give it: long words take more rows than short ones, neighbours blend, pauses are no word."""
    drop = rng.choice([0.0, 0.0, DROP])
    said = [word for word in words if len(words) < 3 or word not in tasks.FUNCTION_WORDS or rng.random() >= drop]
    tokens = [token for word in said for token in ids(tokenizer, word)]
    pace = rng.choice([0.0, rng.uniform(0.15, 0.6)])  # rows for a letter
    pauses = rng.choice([0.0, 0.1, 0.3])
    slot = [Row(-1)] * rng.randint(0, 2)
    for i, (word, token) in enumerate(zip(said, tokens, strict=True)):
        rows = [
            _inner_row(token, tokenizer, rng) for _ in range(max(1, round(pace * len(word) + rng.uniform(-0.5, 0.5))))
        ]
        rows[-1] = Row(token, tokens[min(i + 1, len(tokens) - 1)], rng.uniform(0, MOST_BLEND))
        if len(rows) > 1:
            rows[0] = Row(token, tokens[max(i - 1, 0)], rng.uniform(0, MOST_BLEND))
        said_again = tokens[i + 1 : i + 2] == [token]  # without a pause it would look like a long word
        slot += rows + [Row(-1)] * (said_again or rng.random() < pauses)
    return slot + [Row(-1)] * rng.randint(0, 2)


def _inner_row(token: int, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Row:
    """A row inside a word: the word, now and then with a share of one that is not there."""
    if rng.random() >= STRAY:
        return Row(token)
    return Row(token, ids(tokenizer, rng.choice(spoken_words()))[0], rng.uniform(0, MOST_BLEND))


class Batch(NamedTuple):
    """Examples, padded on the right; each tensor is (batch, length)."""

    ids: Tensor
    """-1 for rows that are no word."""
    others: Tensor
    shares: Tensor
    noise: Tensor
    """Negative outside damaged slots."""
    labels: Tensor
    mask: Tensor


def example_length(example: Example) -> int:
    """Rows of an example."""
    return len(example.before) + len(example.slot) + len(example.after) + len(example.reply)


def draw_batches(tokenizer: PreTrainedTokenizerFast, seed: int, first: int) -> Iterator[Batch]:
    """Endless batches from number `first` on. Examples of like length share one: they are sorted in pools."""
    for pool in count(first // POOL):
        rng = random.Random(seed * 1_000_003 + pool)
        examples = sorted((draw_example(tokenizer, rng) for _ in range(POOL * BATCH)), key=example_length)
        order = rng.sample(range(POOL), POOL)
        for number in order[first % POOL if pool == first // POOL else 0 :]:
            yield collate(examples[number * BATCH : (number + 1) * BATCH], tokenizer.pad_token_id)


def collate(examples: list[Example], pad: int) -> Batch:
    """Pads examples to a batch whose loss is on the replies."""
    length = -(-max(map(example_length, examples)) // WIDTHS) * WIDTHS
    padded = torch.tensor([_padded(example, length, pad) for example in examples])  # (batch, 6, length); exact for ids
    ids, others, shares, noise, labels, mask = padded.unbind(1)
    return Batch(ids.long(), others.long(), shares, noise, labels.long(), mask.long())


def _padded(example: Example, length: int, pad: int) -> list[list[float]]:
    """The rows of an example in the fields of a batch."""
    before, slot, after, reply, noise = example
    head, given = [0.0] * len(before), len(before) + len(slot) + len(after)
    tail, rest = [0.0] * (length - len(before) - len(slot)), length - given - len(reply)
    return [
        [*before, *(row.token for row in slot), *after, *reply, *[pad] * rest],
        [*head, *(row.other for row in slot), *tail],
        [*head, *(row.share for row in slot), *tail],
        [-1.0] * len(head) + [noise] * len(slot) + [-1.0] * len(tail),
        [float(IGNORED)] * given + [float(token) for token in reply] + [float(IGNORED)] * rest,
        [1.0] * (length - rest) + [0.0] * rest,
    ]


def embed(table: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """Embeddings (batch, length, dim). Rows of damaged slots are mixed, noisy, and of one length, as an adapter's layer norm makes them."""
    x, other, share = (
        F.embedding(batch.ids.clamp(min=0), table),
        F.embedding(batch.others, table),
        batch.shares[..., None],
    )
    spread = table.detach().std()
    noise = torch.randn(x.shape, generator=generator) * spread
    mixed = torch.where(
        (batch.ids < 0)[..., None], noise, (1 - share) * x + share * other + noise * batch.noise[..., None]
    )
    mixed = mixed / mixed.std(-1, keepdim=True) * spread
    return torch.where((batch.noise < 0)[..., None], x, mixed)


def reply_logits(model: LlamaForCausalLM, x: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """float32 logits (n, vocabulary) where a reply is predicted, row after row, and the targets (n,) there.

    Takes embeddings (batch, length, dim). n is padded to a multiple of `ROWS`, with targets to ignore.
    """
    targets = labels[:, 1:].flatten()
    places = (targets != IGNORED).nonzero().flatten()
    places = F.pad(places, (0, -len(places) % ROWS))  # place 0 is in the prompt and has no target
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(inputs_embeds=x, attention_mask=mask).last_hidden_state[:, :-1]
        logits = model.lm_head(states.flatten(0, 1)[places])
    return logits.float(), targets[places]


def loss(model: LlamaForCausalLM, x: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the replies, given embeddings (batch, length, dim)."""
    logits, targets = reply_logits(model, x, labels, mask)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED)


def train(tokenizer: PreTrainedTokenizerFast, run: Path, steps: int, seed: int) -> LlamaForCausalLM:
    """Trains for `steps` steps, or goes on where the run in the file `run` was cut off."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = LlamaForCausalLM._from_config(config(tokenizer), attn_implementation="eager")
    optimiser = state.optimizer(model, PEAK_RATE)
    first = state.resume(run, model, optimiser)
    order = draw_batches(tokenizer, seed, first)
    began = time.monotonic()
    for step in range(first, steps):
        batch = next(order)
        x = embed(model.model.embed_tokens.weight, batch, torch.Generator().manual_seed(seed * 1_000_003 + step))
        value = loss(model, x, batch.labels, batch.mask)
        torch.autograd.backward(value)
        state.take_step(model, optimiser, state.learning_rate(step, steps, PEAK_RATE, WARMUP))
        if (step + 1) % LOG_EVERY == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            logger.info("step %d loss %.3f, %.3f s a step", step + 1, value.item(), pace)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state.save(run, step + 1, model, optimiser)
    return model
