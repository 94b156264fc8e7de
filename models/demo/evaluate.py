"""Zero-shot evaluation: tasks that the adapter never saw, from speech, beside the same LLM reading the transcript."""

import json
import random
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.adapter import ModalityAdapter
from models.demo import heldout
from models.demo.augment import transmit
from models.demo.corpus import Shard
from models.demo.generation import generate, transcript_rows
from models.demo.prompts import prompt
from models.demo.speech import Utterance
from models.demo.tasks import QUESTIONS, answer
from models.demo.train_encoder import SpeechRecogniser
from models.demo.utterances import Utterances, encoder_lengths
from models.demo.world import Sentence, digits, spoken_words
from models.encoder import WhisperEncoder

TASKS: dict[str, tuple[str, Callable[[Sentence], str]]] = {
    "repeat": ("Please repeat the words you hear.", lambda sentence: sentence.text),
    "german": ("Please translate the following audio into German text.", lambda sentence: sentence.german),
    "spanish": ("Please translate the following audio into Spanish text.", lambda sentence: sentence.spanish),
    "intent": ("What does the speaker want?", lambda sentence: sentence.intent),
}
"""Task -> the instruction it is measured with, and the right reply."""
_BATCH = 50


def word_errors(said: str, right: str) -> int:
    """Words to insert, delete or replace to get from `said` to `right`."""
    row = list(range(len(right.split()) + 1))
    for i, word in enumerate(said.split(), 1):
        previous, row[0] = row[0], i
        for j, other in enumerate(right.split(), 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != other))
    return row[-1]


def error_rate(said: list[str], right: list[str]) -> float:
    """Word error rate over many texts."""
    return sum(map(word_errors, said, right)) / sum(len(text.split()) for text in right)


def exact(said: list[str], right: list[str]) -> float:
    """The share of replies that are right to the letter."""
    return float(np.mean([a == b for a, b in zip(said, right, strict=True)]))


@torch.inference_mode()
def encode(encoder: WhisperEncoder, shard: Shard) -> list[Tensor]:
    """Encoder states (n_i, dim) of every utterance of a shard."""
    utterances = Utterances([shard])
    lengths = encoder_lengths(shard.frames)
    states: list[Tensor] = []
    for begin in range(0, len(lengths), _BATCH):
        indices = np.arange(begin, min(begin + _BATCH, len(lengths)))
        batch = utterances.batch(indices, int(shard.frames[indices].max()))
        states += [row[:n] for row, n in zip(encoder(batch.features, batch.frames), lengths[indices], strict=True)]
    return states


@torch.inference_mode()
def speech_rows(adapter: ModalityAdapter, states: list[Tensor]) -> list[Tensor]:
    """Speech embeddings of encoder states."""
    rows: list[Tensor] = []
    for begin in range(0, len(states), _BATCH):
        part = states[begin : begin + _BATCH]
        rows += adapter(
            torch.nn.utils.rnn.pad_sequence(part, batch_first=True), torch.tensor([len(item) for item in part])
        )
    return rows


@torch.inference_mode()
def recognise(recogniser: SpeechRecogniser, states: list[Tensor]) -> list[str]:
    """The encoder's own reading by its CTC head, which is trained with it and then thrown away."""
    texts = []
    for item in states:
        best = recogniser.ctc_head(item).argmax(-1)
        kept = [int(word) for i, word in enumerate(best) if word and (i == 0 or word != best[i - 1])]
        texts.append(" ".join(spoken_words()[word - 1] for word in kept))
    return texts


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, slots: list[Tensor], sentences: list[Sentence]
) -> dict[str, float]:
    """All figures for one way of giving the sentences: word error rate of repeating, and how often each reply is exactly right."""
    figures: dict[str, float] = {}
    for task, (instruction, right) in TASKS.items():
        said, wanted = generate(model, tokenizer, prompt(tokenizer, instruction), slots), [right(s) for s in sentences]
        if task == "repeat":
            figures["repeat WER"] = error_rate(said, wanted)
        figures[task] = exact(said, wanted)
    figures["questions"] = _questions(model, tokenizer, slots, sentences)
    return figures


def _questions(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, slots: list[Tensor], sentences: list[Sentence]
) -> float:
    """The share of right answers: each sentence gets each question that it can answer, in a wording drawn for it."""
    rng, right = random.Random(0), list[bool]()
    for question, (kinds, wordings) in QUESTIONS.items():
        asked = [i for i, s in enumerate(sentences) if any(slot in kinds for slot, _ in s.slots)]
        said = (
            generate(model, tokenizer, prompt(tokenizer, rng.choice(wordings)), [slots[i] for i in asked])
            if asked
            else []
        )
        right += [reply == answer(sentences[i], question) for reply, i in zip(said, asked, strict=True)]
    return float(np.mean(right))


def table(
    encoder: WhisperEncoder,
    recogniser: SpeechRecogniser | None,
    adapter: ModalityAdapter,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    seed: int,
) -> dict[str, dict[str, float]]:
    """The figures of every group of voices, from the test sets in `folder`, and of the transcripts.

    With a `recogniser`, whose heads were trained with the encoder, also the encoder's own.
    """
    sentences = heldout.heldout_sentences(seed)
    right = [sentence.text for sentence in sentences]
    rows = {
        "transcript as text": measure(
            model, tokenizer, [transcript_rows(model, tokenizer, text) for text in right], sentences
        )
    }
    for number, group in enumerate(heldout.GROUPS):
        states = encode(encoder, Shard.load(folder / f"{number:03}.npz"))
        own = {} if recogniser is None else {"encoder WER": error_rate(recognise(recogniser, states), right)}
        rows[group] = own | measure(model, tokenizer, speech_rows(adapter, states), sentences)
    return rows


def human_digits(
    encoder: WhisperEncoder,
    recogniser: SpeechRecogniser | None,
    adapter: ModalityAdapter,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> dict[str, float]:
    """Single digits spoken by people, `{digit}_{speaker}_{n}.wav`: the share repeated rightly."""
    files = sorted(folder.glob("*.wav"))
    recordings = [transmit(_read(file), heldout.QUIET, np.random.default_rng(0)) for file in files]
    right = [digits()[int(file.name[0])] for file in files]
    states = encode(encoder, heldout.to_shard(recordings, right))
    own = {} if recogniser is None else {"human digits, encoder": exact(recognise(recogniser, states), right)}
    said = generate(model, tokenizer, prompt(tokenizer, TASKS["repeat"][0]), speech_rows(adapter, states))
    return own | {"human digits": exact(said, right)}


def _read(file: Path) -> Utterance:
    with wave.open(str(file)) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
        return Utterance(samples.astype(np.float32) / np.float32(32768), recording.getframerate(), [])


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """The table as text, shares in per cent."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        cells = [f"{100 * row[column]:.1f}" if column in row else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(rows: dict[str, dict[str, float]], file: Path) -> None:
    """Writes the figures as JSON, and as a table beside it."""
    file.write_text(json.dumps(rows, indent=2) + "\n")
    file.with_suffix(".md").write_text(markdown(rows))
