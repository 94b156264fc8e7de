"""A LoRA (Hu et al. 2021, in PEFT's layout) merged into the LLM that it was trained for: what trains and serves reads one folder."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from models.config import CheckpointError
from models.weights import weight_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def merged(llm: Path, lora: Path, cache: Path) -> Path:
    """The folder of `llm` with `lora` added to its weights, in `cache`: made now if it is not there.

    Another LLM or another LoRA gives another entry; a kill leaves the whole folder or none. Raises CheckpointError where the LoRA can't be
    read or was made for another LLM.
    """
    stamp = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        if not (lora / name).is_file():
            raise CheckpointError(f"{lora}: no {name}; a LoRA is a folder in PEFT's layout")
        stamp.update((lora / name).read_bytes())
    for file in weight_files(llm):
        stat = file.stat()
        stamp.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    target = cache / "merged" / f"{llm.resolve().name}-{stamp.hexdigest()[:16]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        shutil.copytree(
            llm, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json")
        )
        _merge(llm, lora, partial)
        partial.chmod(0o755)
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was done first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _merge(llm: Path, lora: Path, target: Path) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llm, dtype="auto")
    try:
        config = PeftConfig.from_pretrained(lora)
        tuned = PeftModel.from_pretrained(model, lora, config=config)
    except (ValueError, RuntimeError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{lora}: this LoRA does not fit {llm}: {error}") from error
    tuned.merge_and_unload().save_pretrained(target)
