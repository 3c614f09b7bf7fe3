"""Draws of groups of members, numbered alike: whole groups may change places, and members within each."""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["grouped_alike"]

SWEEPS = 10  # renumberings of all draws towards their mean, at most
FLOOR = 1e-3  # least standard deviation of a number around its place's mean, in those of all draws and places


def grouped_alike(
    members: Float[Tensor, "n G M F"], groups: Float[Tensor, "n G R"]
) -> tuple[Int[Tensor, "n G"], Int[Tensor, "n G M"]]:
    """Number groups and members of every draw so that each is near the same one of the others' draws.

    Parameters
    ----------
    members : numbers of each member, by which draws are compared, in standard deviations of a draw from its mean.
    groups : numbers of each group, alike.

    Returns
    -------
    The group of the draw that takes each place, and the member of that group that takes each place in it.
    """
    n, G, M, _ = members.shape
    first = torch.arange(G).expand(n, G), torch.arange(M).expand(n, G, M)
    order, centre = first, (members[:1], groups[:1])
    widest = _spread(members), _spread(groups)
    scale = widest
    for _ in range(SWEEPS):
        within = _apart(members / scale[0], centre[0][0] / scale[0])
        between = _group_costs(groups / scale[1], centre[1][0] / scale[1])
        before, order = order, _assigned(within, between)
        if all(torch.equal(a, b) for a, b in zip(before, order, strict=True)):
            break
        moved = _moved(members, groups, order)
        centre = moved[0].mean(0, keepdim=True), moved[1].mean(0, keepdim=True)
        apart = _spread(moved[0] - centre[0]), _spread(moved[1] - centre[1])
        scale = torch.maximum(apart[0], FLOOR * widest[0]), torch.maximum(apart[1], FLOOR * widest[1])
    return order


def _apart(members: Float[Tensor, "n G M F"], centre: Float[Tensor, "G M F"]) -> Float[Tensor, "n G G M M"]:
    """Squared distance of place [to, i] from member [source, j] of each draw."""
    G, M = centre.shape[:2]
    far = torch.cdist(centre.flatten(0, 1).expand(len(members), -1, -1), members.flatten(1, 2)).square()
    return far.reshape(-1, G, M, G, M).transpose(2, 3)


def _group_costs(groups: Float[Tensor, "n G R"], centre: Float[Tensor, "G R"]) -> Float[Tensor, "n G G"]:
    return torch.cdist(centre.expand(len(groups), -1, -1), groups).square()


def _assigned(
    within: Float[Tensor, "n G G M M"], between: Float[Tensor, "n G G"]
) -> tuple[Int[Tensor, "n G"], Int[Tensor, "n G M"]]:
    """The cheapest numbering of each draw: members for each pair of groups, then groups."""
    n, G, _, M, _ = within.shape
    best = torch.stack([torch.as_tensor(linear_sum_assignment(pair)[1]) for pair in within.reshape(-1, M, M).numpy()])
    best = best.reshape(n, G, G, M)
    cost = between + within.gather(-1, best[..., None])[..., 0].sum(-1)
    chosen = torch.stack([torch.as_tensor(linear_sum_assignment(draw)[1]) for draw in cost.numpy()])
    return chosen, best.gather(2, chosen[:, :, None, None].expand(-1, -1, 1, M))[:, :, 0]


def _moved(members: Tensor, groups: Tensor, order: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    chosen, inside = order
    row = torch.arange(len(members))[:, None]
    return members[row[..., None], chosen[..., None], inside], groups[row, chosen]


def _spread(value: Float[Tensor, "*B F"]) -> Float[Tensor, " F"]:
    return value.flatten(0, -2).std(0, correction=0).clamp_min(1e-12)
