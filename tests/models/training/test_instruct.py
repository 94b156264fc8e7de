import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.checkpoint import Checkpoint
from models.lora import merged
from models.manifest import InputError
from models.prompt import Message, PromptBuilder
from models.training.arguments import INSTRUCT, last_checkpoint, training_arguments
from models.training.batches import IGNORED, reply_ids
from models.training.instruct import MAX_TOKENS, Lesson, LessonCollator, instruct, read_alpaca, with_room
from tests.models.training.conftest import kill_while_it_saves

CPU = ["--use_cpu", "--disable_tqdm=true", "--dataloader_pin_memory=false"]
ENTRIES: list[dict[str, Any]] = [
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


def test_questions_that_leave_no_room_are_left_out(prompts: PromptBuilder) -> None:
    def tokens(lesson: Lesson) -> int:
        return len(prompts.build([Message("user", [lesson.question])]).token_ids)

    lessons = [Lesson(("No. " * MAX_TOKENS)[:n], "It depends.") for n in range(1, 4 * MAX_TOKENS)]
    short = next(lesson for lesson in lessons if tokens(lesson) == MAX_TOKENS - 1)
    long = next(lesson for lesson in lessons if tokens(lesson) == MAX_TOKENS)
    assert with_room([long, short, long], prompts) == [short]
    labels = LessonCollator(prompts)([short, long])["labels"] != IGNORED
    assert labels.sum(1).tolist() == [1, 0]
    with pytest.raises(InputError, match="room for an answer"):
        with_room([long], prompts)


@pytest.mark.parametrize(
    ("rank", "dtypes"), [(0, {True: torch.float32}), (2, {True: torch.float32, False: torch.bfloat16})]
)
def test_only_weights_that_are_not_trained_are_rounded(
    checkpoint: Checkpoint,
    prompts: PromptBuilder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    dtypes: dict[bool, torch.dtype],
) -> None:
    trainers: list[Any] = []
    monkeypatch.setattr("models.training.instruct.run", trainers.append)
    args = training_arguments(tmp_path, [*CPU, "--bf16"], INSTRUCT)
    instruct(checkpoint.llm, prompts, [Lesson("Well?", "No.")], args, rank)
    assert {weight.requires_grad: weight.dtype for weight in trainers[0].model.parameters()} == dtypes


KILLED = """
from pathlib import Path
from tests.models.training.test_instruct import tune

tune(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def tune(llm: Path, out: Path) -> None:
    """Seven steps, with a checkpoint after each third."""
    options = ["--max_steps=7", "--save_steps=3", "--per_device_train_batch_size=1", "--gradient_accumulation_steps=2"]
    args = training_arguments(out, [*options, *CPU], INSTRUCT)
    prompts = PromptBuilder(AutoTokenizer.from_pretrained(llm), "blsp", llm_dim=0)
    instruct(llm, prompts, [Lesson(f"Say {n}.", "No. " * n) for n in range(1, 8)], args)


def test_kill_9_leaves_a_run_that_goes_on_bit_exactly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    kill_while_it_saves(KILLED, checkpoint.llm, tmp_path / "killed")
    assert last_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / "checkpoint-3")
    before = load_file(checkpoint.llm / "model.safetensors")
    for out in ("killed", "straight"):
        tune(checkpoint.llm, tmp_path / out)
    killed, straight = (load_file(tmp_path / out / "model.safetensors") for out in ("killed", "straight"))
    assert any(not torch.equal(weight, before[name]) for name, weight in straight.items())
    for name, weight in straight.items():
        assert torch.equal(killed[name], weight), name


def test_the_llm_learns_the_answers(checkpoint: Checkpoint, prompts: PromptBuilder, tmp_path: Path) -> None:
    options = ["--max_steps=30", "--learning_rate=1e-2", "--warmup_steps=0", "--gradient_accumulation_steps=1"]
    options += [*CPU, "--per_device_train_batch_size=3"]
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


def test_a_lora_learns_the_answers_and_is_merged(
    checkpoint: Checkpoint, prompts: PromptBuilder, tmp_path: Path
) -> None:
    options = ["--max_steps=60", "--learning_rate=3e-2", "--warmup_steps=0", "--gradient_accumulation_steps=1"]
    options += [*CPU, "--per_device_train_batch_size=3", "--bf16=false"]
    lora = tmp_path / "lora"
    lessons = [Lesson(entry["instruction"], entry["output"]) for entry in ENTRIES]
    instruct(checkpoint.llm, prompts, lessons, training_arguments(lora, options, INSTRUCT), lora_rank=4)
    assert not list(lora.glob("model*.safetensors"))  # the LLM's own weights are not written again
    tuned = merged(checkpoint.llm, lora, tmp_path / "cache")
    llm, tokenizer = AutoModelForCausalLM.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned)
    ids = prompts.build([Message("user", ["Tell me a story."])]).token_ids
    reply = llm.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=40, do_sample=False
    )
    assert tokenizer.decode(reply[0, len(ids) :], skip_special_tokens=True).strip() == ENTRIES[1]["output"]
