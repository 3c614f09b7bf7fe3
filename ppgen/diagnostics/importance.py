r"""Is a variational posterior q the exact one? Its own draws, reweighted by :math:`p(\theta, x) / q(\theta)`, say so.

The Pareto shape :math:`\hat k` of the ratios (Yao et al. 2018) sees a q that is too narrow. One that is too wide has
bounded ratios and the best of shapes; it is seen by what reweighting does to the mean and to the width of each entry.
Entries are compared as normal scores of their ranks under q, which neither units nor tails can disturb: there q has
mean 0 and width 1, and what the reweighted draws have instead is the posterior's, in widths of q. A normal laid over
two modes has the right mean and width, and the wrong shape: it is seen by the posterior's probability of lying below
each decile of q.

The error of all three is that of a ratio of weighted means (the delta method), which vanishes as the weights become
equal. A move must be larger than all the entries together reach by chance in one fit of a thousand, and than what
matters.

The shape of weights that are all but equal says nothing, for it is that of their differences, however small.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri
from scipy.stats import norm, rankdata

from ppgen.diagnostics.convergence import NUMBERS_AT_ONCE
from ppgen.diagnostics.verdict import Check

__all__ = ["check_importance", "check_moments", "check_rows"]

Array = np.ndarray

SHAPE = 0.7
SHIFT, WIDTH, MOVED = 0.1, 0.1, 0.05  # moves that matter: in widths of the posterior, as a share of it, in probability
DECILES = np.arange(1, 10) / 10
FALSE_ALARMS = 1e-3  # of a fit with as many entries as it has
BAD_ROWS = 0.1  # share of rows whose own values q may fail
LEAST_SIZE = 100  # effective draws that know a mean to a tenth of a width, and a width to a fourteenth
FEWEST = 25  # draws that have a shape
EQUAL = 0.95  # share of effective draws from which the weights are all but equal
MARGIN = 2.0  # standard errors by which a move must exceed what matters

NO_STAND_IN = (
    "the variational posterior of the parameters is no stand-in for the exact one: do not quote its intervals of "
    "single parameters, judge predictions on held-out data, or run mcmc"
)
FIT_AGAIN = "more steps, a guide with correlations, or mcmc"


class Moves(NamedTuple):
    """Changes of each entry (P,) by reweighting: of its mean in widths of the posterior, of the log width of q over it.

    ``bend`` is the posterior's probability of lying below the decile of q where the two differ most, less q's own, and
    ``bend_error``, ``shift_error`` and ``stretch_error`` are standard errors; ``influence`` is what each draw adds to
    the sum of all stretches.
    """

    shift: Float[Array, " P"]
    shift_error: Float[Array, " P"]
    stretch: Float[Array, " P"]
    stretch_error: Float[Array, " P"]
    bend: Float[Array, " P"]
    bend_error: Float[Array, " P"]
    influence: Float[Array, " S"]


def check_importance(log_ratio: Float[Array, " S"]) -> Iterator[Check]:
    """Pareto shape k-hat of ``log p(theta, x) - log q(theta)`` at draws from q: whether q can stand in for p.

    Where the model gives a bound of its evidence, so is this p.
    """
    weight, shape = smoothed(np.asarray(log_ratio, dtype=float)[None])
    limit, value = largest_shape(weight.size), float(shape[0])
    good = bool(fit_to_reweight(weight, shape)[0])
    equal = ", or weights all but equal" if good and value >= limit else ""
    yield Check("Pareto k-hat", value, f"< {limit:.2f}{equal}", good, NO_STAND_IN)


def check_moments(draws: Mapping[str, Float[Array, "S *event"]], log_ratio: Float[Array, " S"]) -> Iterator[Check]:
    """Mean, width and shape of every site, its worst entry, beside those of the same draws reweighted.

    Only where `check_importance` passes are the weights fit for this.
    """
    log_weight = smoothed(np.asarray(log_ratio, dtype=float)[None])[0]
    weight, size = np.exp(log_weight[0]), float(effective_size(log_weight)[0])
    yield Check(
        "effective size of the reweighted draws",
        size,
        f">= {LEAST_SIZE}",
        size >= LEAST_SIZE,
        "too few to see whether means and widths are right: give diagnose more draws (svi: fit with more), or a closer "
        "guide",
    )
    entries = {site: entry for site, value in draws.items() if len(entry := _entries(value))}
    count = sum(map(len, entries.values()))
    limit = chance_limit((2 + len(DECILES)) * count + 1)
    stretch, influence = 0.0, np.zeros(weight.size)
    for site, entry in entries.items():
        if (np.ptp(entry, -1) == 0).any():
            yield Check(f"width of {site}", 0.0, "> 0", False, "every draw is the same: a point has no width")
            continue
        found = _moved(entry, weight)
        yield from _site_checks(site, found, limit)
        stretch, influence = stretch + float(found.stretch.sum()), influence + found.influence
    if count > 1:
        error = float(influence.std()) / count / math.sqrt(weight.size)
        yield _width_check("all sites", np.array([stretch / count]), np.array([error]), limit)


def check_rows(draws: Mapping[str, Float[Array, "S N *event"]], log_ratio: Float[Array, "S N"]) -> Iterator[Check]:
    """Check values that each row has for itself: k-hat of each row, and how far reweighting moves them in most rows.

    Parameters
    ----------
    draws : draws of sites with a value per row.
    log_ratio : log p(h, x | the rest) - log q(h) of each row.
    """
    log_weight, shape = smoothed(np.asarray(log_ratio, dtype=float).T)
    good = fit_to_reweight(log_weight, shape)
    rows, bad, limit = len(good), int((~good).sum()), largest_shape(log_weight.shape[1])
    most = int(BAD_ROWS * rows)
    middle, high = np.quantile(np.nan_to_num(shape, nan=np.inf, neginf=-1.0), [0.5, 0.9], method="lower")
    yield Check(
        "Pareto k-hat of rows",
        bad,
        f"of {rows:,} rows have {limit:.2f} or more (wanted {most:,} at most; median {middle:.2f}, 90 % {high:.2f})",
        bad <= most,
        "the guide is no stand-in for the posterior of the values of these rows: do not quote their intervals, or give "
        "it a richer encoder",
    )
    for site, value in draws.items():
        if good.any():
            yield from _most_rows(site, np.asarray(value, dtype=float)[:, good], np.exp(log_weight[good]))


def _most_rows(site: str, value: Float[Array, "S N *event"], weight: Float[Array, "N S"]) -> Iterator[Check]:
    """Median over rows of how far reweighting moves the values."""
    size = value[0, 0].size
    entry = np.moveaxis(value.reshape(*value.shape[:2], -1), 0, -1).reshape(-1, len(value))
    rows = max(1, NUMBERS_AT_ONCE // len(value) // size)
    parts = [
        moves(entry[first * size : (first + rows) * size], np.repeat(weight[first : first + rows], size, axis=0))
        for first in range(0, len(weight), rows)
    ]
    shift, noise, stretch = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 2))
    moved, most = float(np.median(np.abs(shift))), SHIFT + float(np.median(noise))
    yield Check(
        f"mean of {site}",
        moved,
        f"<= {most:.2g} sd from that of the reweighted draws in most rows",
        moved <= most,
        f"in half of the rows the posterior's mean is {moved:.2g} sd or more from that of q: more steps, or a richer "
        "encoder",
    )
    middle = np.array([np.median(stretch)])
    error = np.array([1.25 * stretch.std() / math.sqrt(len(weight))])
    yield _width_check(site, middle, error, chance_limit(1), " in most rows")


def fit_to_reweight(log_weight: Float[Array, "R S"], shape: Float[Array, " R"]) -> Bool[Array, " R"]:
    """Tell whether k-hat is small enough to rely on the weights, or they are all but equal."""
    size = log_weight.shape[-1]
    return (shape < largest_shape(size)) | (~np.isnan(shape) & (effective_size(log_weight) >= EQUAL * size))


def effective_size(log_weight: Float[Array, "R S"]) -> Float[Array, " R"]:
    """Count the draws of equal weight that are worth as much as these, whose weights sum to one."""
    return 1 / np.exp(2 * log_weight).sum(-1)


def largest_shape(draws: int) -> float:
    """Largest k-hat with which so many draws may be reweighted (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(draws), SHAPE) if draws > 10 else 0.0


