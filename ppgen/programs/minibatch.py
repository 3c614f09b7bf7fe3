"""A check that a program knows how many rows stand behind a minibatch; else its posterior is that of the minibatch."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.data.parts import Inputs, each
from ppgen.errors import DataError
from ppgen.programs.scores import check_sites

__all__ = ["check_minibatch"]


def check_minibatch(program: Callable[..., Any], x: Tensor, u: Inputs, size: int) -> None:
    """Refuse a program whose sites of ``size`` rows do not count for all rows of ``x``.

    Sites of the rows are those whose shape changes with their number. Rows that hold NaN are among those tried.

    Raises
    ------
    DataError : names a site that counts for its own rows only, and the line to write.
    """
    rows = torch.argsort(~torch.isnan(x).reshape(len(x), -1).any(1), stable=True)[: max(size, 2)]
    if len(rows) < 2 or size == len(x):
        return
    few, total = len(rows), 2 * len(x)
    trace = _trace(program, x[rows], _of(u, rows), total)
    check_sites("svi", trace)
    alone = _trace(program, x[rows], _of(u, rows), few)
    fewer = _trace(program, x[rows[:-1]], _of(u, rows[:-1]), total)
    for name, site in trace.items():
        if name not in alone or name not in fewer or _shape(site) == _shape(fewer[name]):
            continue
        if not torch.allclose(_scale(site) * few, _scale(alone[name]) * total):
            plates = [frame.name for frame in site["cond_indep_stack"] if frame.vectorized]
            raise DataError(
                f"svi: site {name!r} must count for all {len(x)} rows behind a minibatch of {size}, got it for the "
                f"{size} alone; write its plate as `with pyro.plate({(plates or ['row'])[-1]!r}, total or len(x), "
                "subsample_size=len(x)):`, total being an argument of the model, or use batch_size=None"
            )


def _trace(program: Callable[..., Any], x: Tensor, u: Inputs, total: int) -> Mapping[str, Any]:
    with torch.no_grad():
        nodes: dict[str, Any] = dict(poutine.trace(program).get_trace(x, u=u, total=total).nodes)
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
        and isinstance(site["value"], Tensor)
    }


def _shape(site: Mapping[str, Any]) -> tuple[torch.Size, torch.Size]:
    return site["fn"].shape(), site["value"].shape


def _scale(site: Mapping[str, Any]) -> Tensor:
    return torch.as_tensor(site["scale"], dtype=torch.float64)


def _of(u: Inputs, rows: Tensor) -> Inputs:
    return each(u, lambda part: part[rows])
