"""The first, optional stage of the paper: instruction-tunes an LLM on a file in Alpaca's form, before it is frozen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainingArguments

from models.manifest import InputError
from models.prompt import Message, Prompt, PromptBuilder
from models.training.batches import join_tokens, reply_ids
from models.training.trainer import LengthTrainer, run

MAX_TOKENS = 384  # of an example; the rest is cut off (official code: blsp/src/text_instruction_dataset.py)


class AlpacaEntry(BaseModel):
    """One entry of an Alpaca file."""

    model_config = ConfigDict(extra="ignore")

    instruction: str
    input: str = ""
    output: str

    def question(self) -> str:
        """Instruction, with a full stop, and input (official code: data_process/prepare_alpaca.py)."""
        stop = "" if self.instruction.endswith((".", "!", "?")) else "."
        return f"{self.instruction}{stop} {self.input}".strip()


class Lesson(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def read_alpaca(file: Path) -> list[Lesson]:
    """Reads a JSON list, or JSON lines, of {"instruction", "input", "output"}; raises InputError."""
    text = file.read_text(encoding="utf-8")
    try:
        entries = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines()]
        lessons = [Lesson(e.question(), e.output) for e in TypeAdapter(list[AlpacaEntry]).validate_python(entries)]
    except (ValueError, ValidationError) as error:
        raise InputError(f"{file}: {error}") from error
    if not lessons:
        raise InputError(f"{file}: no entries")
    return lessons


def with_room(lessons: list[Lesson], prompts: PromptBuilder) -> list[Lesson]:
    """The lessons whose questions leave room for an answer; a step of others would have nothing to learn from.

    Raises InputError where none does.
    """
    fitting = [lesson for lesson in lessons if len(_question(lesson, prompts).token_ids) < MAX_TOKENS]
    if not fitting:
        raise InputError(f"every question has {MAX_TOKENS} tokens or more, and leaves no room for an answer")
    return fitting


def _question(lesson: Lesson, prompts: PromptBuilder) -> Prompt:
    return prompts.build([Message("user", [lesson.question])])


@dataclass(frozen=True)
class LessonCollator:
    """Makes batches of lessons; the prompts are those that serving builds for a user's text."""

    prompts: PromptBuilder

    def __call__(self, lessons: Sequence[Lesson]) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels (batch, length), at most MAX_TOKENS long; only answers have labels."""
        questions = [_question(lesson, self.prompts) for lesson in lessons]
        tokens = join_tokens(questions, [reply_ids(self.prompts.tokenizer, lesson.answer) for lesson in lessons])
        named = {"input_ids": tokens.ids, "attention_mask": tokens.mask, "labels": tokens.labels}
        return {name: tensor[:, :MAX_TOKENS] for name, tensor in named.items()}


def instruct(
    llm: Path, prompts: PromptBuilder, lessons: list[Lesson], args: TrainingArguments, lora_rank: int = 0
) -> None:
    """Trains all weights of the LLM into `args.output_dir`, a folder in Hugging Face's layout with the tokenizer.

    With `lora_rank` it trains a LoRA of all linear layers, and the folder is one in PEFT's layout: a checkpoint's `llm_lora`. The lessons
    are those of `with_room`. Goes on from the last checkpoint in that folder.
    """
    frozen = torch.bfloat16 if lora_rank and args.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(llm, dtype=frozen)
    if lora_rank:
        shape = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            model = get_peft_model(model, shape)
    run(
        LengthTrainer(
            [len(lesson.question) + len(lesson.answer) for lesson in lessons],
            model=model,
            args=args,
            train_dataset=lessons,
            data_collator=LessonCollator(prompts),
            processing_class=prompts.tokenizer,
        )
    )
