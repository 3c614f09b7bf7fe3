"""Rows of data and inputs in batches: small enough for memory, or of the size that a stochastic run asks for."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from ppgen.data.arrays import lengths
from ppgen.data.parts import Inputs, each
from ppgen.emissions.emission import pattern_order

__all__ = ["Batches"]

STEPS_AT_ONCE = 1 << 16  # time steps whose potentials are in memory together
ROWS_AT_ONCE = 1 << 13  # rows of a table: with some tens of components all of a step stays in the cache


@final
class Batches(Sequence[tuple[Tensor, Inputs]]):
    """Rows of data and their inputs, in groups small enough for memory, or of ``batch_size``.

    Groups for memory take ``ragged`` rows longest first, and other rows in the order of what they miss, because rows
    that miss the same share their factorisations.

    ``ragged`` rows end where nothing more is observed along their second axis: each group is cut to its longest, with
    its inputs where these have that axis too. Groups of ``batch_size`` or fewer are as many as it takes, and as even as
    they can be: a last group of one row would say next to nothing of all of them.
    """

    def __init__(self, data: Tensor, inputs: Inputs, batch_size: int | None, *, ragged: bool) -> None:
        self.data, self.inputs = data, inputs
        steps = lengths(data) if ragged else None
        self.lengths = steps
        self.steps = data.shape[1] if ragged else None
        if batch_size is not None:
            self.groups = list(torch.randperm(len(data)).tensor_split(-(-len(data) // batch_size)))
        elif steps is None:
            self.groups = list(_by_pattern(data).split(ROWS_AT_ONCE))
        else:
            self.groups = _by_memory(torch.argsort(-steps, stable=True), steps)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> tuple[Tensor, Inputs]:  # type: ignore[override]
        if index >= len(self.groups):
            raise IndexError(index)
        group = self.groups[index]
        x, u = self.data[group], each(self.inputs, lambda part: part[group])
        if self.lengths is None:
            return x, u
        longest = max(1, int(self.lengths[group].max()))
        steps = self.steps
        return x[:, :longest], each(u, lambda p: p[:, :longest] if p.ndim == 3 and p.shape[1] == steps else p)

    def turn(self, step: int) -> int:
        """The batch of a step: every pass goes through all of them in a new order."""
        stream = torch.Generator().manual_seed(torch.initial_seed() % 2**31 + step // len(self))
        return int(torch.randperm(len(self), generator=stream)[step % len(self)])

    @property
    def weight(self) -> float:
        """The factor by which a sum over one of the groups stands for that over all rows.

        A pass takes every group once, so the number of groups is right whatever their sizes: the mean over a pass is
        the sum over the data.
        """
        return float(len(self.groups))


def _by_pattern(data: Tensor) -> Tensor:
    """An order of the rows in which those that miss the same entries are neighbours; as they are where none are."""
    missing = torch.isnan(data)
    if not missing.any():
        return torch.arange(len(data))
    return torch.from_numpy(pattern_order(missing.flatten(1).cpu().numpy()))


def _by_memory(order: Tensor, steps: Tensor) -> list[Tensor]:
    """Fill each batch as far as memory goes; the first of a batch is its longest."""
    groups: list[list[int]] = []
    for n in order.tolist():
        if groups and (len(groups[-1]) + 1) * int(steps[groups[-1][0]]) <= STEPS_AT_ONCE:
            groups[-1].append(n)
        else:
            groups.append([n])
    return [torch.tensor(group) for group in groups]