def smoothed(log_ratio: Float[Array, "R S"]) -> tuple[Float[Array, "R S"], Float[Array, " R"]]:
    """Log weights that sum to one, their largest smoothed, and k-hat.

    NaN ratios make k-hat NaN, ratios all alike (q is exact) make it minus infinity.
    """
    from arviz_stats.base import array_stats

    size = log_ratio.shape[-1]
    known = np.isfinite(log_ratio).all(-1) & (size >= FEWEST)
    alike = known & (np.ptp(log_ratio, -1) < 1e-8 * np.maximum(1.0, np.abs(log_ratio).max(-1)))
    weight, shape = np.full(log_ratio.shape, -math.log(size)), np.where(alike, -np.inf, np.nan)
    rest = known & ~alike
    if rest.any():
        # arviz smooths the importance weights of leave-one-out, which are those of minus its argument.
        weight[rest], shape[rest] = array_stats.psislw(-log_ratio[rest], axis=-1)
    return weight, shape


def chance_limit(tests: int) -> float:
    """Standard errors that the largest of so many tests exceeds by chance in one fit of a thousand."""
    return float(norm.isf(FALSE_ALARMS / max(1, tests) / 2))


def moves(entry: Float[Array, "P S"], weight: Float[Array, "... S"]) -> Moves:
    """Changes of each entry by reweighting with weights that sum to one."""
    score = _scores(entry)
    w, S = weight * score.shape[-1], score.shape[-1]
    square = score**2 / (score**2).mean(-1, keepdims=True)
    mean = (w * score).mean(-1, keepdims=True)
    variance = (w * (score - mean) ** 2).mean(-1, keepdims=True)
    width = np.sqrt(variance)
    shift = (w * (score - mean) - score) / width
    stretch = (square - 1 - w * ((score - mean) ** 2 / variance - 1)) / 2
    own = (score**2).mean(-1)
    bend, bend_error = _bend(score, w)
    return Moves(
        mean[:, 0] / width[:, 0],
        shift.std(-1) / math.sqrt(S),
        np.log(own / variance[:, 0]) / 2,
        stretch.std(-1) / math.sqrt(S),
        bend,
        bend_error,
        stretch.sum(0),
    )


