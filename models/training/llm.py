"""The LLM that writes continuations, or that is instruction-tuned before anything else."""

from pathlib import Path

from transformers import AutoTokenizer, PretrainedConfig

from models.checkpoint import fetch, open_checkpoint
from models.config import PromptFormat
from models.prompt import PromptBuilder


def open_llm(name: str, cache: Path, prompt_format: PromptFormat | None) -> tuple[Path, PromptBuilder]:
    """The LLM of a BLSP checkpoint, or an LLM itself, and the builder of its prompts; both take folders and Hugging Face ids.

    By default a checkpoint says how it is prompted; an LLM is prompted with its chat template, if it has one, else in the paper's format.
    Raises CheckpointError or OSError where there is no such model.
    """
    llm = fetch(name, None, Path(), cache)
    config, _ = PretrainedConfig.get_config_dict(llm)
    if config.get("model_type") == "blsp" or "llama_config" in config:
        checkpoint = open_checkpoint(name, cache)
        llm, prompt_format = checkpoint.llm_alone(), prompt_format or checkpoint.config.prompt_format
    tokenizer = AutoTokenizer.from_pretrained(llm)
    default: PromptFormat = "chat-template" if tokenizer.chat_template else "blsp"
    return llm, PromptBuilder(tokenizer, prompt_format or default, llm_dim=0)
