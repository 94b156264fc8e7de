"""What the LLM says after each training sentence: the only thing that the adapter learns from."""

import json
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from models.demo.generation import generate, transcript_rows
from models.demo.prompts import prompt
from models.demo.tasks import FUNCTION_WORDS

INSTRUCTION = "Continue the following text in a coherent and engaging style with less than 40 words."
TOP_P = 0.95
_CHUNK = 2000


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str], file: Path, seed: int) -> None:
    """Samples a continuation for each of `texts` into JSON lines; goes on after the last whole chunk in the file if it is there."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("\n")]  # a kill can leave half a line
    done = len(whole) // _CHUNK * _CHUNK
    file.write_text("".join(whole[:done]))
    for begin in range(done, len(texts), _CHUNK):
        torch.manual_seed(seed + begin)
        chunk = texts[begin : begin + _CHUNK]
        slots = [transcript_rows(model, tokenizer, text) for text in chunk]
        replies = generate(model, tokenizer, prompt(tokenizer, INSTRUCTION), slots, TOP_P)
        with file.open("a") as out:
            out.writelines(
                json.dumps({"text": t, "continuation": c}) + "\n" for t, c in zip(chunk, replies, strict=True)
            )


def read(file: Path) -> dict[str, str]:
    """Continuation of each text; empty ones are left out."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["text"]: row["continuation"] for row in rows if row["continuation"]}


def restated_share(text: str, continuation: str) -> float:
    """The share of the content words of `text` that come back in its continuation."""
    content = [word for word in text.split() if word not in FUNCTION_WORDS]
    said = set(continuation.split())
    return sum(word in said for word in content) / max(1, len(content))


def restates(text: str, continuation: str) -> bool:
    """Whether any word of `text` comes back, function words included."""
    return not set(text.split()).isdisjoint(continuation.split())


def summary(continued: dict[str, str]) -> dict[str, float]:
    """Of how the continuations relate to their sentences: the shares that bring back all content words, none, or some, and the mean."""
    shares = [restated_share(text, continuation) for text, continuation in continued.items()]
    count = max(1, len(shares))
    return {
        "all restated": sum(share == 1 for share in shares) / count,
        "none restated": sum(share == 0 for share in shares) / count,
        "some restated": sum(0 < share < 1 for share in shares) / count,
        "mean share": sum(shares) / count,
    }
