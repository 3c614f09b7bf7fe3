r"""Entries that look wrong: the predictive tail probability of each, given the others.

Every entry that was observed is hidden once, with others that tell little of it, and compared with draws of what it
should have been. Of rows all entries of a feature are hidden together, one of each row, so each is judged given the
rest of its row; of sequences a random twentieth, no two of one step where there are fewer features than folds. The
parameters are those of the fit, which has seen the entry: with few rows an outlier hides itself a little. Tail
probabilities are adjusted for the number of entries (false discovery rate).

References: Gelman, Meng & Stern (1996) for predictive tails; Benjamini & Hochberg (1995); Pickands (1975) for the tail
beyond the draws.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.arguments import require_at_least
from ppgen.data.parts import Inputs
from ppgen.errors import DataError
from ppgen.predictions import predictive
from ppgen.results import answers
from ppgen.results.function_rows import as_asked
from ppgen.results.reading import check_hiding, read

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["outliers"]

FOLDS = 20  # of sequences; each hides one entry in so many
FEW = 10  # draws beyond a value that are enough to count; for fewer the tail is extrapolated
TAIL = 10  # the most extreme one in so many draws are the tail
INTERVAL = (0.025, 0.975)


def outliers(
    fit: "Fit", x: object, draws: int, level: float, *, u: object, random_seed: int | None, progressbar: bool
) -> xr.Dataset:
    """See `Fit.outliers`."""
    check_hiding(fit, "outliers")
    require_at_least("outliers: draws", draws, 10 * TAIL)
    if not 0 < level < 1:
        raise DataError(f"outliers: level must lie between 0 and 1, got {level}")
    observations, data, inputs = read(fit, x, u)
    seen = ~torch.isnan(data)
    if not seen.any():
        raise DataError("outliers: x must hold an observed entry, got none")
    generator = torch.Generator().manual_seed(0 if random_seed is None else random_seed)
    found = {name: np.full(tuple(data.shape), np.nan) for name in ("expected", "low", "high", "tail")}
    folds = _folds(fit, data, generator)
    for fold in range(int(folds.max()) + 1):
        hidden = seen & (folds == fold)
        if hidden.any():
            _judge(fit, data, inputs, hidden, found, draws, random_seed, progressbar)
    adjusted = _adjusted(found["tail"])
    variables = {**found, "adjusted": adjusted, "outlier": adjusted < level}
    dims = tuple(map(str, observations.dims))
    labelled = {name: xr.DataArray(value, observations.coords, dims) for name, value in variables.items()}
    return as_asked(fit, x, xr.Dataset(labelled, attrs={"level": level, "draws": draws}))


def _folds(fit: "Fit", data: Tensor, generator: torch.Generator) -> Int[Tensor, "*shape"]:
    """The fold in which each entry is hidden."""
    last = torch.arange(data.shape[-1]).expand(data.shape)
    if not fit.model.ragged:
        return last
    offset = torch.randint(FOLDS, (*data.shape[:-1], 1), generator=generator)
    return (offset + last) % FOLDS


def _judge(
    fit: "Fit", data: Tensor, inputs: Inputs, hidden: Bool[Tensor, "*shape"], found: dict[str, np.ndarray],
    draws: int, random_seed: int | None, progressbar: bool,
) -> None:  # fmt: skip
    """Compare the hidden entries with draws, and write down what was found."""
    rest = torch.where(hidden, torch.nan, data)

    def fill(theta: predictive.Theta) -> Tensor:
        return predictive.impute(fit.model, theta, rest, u=inputs)

    drawn = answers.at_draws(
        fit, "outliers", fill, (rest, inputs), draws, random_seed, keep=hidden, progressbar=progressbar
    ).numpy()
    place = hidden.numpy()
    found["tail"][place] = _tails(drawn, data.numpy()[place])
    found["expected"][place] = np.median(drawn, 0)
    found["low"][place], found["high"][place] = np.quantile(drawn, INTERVAL, axis=0)


def _tails(drawn: Float[np.ndarray, "S n"], value: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Probability of a value as far out on either side, equal draws counted half; NaN where nothing was drawn."""
    equal = (drawn == value).mean(0) / 2
    below, above = (drawn < value).mean(0) + equal, (drawn > value).mean(0) + equal
    count = len(drawn)
    few, whole = FEW / count, (drawn == drawn.round()).all(0)
    for side, sign in ((above, 1.0), (below, -1.0)):
        beyond = (side < few) & ~whole
        side[beyond] = np.minimum(few, _extrapolated(sign * drawn[:, beyond], sign * value[beyond]))
    side = np.maximum(np.minimum(below, above), 0.5 / count * whole)
    return np.where(np.isnan(drawn).any(0), np.nan, np.minimum(1.0, 2 * side))


def _extrapolated(drawn: Float[np.ndarray, "S n"], value: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Probability above a value by a generalised Pareto tail of moments, no lighter than an exponential one."""
    if not drawn.shape[1]:
        return np.zeros(0)
    count = len(drawn) // TAIL
    ordered = np.sort(drawn, 0)
    threshold = ordered[-count - 1]
    excess = ordered[-count:] - threshold
    mean, variance = excess.mean(0), excess.var(0)
    ratio = mean**2 / np.maximum(variance, np.finfo(float).tiny)
    shape, scale = np.clip(0.5 * (1 - ratio), 1e-9, None), 0.5 * mean * (1 + ratio)
    light = ratio >= 1
    scale = np.where(light, mean, scale)
    far = np.maximum(value - threshold, 0.0) / np.maximum(scale, np.finfo(float).tiny)
    tail = np.where(light, np.exp(-far), (1 + np.where(light, 0.0, shape) * far) ** (-1 / shape))
    return count / len(drawn) * tail


def _adjusted(tail: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Smallest false discovery rate at which each entry would be called an outlier."""
    found = np.full(tail.shape, np.nan)
    judged = ~np.isnan(tail)
    values = tail[judged]
    order = np.argsort(values)[::-1]
    rank = np.arange(len(values), 0, -1)
    found[judged] = np.minimum(1.0, np.minimum.accumulate(values[order] * len(values) / rank))[np.argsort(order)]
    return found
