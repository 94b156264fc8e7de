"""The files of an adapter: its tensors, and beside them an update, what a training of low rank has changed (Hu et al. 2021, "LoRA").

An update of rank 32 has a tenth of the bytes, so an adapter can be trained further, and passed on, many times for what it weighs once.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.config import CheckpointError
from models.weights import in_int4, read_file, write_file

ADAPTER, UPDATE = "adapter.safetensors", "update.safetensors"
UP, DOWN, PLUS = ".up", ".down", ".plus"
"""Behind a tensor's name: two matrices (rows, rank) and (rank, columns), whose product is added to it; or what is added, as it is."""


def adapter_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Each (name, tensor) of a folder's adapter, updated. Raises CheckpointError."""
    if not (folder / ADAPTER).exists():
        raise CheckpointError(f"{folder}: no {ADAPTER}")
    tensors, update = read_file(folder / ADAPTER), folder / UPDATE
    return updated(tensors, dict(read_file(update)), str(update)) if update.exists() else tensors


def write_update(checkpoint: Path, trained: Path, file: Path, rank: int) -> None:
    """Writes the update that makes the adapter of the folder `trained` of that of `checkpoint`, in 4 bits. Raises CheckpointError."""
    before, after = dict(read_file(checkpoint / ADAPTER)), dict(adapter_tensors(trained))
    if _shapes(before) != _shapes(after):
        raise CheckpointError(f"{trained}: its adapter has other tensors than that of {checkpoint}")
    write_file(in_int4(difference(before, after, rank)), file)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def is_low_rank(shape: torch.Size, rank: int) -> bool:
    """Whether a change of a tensor (rows, ...), whose rows are read flat, is smaller as two matrices of `rank`."""
    rows, columns = shape[0], shape[1:].numel()
    return len(shape) > 1 and rank * (rows + columns) < rows * columns


def difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The update that makes `after` of `before`, float32; of a matrix as near to it as `rank` allows."""
    update = {}
    for name, tensor in after.items():
        change = tensor.float() - before[name].float()
        if is_low_rank(change.shape, rank):
            left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
            roots = values[:rank].sqrt()
            update[name + UP] = (left[:, :rank] * roots).contiguous()
            update[name + DOWN] = (right[:rank] * roots[:, None]).contiguous()
        else:
            update[name + PLUS] = change
    return update


def updated(
    tensors: Iterable[tuple[str, Tensor]], update: Mapping[str, Tensor], where: str
) -> Iterator[tuple[str, Tensor]]:
    """Each (name, tensor), changed by an update where that has a change for it, in float32 then.

    Raises CheckpointError for a change that does not fit its tensor, and at last for changes of what is not there.
    """
    left = dict(update)
    for name, tensor in tensors:
        change = left.pop(name + PLUS, None)
        up, down = left.pop(name + UP, None), left.pop(name + DOWN, None)
        try:
            if up is not None and down is not None:
                change = up @ down
            elif up is not None or down is not None:
                raise CheckpointError(f"{where}: half a change of {name!r}")
            yield name, tensor if change is None else tensor.float() + change.view_as(tensor)
        except RuntimeError as error:
            raise CheckpointError(f"{where}: its change of {name!r} does not fit: {error}") from error
    if left:
        raise CheckpointError(f"{where}: changes of what the adapter does not have: {sorted(left)}")