def _bend(score: Float[Array, "P S"], w: Float[Array, "... S"]) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """At the decile of q where the posterior's probability of lying below differs most: by how much, and its error."""
    found = []
    for edge in ndtri(DECILES):
        below = score <= edge
        share, own = (w * below).mean(-1), below.mean(-1)
        influence = w * (below - share[:, None]) - (below - own[:, None])
        found.append((share - own, influence.std(-1) / math.sqrt(score.shape[-1])))
    move, error = np.array(found).transpose(1, 0, 2)
    worst = np.abs(move).argmax(0)[None]
    return np.take_along_axis(move, worst, 0)[0], np.take_along_axis(error, worst, 0)[0]


def _moved(entry: Float[Array, "P S"], weight: Float[Array, " S"]) -> Moves:
    """The same in parts of bounded memory."""
    rows = max(1, NUMBERS_AT_ONCE // max(1, weight.size))
    parts = [moves(entry[first : first + rows], weight) for first in range(0, len(entry), rows)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Moves._fields[:-1]}
    return Moves(**joined, influence=np.sum([part.influence for part in parts], 0))


def _site_checks(site: str, found: Moves, limit: float) -> Iterator[Check]:
    """Mean and width of the entries of a site that are farthest beyond what chance allows."""
    allowed = np.maximum(SHIFT + MARGIN * found.shift_error, limit * found.shift_error)
    worst = int(np.argmax(np.abs(found.shift) - allowed))
    shift, most = float(found.shift[worst]), float(allowed[worst])
    yield Check(
        f"mean of {site}",
        abs(shift),
        f"<= {most:.2g} sd from that of the reweighted draws",
        abs(shift) <= most,
        f"the posterior's mean is {abs(shift):.2g} sd {'above' if shift > 0 else 'below'} that of q: {FIT_AGAIN}",
    )
    yield _width_check(site, found.stretch, found.stretch_error, limit)
    yield _shape_check(site, found, limit)


def _shape_check(site: str, found: Moves, limit: float) -> Check:
    """Probabilities under q and the posterior, of the entry whose deciles are farthest beyond what chance allows."""
    allowed = np.maximum(MOVED + MARGIN * found.bend_error, limit * found.bend_error)
    worst = int(np.argmax(np.abs(found.bend) - allowed))
    value, most = abs(float(found.bend[worst])), float(allowed[worst])
    return Check(
        f"shape of {site}",
        value,
        f"<= {most:.2g} of probability from the reweighted draws at each decile",
        value <= most,
        f"q is of another shape than the posterior, by {value:.2g} of its probability: it may have several modes, or a "
        "bend; guide 'flow', or mcmc",
    )


def _width_check(
    site: str, stretch: Float[Array, " P"], error: Float[Array, " P"], limit: float, where: str = ""
) -> Check:
    """Width of q over that of the posterior, of the entry that is farthest beyond what chance allows."""
    allowed = np.maximum(math.log1p(WIDTH) + MARGIN * error, limit * error)
    worst = int(np.argmax(np.abs(stretch) - allowed))
    value, most = math.exp(stretch[worst]), math.exp(allowed[worst])
    words = f"{value:.2g} times as wide as the posterior" if value > 1 else f"{value:.2g} of the posterior's width"
    return Check(
        f"width of {site}",
        value,
        f"{1 / most:.2f} to {most:.2f} times that of the reweighted draws{where}",
        bool(abs(stretch[worst]) <= allowed[worst]),
        f"q is {words}: {FIT_AGAIN}",
    )


def _entries(value: Float[Array, "S *event"]) -> Float[Array, "P S"]:
    """Draws of each entry, without those that are 0 or 1 in every draw."""
    flat = np.asarray(value, dtype=float).reshape(len(value), -1).T
    constant = (np.ptp(flat, -1) == 0) & ((flat[:, 0] == 0) | (flat[:, 0] == 1))
    return np.ascontiguousarray(flat[~constant])


def _scores(entry: Float[Array, "P S"]) -> Float[Array, "P S"]:
    """Normal scores of the ranks, ties sharing theirs; their mean is zero."""
    score = ndtri((rankdata(entry, axis=-1) - 3 / 8) / (entry.shape[-1] + 1 / 4))
    return score - score.mean(-1, keepdims=True)
