"""Sequences in batches: small enough for memory, or of the size that a stochastic run asks for."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ppgen.data.arrays import lengths

__all__ = ["Batches"]

STEPS_AT_ONCE = 1 << 16  # time steps whose potentials are in memory together


@final
class Batches(Sequence[Tensor]):
    """Sequences in groups small enough for memory, longest first, or of ``batch_size``; each cut to its longest.

    Groups of ``batch_size`` or fewer are as many as it takes, and as even as they can be: a last group of one sequence
    would say next to nothing of all of them.
    """

    def __init__(self, data: Tensor, batch_size: int | None) -> None:
        self.data = data
        self.lengths = lengths(data)
        if batch_size is None:
            self.groups = _by_memory(torch.argsort(-self.lengths, stable=True), self.lengths)
        else:
            self.groups = list(torch.randperm(len(data)).tensor_split(-(-len(data) // batch_size)))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if index >= len(self.groups):
            raise IndexError(index)
        group = self.groups[index]
        return self.data[group, : max(1, int(self.lengths[group].max()))]

    def turn(self, step: int) -> int:
        """Which batch comes at a step: every pass goes through all of them in a new order."""
        stream = torch.Generator().manual_seed(torch.initial_seed() % 2**31 + step // len(self))
        return int(torch.randperm(len(self), generator=stream)[step % len(self)])

    @property
    def weight(self) -> float:
        """What a sum over one of the groups is multiplied by to stand for that over all sequences.

        A pass takes every group once, so the number of groups is right whatever their sizes: the mean over a pass is
        the sum over the data.
        """
        return float(len(self.groups))


def _by_memory(order: Tensor, steps: Tensor) -> list[Tensor]:
    """Fill each batch as far as memory goes; the first of a batch is its longest."""
    groups: list[list[int]] = []
    for n in order.tolist():
        if groups and (len(groups[-1]) + 1) * int(steps[groups[-1][0]]) <= STEPS_AT_ONCE:
            groups[-1].append(n)
        else:
            groups.append([n])
    return [torch.tensor(group) for group in groups]
