"""Clusters whose centres are sums: every row is in one cluster of each of several partitions.

K-means for additive effects: rows are assigned to the partitions in turn, given the effects of the others, and the
effects of all are then found by least squares. Only for starting points.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

__all__ = ["additive_clusters"]

MOST_ROWS, ROUNDS = 20_000, 40  # rows that effects are learnt from; rounds of assignment
RIDGE = 1e-3  # rows that a zero effect is worth


def additive_clusters(rows: Float[Tensor, "n D"], sizes: Sequence[int], tries: int) -> Int[Tensor, "n C"]:
    """Cluster of each row in each partition, of the best of so many random starts.

    Missing entries are the mean of their feature. Partitions are assigned to one after the other, so a try costs time
    in proportion to the sum of the sizes.
    """
    filled = torch.nan_to_num(rows - torch.nan_to_num(rows.nanmean(0)))
    chosen = filled[torch.randperm(len(filled))[:MOST_ROWS]]
    found = [_settled(chosen, sizes) for _ in range(tries)]
    effects, _ = min(found, key=lambda one: one[1])
    z = torch.zeros(len(filled), len(sizes), dtype=torch.long)
    for _ in range(ROUNDS):
        before = z.clone()
        _assign(filled, z, effects)
        if z.equal(before):
            break
    return z


def _settled(rows: Tensor, sizes: Sequence[int]) -> tuple[list[Tensor], float]:
    """Effects of each partition, and the mean square that they leave, from random rows."""
    scale = rows.std() / len(sizes) ** 0.5
    effects = [scale * torch.randn(size, rows.shape[1], dtype=rows.dtype) for size in sizes]
    z, left = torch.zeros(len(rows), len(sizes), dtype=torch.long), float("inf")
    for _ in range(ROUNDS):
        _assign(rows, z, effects)
        design = torch.cat([one_hot(z[:, c], size).to(rows) for c, size in enumerate(sizes)], -1)
        gram = design.mT @ design + RIDGE * torch.eye(design.shape[1], dtype=rows.dtype)
        solved = torch.linalg.solve(gram, design.mT @ rows)
        effects, before = list(solved.split(list(sizes))), left
        left = float((rows - design @ solved).square().mean())
        if before - left < 1e-6 * before:
            break
    return effects, left


def _assign(rows: Tensor, z: Int[Tensor, "n C"], effects: Sequence[Tensor]) -> None:
    """Put every row, in each partition in turn, into the cluster that leaves least."""
    total = sum(effect[z[:, c]] for c, effect in enumerate(effects))
    for c, effect in enumerate(effects):
        without = rows - (total - effect[z[:, c]])
        distance = effect.square().sum(-1) - 2 * without @ effect.mT
        z[:, c] = distance.argmin(-1)
        total = rows - without + effect[z[:, c]]
