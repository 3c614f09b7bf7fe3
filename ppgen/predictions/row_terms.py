"""The terms of a log density that belong to one row of the data: of sites in the plate over rows."""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.data.parts import Inputs
from ppgen.model import Model
from ppgen.predictions.conditioned import observed_sites, run
from ppgen.predictions.discrete_sites import discrete
from ppgen.predictions.over_draws import Theta
from ppgen.programs.isolated import isolated
from ppgen.programs.memory import memory

__all__ = ["log_joint_rows", "plate_axis", "row_axes", "row_scores"]


def row_scores(sites: Iterable[Any], rows: int, plates: Collection[str] | None = None) -> list[Float[Tensor, " N"]]:
    """Log-probability per row, once computed, of each site in one of ``plates``, or else in a plate of that size."""
    scores = []
    for site in sites:
        axis = plate_axis(site, rows, plates)
        if axis is not None:
            score = site["log_prob"]
            score = score.expand(torch.broadcast_shapes(score.shape, (rows,) + (1,) * (-axis - 1)))
            scores.append(score.movedim(axis, 0).reshape(rows, -1).sum(-1))
    return scores


def row_axes(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> dict[str, int]:
    """Sites of a draw that lie in the plate over rows: name -> the axis of their value that numbers the rows.

    None where discrete sites are summed out, for then the density is not a sum over sites.
    """
    trace = run(model, theta, x, u)
    if discrete(model, theta, x, u, trace).plates:
        return {}
    nodes: dict[str, Any] = dict(trace.nodes)
    plates = memory(model).row_plates or None
    axes = {name: plate_axis(nodes[name], len(x), plates) for name in theta if name in nodes}
    return {
        name: axis - nodes[name]["fn"].event_dim + nodes[name]["value"].ndim
        for name, axis in axes.items()
        if axis is not None
    }


def log_joint_rows(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Float[Tensor, " N"]:
    """Log p(h, x | the rest) of each row of ``x`` and its own latents ``h``, in the units of the sites."""
    trace = run(model, theta, x, u)
    with isolated():
        trace.compute_log_prob()
    sites = [*observed_sites(trace, theta).values(), *(trace.nodes[name] for name in theta if name in trace.nodes)]
    return torch.stack(row_scores(sites, len(x), memory(model).row_plates or None)).sum(0)


def plate_axis(site: Any, rows: int, plates: Collection[str] | None = None) -> int | None:  # noqa: ANN401 (a node)
    """Axis of one of ``plates``, or else of a plate over so many rows; None for a site outside it."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    if plates is not None:
        return min((frame.dim for frame in frames if frame.name in plates), default=None)
    return min((frame.dim for frame in frames if frame.size == rows and rows > 1), default=None)
