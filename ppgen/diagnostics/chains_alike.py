"""Draws of several chains of states, numbered alike: the states of each chain, and chains of one number of states."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["exchanged_alike"]

SWEEPS = 5  # renumberings of all draws towards their mean, at most


def exchanged_alike(theta: Mapping[str, Tensor], chains: Mapping[str, int], effects: str) -> Mapping[str, Tensor]:
    """Renumber draws {site: (C, S, ...)} so that the effects of all states are near those of the others' draws.

    The site ``effects`` has a column for each state of each chain in turn, and a last one for the level; a chain's
    sites are ``initial_<chain>`` and ``transition_<chain>``. Only differences between the states of a chain are
    compared.
    """
    shape = theta[effects].shape[:2]
    columns = theta[effects].flatten(0, 1).flatten(1, -2)[..., :-1]
    own = [part - part.mean(-1, keepdim=True) for part in columns.split(list(chains.values()), -1)]
    names, sizes = list(chains), list(chains.values())
    orders = _orders(own, sizes)
    moved = {effects: _columns(theta[effects].flatten(0, 1), orders, sizes).unflatten(0, shape)}
    flat = {site: value.flatten(0, 1) for site, value in theta.items()}
    for kind in ("initial", "transition"):
        for site in (f"{kind}_{name}" for name in names):
            moved[site] = torch.empty_like(flat[site])
    for n, order in enumerate(orders):
        for to, (source, states) in enumerate(order):
            moved[f"initial_{names[to]}"][n] = flat[f"initial_{names[source]}"][n][states]
            moved[f"transition_{names[to]}"][n] = flat[f"transition_{names[source]}"][n][states][:, states]
    for name in names:
        for kind in ("initial", "transition"):
            moved[f"{kind}_{name}"] = moved[f"{kind}_{name}"].unflatten(0, shape)
    return {**theta, **moved}


Order = list[tuple[int, Tensor]]
"""For each chain, the chain of the draw that takes its place, and the order of its states."""


def _orders(own: list[Float[Tensor, "n D K"]], sizes: list[int]) -> list[Order]:
    centre = [part[0] for part in own]
    for _ in range(SWEEPS):
        orders = [_order([part[n] for part in own], centre, sizes) for n in range(len(own[0]))]
        before = centre
        centre = [
            torch.stack([own[order[to][0]][n][:, order[to][1]] for n, order in enumerate(orders)]).mean(0)
            for to in range(len(sizes))
        ]
        if all(torch.allclose(a, b) for a, b in zip(before, centre, strict=True)):
            break
    return orders


def _order(own: list[Tensor], centre: list[Tensor], sizes: list[int]) -> Order:
    """The assignment of chains, and of states within them, that brings a draw nearest to the centre."""
    found: dict[tuple[int, int], tuple[float, Tensor]] = {}
    cost = torch.full((len(sizes), len(sizes)), 1e12, dtype=torch.float64)
    for to, size in enumerate(sizes):
        for source in (c for c, other in enumerate(sizes) if other == size):
            apart = (centre[to][:, :, None] - own[source][:, None, :]).square().sum(0)
            rows, states = linear_sum_assignment(apart.numpy())
            cost[to, source] = float(apart[rows, states].sum())
            found[to, source] = float(cost[to, source]), torch.as_tensor(states)
    return [(int(c), found[to, int(c)][1]) for to, c in enumerate(linear_sum_assignment(cost.numpy())[1])]


def _columns(value: Tensor, orders: list[Order], sizes: list[int]) -> Tensor:
    begin = [sum(sizes[:c]) for c in range(len(sizes))]
    index = torch.stack(
        [torch.cat([*(begin[c] + states for c, states in order), torch.tensor([sum(sizes)])]) for order in orders]
    )
    return value.gather(-1, index.reshape(len(value), *[1] * (value.ndim - 2), -1).expand(value.shape))
