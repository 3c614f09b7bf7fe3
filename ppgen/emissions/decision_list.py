"""An order of states in which each can be told from those behind it by what came before: a list of decisions."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

__all__ = ["decision_list"]

STEPS, RIDGE = 10, 0.25  # of Newton's method; precision of the weights
FEWEST = 2  # states that a decision is between


def decision_list(h: Sequence[Float[Tensor, "N T L"]], z: Sequence[Int[Tensor, "N T"]], states: int) -> list[int]:
    """Numbers of the states, first the one whose arrivals ``h`` tells best beyond what the state before says.

    Each choice compares logistic regressions of one state against those that are left (Linderman et al. 2017, §4).
    Steps of which ``h`` is NaN are left out.
    """
    origin = torch.cat([one_hot(own[:, :-1], states).flatten(0, 1) for own in z])
    known = torch.cat([origin.double(), torch.cat([own[:, :-1].flatten(0, 1) for own in h])], -1)
    target = torch.cat([own[:, 1:].flatten() for own in z])
    there = ~known.isnan().any(-1) & torch.cat([~own[:, 1:].isnan().any(-1).flatten() for own in h])
    known, target, order, left = known[there], target[there], [], list(range(states))
    while len(left) >= FEWEST:
        rows = torch.isin(target, torch.tensor(left))
        gains = [_gain(known[rows], target[rows] == state, states) for state in left]
        order.append(left.pop(int(torch.stack(gains).argmax())))
    return order + left


def _gain(known: Float[Tensor, "M R"], arrives: Tensor, states: int) -> Tensor:
    """How much more likely arrivals are with all that is known than with the state before alone."""
    return _fit(known, arrives.double()) - _fit(known[:, :states], arrives.double())


def _fit(known: Float[Tensor, "M R"], arrives: Float[Tensor, " M"]) -> Tensor:
    """Log likelihood and log prior at the best weights, by Newton's method."""
    weights, ridge = known.new_zeros(known.shape[1]), RIDGE * torch.eye(known.shape[1], dtype=known.dtype)
    for _ in range(STEPS):
        p = (known @ weights).sigmoid()
        curvature = (known * (p * (1 - p))[:, None]).mT @ known + ridge
        weights = weights + torch.linalg.solve(curvature, known.mT @ (arrives - p) - RIDGE * weights)
    odds = known @ weights
    return logsigmoid(torch.where(arrives > 0, odds, -odds)).sum() - RIDGE / 2 * weights.square().sum()
