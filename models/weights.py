"""Reading and writing weights: safetensors or torch files, sharded or not, one tensor at a time; in 8 bits where a file is to be small."""

import filecmp
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.config import CheckpointError

SHARD_BYTES = 1 << 30
SCALE = ".int8_scale"
"""Behind the name of a tensor of int8: its scales, one for each place of its first dimension, in a tensor of their own."""
SCALE_4 = ".int4_scale"
"""Behind the name of a tensor of uint8, whose bytes hold two numbers of 4 bits: its scales, one for each GROUP of its second dimension."""
GROUP = 32  # places of the second dimension that have a scale together

Files = tuple[str, list[tuple[str, int, int]]]
"""Where a folder lies, and of each file in it or below its path, time of change and size."""


def files_in(folder: Path) -> Files:
    """What is another when a file has changed, is new or gone, or the folder is a link that leads elsewhere now."""
    found = []
    for path in sorted(folder.rglob("*")):
        with suppress(OSError):  # it has just gone
            state = path.stat()
            if S_ISREG(state.st_mode):
                found.append((str(path), state.st_mtime_ns, state.st_size))
    return str(folder.resolve()), found


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields every (name, tensor) of the weights in a folder, file by file and memory-mapped.

    Reads `*.safetensors` if there are any, else `*.bin` with `weights_only=True`; what `in_int8` made comes out in float32. Raises
    CheckpointError where a file can't be read or a tensor stands in two files; what the tensors hold is for `check_tensor` to say.
    """
    seen: set[str] = set()
    for file in weight_files(folder):
        for name, tensor in read_file(file):
            if name in seen:
                raise CheckpointError(f"{file}: tensor {name!r} stands in two files")
            seen.add(name)
            yield name, tensor


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder, in the order of their names."""
    for pattern in ("*.safetensors", "*.bin"):
        if files := sorted(f for f in folder.glob(pattern) if f.name != "training_args.bin"):
            return files
    raise CheckpointError(f"{folder}: no *.safetensors and no *.bin files")


def have_same_weights(folder: Path, other: Path) -> bool:
    """Whether the weight files of two folders are the same, or hold the same bytes; raises CheckpointError where one has none.

    Reads both through where they do, a gigabyte or two in a second; where they differ, mostly not that far.
    """
    ours, theirs = weight_files(folder), weight_files(other)
    return [file.name for file in ours] == [file.name for file in theirs] and all(
        a.samefile(b) or filecmp.cmp(a, b, shallow=False) for a, b in zip(ours, theirs, strict=True)
    )


