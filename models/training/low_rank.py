"""Training of low rank (Hu et al. 2021, "LoRA"): of each large matrix two narrow ones are learnt, whose product is added to it."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.updates import is_low_rank


class Change(nn.Module):
    """What is added to a matrix (rows, ...), at first nothing."""

    def __init__(self, matrix: Tensor, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(matrix.new_zeros(len(matrix), rank))
        # So large that a step of `up` changes the matrix about as much as a step of its own.
        self.down = nn.Parameter(torch.randn(rank, matrix[0].numel()) / rank**0.5)

    def forward(self, matrix: Tensor) -> Tensor:
        """The matrix, changed."""
        return matrix + (self.up @ self.down).view_as(matrix)


def freeze_but_changes(module: nn.Module, rank: int) -> None:
    """Has the module learn changes of `rank` to its matrices; what is small is learnt as it is."""
    for part in list(module.modules()):
        weight = getattr(part, "weight", None)
        if isinstance(weight, nn.Parameter) and is_low_rank(weight.shape, rank):
            weight.requires_grad_(False)
            parametrize.register_parametrization(part, "weight", Change(weight, rank))


def changed(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's parameters by the names that they have without changes, with these in them."""
    for name, parameter in module.named_parameters():
        owner, _, part = name.rpartition(".parametrizations.weight.")
        if not owner:
            yield name, parameter
        elif part == "original":
            weight = module.get_submodule(owner).weight
            assert isinstance(weight, Tensor)
            yield f"{owner}.weight", weight
