"""Density of values that were hidden, given what was seen: how good a predictive distribution is."""

from typing import TYPE_CHECKING

import torch
import xarray as xr

from ppgen.arguments import require_at_least, require_memory
from ppgen.collapsed.estimated import estimates
from ppgen.data.arrays import like
from ppgen.errors import DataError
from ppgen.predictions import predictive
from ppgen.results.answers import at_draws
from ppgen.results.reading import check_hiding, read

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["log_conditional"]


def log_conditional(
    fit: "Fit", x: object, given: object, draws: int, *, u: object, random_seed: int | None
) -> xr.DataArray:
    """See `Fit.log_conditional`."""
    check_hiding(fit, "log_conditional")
    require_at_least("log_conditional: draws", draws, 1)
    observations, whole, inputs = read(fit, x, u)
    _, seen, _ = read(fit, given, u)
    if seen.shape != whole.shape:
        raise DataError(
            f"log_conditional: given must have the shape of x, {tuple(whole.shape)}, got {tuple(seen.shape)}"
        )
    known = ~torch.isnan(seen)
    if bool((whole[known] != seen[known]).any()):
        where = tuple((known & (whole != seen)).nonzero()[0].tolist())
        raise DataError(
            f"log_conditional: given must have the values of x where it has any, got {seen[where].item():g} for "
            f"{whole[where].item():g} at {where}; hide entries of x by NaN and change nothing else"
        )
    require_memory("log_conditional", draws, len(whole), "pass fewer draws")

    def score(theta: predictive.Theta) -> torch.Tensor:
        one, other = (predictive.log_likelihood(fit.model, theta, part, u=inputs) for part in (whole, seen))
        return one - other

    with estimates() as note:
        values = at_draws(fit, "log_conditional", score, (whole, inputs), draws, random_seed)
    mean = torch.logsumexp(values, 0) - torch.tensor(float(len(values)), dtype=values.dtype).log()
    return like(observations, mean, [str(observations.dims[0])]).rename("log_conditional").assign_attrs(note.attrs)