def write_file(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Writes a safetensors file, whole or not at all, for whoever may read what else is new; safetensors makes it its owner's alone."""
    partial = file.with_name(f".{file.name}.part")
    partial.touch()
    mode = partial.stat().st_mode
    save_file(dict(tensors), partial, metadata={"format": "pt"})
    partial.chmod(mode)
    partial.replace(file)


def read_file(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yields every (name, tensor) of one file, as `read_tensors` does. Raises CheckpointError."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    tensor = tensors.get_tensor(name)
                    if tensor.dtype == torch.int8:
                        scale = tensors.get_tensor(name + SCALE).float()
                        tensor = tensor * scale.view(-1, *[1] * (tensor.dim() - 1))
                    elif tensor.dtype == torch.uint8:
                        tensor = _from_int4(tensor, tensors.get_tensor(name + SCALE_4))
                    if not name.endswith((SCALE, SCALE_4)):
                        yield name, tensor
        else:
            yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file}: can't be read as weights: {error}") from error


def in_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to be saved in a quarter of float32's bytes: matrices as int8, each row with its scale, the rest in bfloat16."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2:
            found[name] = tensor.to(torch.bfloat16)
        else:
            scale = (tensor.float().abs().flatten(1).amax(1) / 127).clamp(min=1e-12)
            found[name] = (tensor / scale.view(-1, *[1] * (tensor.dim() - 1))).round().to(torch.int8)
            found[name + SCALE] = scale
    return found


def in_int4(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to be saved in a seventh of float32's bytes: matrices whose rows are of whole groups in 4 bits, others as `in_int8` does it.

    A group's scale is, of some, the one that leaves the least squared error.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.shape[1] % GROUP:
            found |= in_int8({name: tensor})
        else:
            groups = _grouped(tensor.float())  # (rows, groups, GROUP, ...)
            inner = tuple(range(2, groups.dim()))
            largest = groups.abs().amax(inner, keepdim=True).clamp(min=1e-6) / 8
            scales = torch.stack([largest * share for share in torch.linspace(0.7, 1.3, 25)]).half().float()
            kept = scales * (groups / scales).round().clamp(-8, 7)
            errors = (kept - groups).square().sum([1 + i for i in inner], keepdim=True)
            scale = scales.gather(0, errors.argmin(0, keepdim=True))[0]
            nibbles = ((groups / scale).round().clamp(-8, 7) + 8).to(torch.uint8).view(tensor.shape)
            found[name] = nibbles[:, ::2] | nibbles[:, 1::2] << 4
            found[name + SCALE_4] = scale.flatten(1).half()
    return found


def _from_int4(packed: Tensor, scale: Tensor) -> Tensor:
    nibbles = torch.stack([packed & 15, packed >> 4], 2).flatten(1, 2)  # (rows, columns, ...)
    groups = _grouped(nibbles.float() - 8)
    return (groups * scale.float().view(*scale.shape, *[1] * (groups.dim() - 2))).view(nibbles.shape)


def _grouped(matrix: Tensor) -> Tensor:
    return matrix.reshape(len(matrix), -1, GROUP, *matrix.shape[2:])


def check_tensor(where: str, name: str, tensor: Tensor) -> None:
    """Raises CheckpointError where a weight is not floating-point or not finite."""
    if not tensor.is_floating_point():
        raise CheckpointError(f"{where}: {name!r} has dtype {tensor.dtype}; weights are float32, float16 or bfloat16")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{where}: {name!r} holds NaN or infinite values")


def load_strict(module: nn.Module, tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Copies tensors into a module, which must be `fitting` and finite. Raises CheckpointError."""
    with torch.no_grad():
        for name, parameter, tensor in fitting(module, tensors, where):
            check_tensor(where, name, tensor)
            parameter.copy_(tensor)


def fitting(
    module: nn.Module, tensors: Iterable[tuple[str, Tensor]], where: str
) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yields each tensor with the parameter of its name; every parameter must be there once, with its shape, and nothing else.

    Raises CheckpointError for a wrong shape, and at last one that names all missing and unexpected tensors.
    """
    parameters = dict(module.named_parameters())
    missing, unexpected = set(parameters), []
    for name, tensor in tensors:
        if name not in parameters:
            unexpected.append(name)
            continue
        if tensor.shape != parameters[name].shape:
            raise CheckpointError(
                f"{where}: {name!r} has shape {list(tensor.shape)}; by config.json it is {list(parameters[name].shape)}"
            )
        missing.discard(name)
        yield name, parameters[name], tensor
    if missing or unexpected:
        raise CheckpointError(f"{where}: missing tensors {sorted(missing)}, unexpected tensors {sorted(unexpected)}")


class ShardWriter:
    """Writes tensors to safetensors shards of about 1 GiB, in the layout of Hugging Face, holding one shard in memory at most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.shards: list[list[str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Takes one tensor."""
        if self.pending_bytes + tensor.nbytes > SHARD_BYTES and self.pending:
            self._flush()
        self.pending[name] = tensor.clone(memory_format=torch.contiguous_format)
        self.pending_bytes += tensor.nbytes
        self.total_bytes += tensor.nbytes

    def _flush(self) -> None:
        write_file(self.pending, self._shard(len(self.shards)))
        self.shards.append(list(self.pending))
        self.pending, self.pending_bytes = {}, 0

    def _shard(self, number: int) -> Path:
        return self.folder / f"shard-{number:05d}.safetensors"

    def close(self) -> None:
        """Writes what is left and, where there are several shards, their index."""
        self._flush()
        if len(self.shards) == 1:
            self._shard(0).rename(self.folder / "model.safetensors")
            return
        names = [f"model-{i + 1:05d}-of-{len(self.shards):05d}.safetensors" for i in range(len(self.shards))]
        for i, name in enumerate(names):
            self._shard(i).rename(self.folder / name)
        index = {
            "metadata": {"total_size": self.total_bytes},
            "weight_map": {tensor: name for name, shard in zip(names, self.shards, strict=True) for tensor in shard},
        }
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
