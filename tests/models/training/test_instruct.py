import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.checkpoint import Checkpoint
from models.prompt import Message, PromptBuilder
from models.training import InputError
from models.training.arguments import INSTRUCT, training_arguments
from models.training.batches import IGNORED, reply_ids
from models.training.instruct import MAX_TOKENS, Lesson, LessonCollator, instruct, read_alpaca

ENTRIES = [
    {"instruction": "Say it again", "input": "No.", "output": "No."},
    {"instruction": "Tell me a story.", "input": "", "output": "Once upon a time there was a king.", "id": 7},
    {"instruction": "Well?", "output": "It depends!"},
]


def test_alpaca_files(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(ENTRIES))
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    lessons = read_alpaca(tmp_path / "list.json")
    assert [lesson.question for lesson in lessons] == ["Say it again. No.", "Tell me a story.", "Well?"]
    assert read_alpaca(tmp_path / "lines.jsonl") == lessons


@pytest.mark.parametrize("text", ["", "[]", "{", '[{"instruction": "a"}]'])
def test_wrong_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(InputError, match=r"data\.json"):
        read_alpaca(tmp_path / "data.json")


def test_only_answers_are_learnt(prompts: PromptBuilder) -> None:
    batch = LessonCollator(prompts)([Lesson("Well?", "No."), Lesson("Tell me a story.", "Once. " * 400)])
    prompt = prompts.build([Message("user", ["Well?"])]).token_ids
    answer = reply_ids(prompts.tokenizer, "No.")
    n = len(prompt) + len(answer)
    assert batch["input_ids"][0, :n].tolist() == prompt + answer
    assert batch["labels"][0][batch["labels"][0] != IGNORED].tolist() == answer
    assert batch["attention_mask"].sum(1).tolist() == [n, MAX_TOKENS]


def test_the_llm_learns_the_answers(checkpoint: Checkpoint, prompts: PromptBuilder, tmp_path: Path) -> None:
    options = ["--max_steps=30", "--learning_rate=1e-2", "--warmup_steps=0", "--gradient_accumulation_steps=1"]
    options += ["--use_cpu", "--disable_tqdm=true", "--dataloader_pin_memory=false", "--per_device_train_batch_size=3"]
    (tmp_path / "data.json").write_text(json.dumps(ENTRIES))
    out = tmp_path / "out"
    lessons = read_alpaca(tmp_path / "data.json")
    instruct(checkpoint.llm, prompts, lessons, training_arguments(out, options, INSTRUCT))
    llm, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = prompts.build([Message("user", ["Tell me a story."])]).token_ids
    reply = llm.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=40, do_sample=False
    )
    assert tokenizer.decode(reply[0, len(ids) :], skip_special_tokens=True).strip() == ENTRIES[1]["output"]
    assert (out / "loss.png").exists()
