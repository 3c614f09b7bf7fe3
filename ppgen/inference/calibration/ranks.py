r"""Ranks of true values among posterior draws, and what they say: the statistics of simulation-based calibration.

If :math:`(\theta_0, x)` comes from the model and :math:`\theta_1, \dots, \theta_L` from the posterior given x, then
:math:`f(\theta_0, x)` is one of L + 1 exchangeable numbers, for any function f. With :math:`V \sim U(0, 1)`,

.. math:: u = \frac{\#\{f_l < f_0\} + V\,(1 + \#\{f_l = f_0\})}{L + 1}

is exactly uniform, ties or not, whatever L, and :math:`z = \Phi^{-1}(u)` exactly standard normal. Over R replications
the mean of z is tested against 0 (is the posterior off centre?) and its variance, which is
:math:`\chi^2_{R-1} / (R - 1)`, against 1 (is it too narrow or too wide?); Holm's correction runs over all of them.

References: Talts et al. (2018); Modrak et al. (2023) for functions of the data; Dunn & Smyth (1996) for V; Holm (1979).
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import special, stats

from ppgen.diagnostics.checks import Check, Report, report
from ppgen.diagnostics.convergence import bulk_size

__all__ = ["Score", "effective_sizes", "pit", "power", "scores", "verdict"]

Array = np.ndarray

NARROW = 0.9  # ratio of a posterior's sd to the right one that a calibration must be able to see
POWER = 0.5  # with at least this probability
LEAST_DRAWS = 10  # draws of a chain, below which its autocorrelation is not known
INDEPENDENT = 20  # draws a replication, below which ranks are coarse
MOST_REPLICATIONS = 1 << 20


def pit(
    truth: Float[Array, "R *q"], draws: Float[Array, "R L *q"], kept: Bool[Array, "R L"], random: np.random.Generator
) -> Float[Array, "R *q"]:
    """Randomised rank of each true value among the ``kept`` draws, in (0, 1); NaN where one of these numbers is NaN."""
    keep = kept.reshape(*kept.shape, *(1,) * (draws.ndim - 2))
    less = ((draws < truth[:, None]) & keep).sum(1)
    equal = ((draws == truth[:, None]) & keep).sum(1)
    count = keep.sum(1)
    u = (less + random.random(truth.shape) * (equal + 1)) / (count + 1)
    unusable = np.isnan(truth) | (np.isnan(draws) & keep).any(1) | (count == 0)
    return np.where(unusable, np.nan, u)


def effective_sizes(draws: Float[Array, "B C S"]) -> Float[Array, " B"]:
    """Bulk effective sample size of each row: rank-normalised, chains split in halves (Vehtari et al. 2021).

    A row that never changes has all its draws (nothing is correlated), one with NaN has none, and chains too
    short to tell have one draw each.
    """
    B, C, S = draws.shape
    if S < LEAST_DRAWS:
        return np.full(B, float(C))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = bulk_size(draws)
    still = np.ptp(draws.reshape(B, -1), axis=1) == 0
    return np.where(np.isnan(draws).any((1, 2)), 0.0, np.where(still, float(C * S), found))


class Score(NamedTuple):
    """PIT z-scores of one number over replications: their mean, sd, and the p-values of the two tests."""

    mean: float
    sd: float
    p_centre: float
    p_width: float


def scores(values: Float[Array, "R *q"]) -> list[Score]:
    """Test each entry of a quantity; replications without a value (NaN) are left out here."""
    entries = values.reshape(len(values), -1).T
    return [_score(special.ndtri(np.clip(entry[~np.isnan(entry)], 1e-15, 1 - 1e-15))) for entry in entries]


def power(replications: int, tests: int, level: float) -> float:
    """Probability of seeing a posterior sd that is 10 % too small in one number, after Holm's first step."""
    if replications < 2:
        return 0.0
    free = replications - 1
    edge = stats.chi2.isf(level / tests / 2, free)
    return float(stats.chi2.sf(edge * NARROW**2, free))


def verdict(
    values: Mapping[str, Float[Array, "R *q"]], sizes: Shaped[Array, " R"], level: float, failed: str = ""
) -> Report:
    """Say what the ranks of all quantities mean together, failing closed.

    Parameters
    ----------
    values : PIT values of every quantity; NaN is a replication that failed.
    sizes : independent draws behind each replication; 0 where it failed.
    level : probability of any false alarm of the z-tests if everything is right.
    failed : words about replications that failed.
    """
    found = {name: scores(value) for name, value in values.items()}
    adjusted = _holm(np.array([p for rows in found.values() for row in rows for p in (row.p_centre, row.p_width)]))
    tests = iter(adjusted.reshape(-1, 2))
    rows = [check for name, entries in found.items() for check in _tests(name, entries, tests, level)]
    made = report([*_whole(values, sizes, failed), *_enough(sizes, adjusted.size, level), *rows])
    return Report(made.ok, _words(made, len(sizes)), made.table)


def _score(z: Float[Array, " n"]) -> Score:
    n = len(z)
    if n < 2:
        return Score(math.nan, math.nan, math.nan, math.nan)
    mean, squares = float(z.mean()), float(((z - z.mean()) ** 2).sum())
    p_centre = 2 * special.ndtr(-abs(mean) * math.sqrt(n))
    p_width = 2 * min(stats.chi2.sf(squares, n - 1), stats.chi2.cdf(squares, n - 1))
    return Score(mean, math.sqrt(squares / (n - 1)), float(p_centre), float(p_width))


def _holm(p: Float[Array, " m"]) -> Float[Array, " m"]:
    """Adjusted p-values; a NaN stays one, and costs the others a step."""
    order = np.argsort(np.nan_to_num(p, nan=-1.0), kind="stable")
    steps = np.maximum.accumulate(np.nan_to_num(p[order], nan=0.0) * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return np.where(np.isnan(p), np.nan, adjusted)


def _tests(name: str, entries: list[Score], adjusted: Iterator[Array], level: float) -> Iterator[Check]:
    """The worst entry of a quantity: where its posterior lies, and how wide it is."""
    p = np.array([next(adjusted) for _ in entries])
    for column, what in enumerate(("centre", "width")):
        worst = int(np.argmin(np.nan_to_num(p[:, column], nan=-1.0)))
        value, score = float(p[worst, column]), entries[worst]
        words = _off_centre(score) if what == "centre" else _wrong_width(score)
        entry = f" (entry {worst})" if len(entries) > 1 else ""
        yield Check(f"{what} of {name}", value, f"p >= {level:g} by Holm", value >= level, f"{words}{entry}")


def _off_centre(score: Score) -> str:
    if math.isnan(score.mean):
        return "nothing could be ranked"
    side = "small" if score.mean > 0 else "large"
    return f"posterior draws are too {side}: true values lie {abs(score.mean):.2g} sd to one side on average"


def _wrong_width(score: Score) -> str:
    if math.isnan(score.sd):
        return "nothing could be ranked"
    side = "narrow" if score.sd > 1 else "wide"
    return f"posteriors are too {side}: true values scatter {score.sd:.2f} times as far as they should"


def _whole(values: Mapping[str, Array], sizes: Array, failed: str) -> Iterator[Check]:
    unusable = np.zeros(len(sizes), dtype=bool)
    for value in values.values():
        unusable |= np.isnan(value.reshape(len(value), -1)).any(1)
    unusable |= sizes == 0
    count = int(unusable.sum())
    yield Check("failed replications", count, "= 0", count == 0, failed or "a quantity is NaN there")


def _enough(sizes: Array, tests: int, level: float) -> Iterator[Check]:
    """Enough replications to see what is wrong, and enough independent draws in each."""
    count = int((sizes > 0).sum())
    seen = power(count, max(tests, 1), level)
    needed = count
    while needed < MOST_REPLICATIONS and power(needed, max(tests, 1), level) < POWER:
        needed = max(needed + 1, math.ceil(needed * 1.05))
    yield Check(
        "power", seen, f">= {POWER} for a posterior sd 10 % too small", seen >= POWER,
        f"{count} replications prove too little: run {needed}",
    )  # fmt: skip
    middle = float(np.median(sizes[sizes > 0])) if count else 0.0
    yield Check(
        "independent draws", middle, f">= {INDEPENDENT} in most replications", middle >= INDEPENDENT,
        "ranks among so few draws are coarse: more draws, or a sampler that mixes",
    )  # fmt: skip


def _words(made: Report, replications: int) -> str:
    failed = made.table["check"][~made.table["ok"].astype(bool)].tolist()
    wrong = [name for name in failed if name.split(" ")[0] in ("centre", "width")]
    if wrong:
        return f"Not calibrated: over {replications} replications the {', the '.join(wrong)} of posteriors is wrong."
    if failed:
        return f"Not shown to be calibrated: {', '.join(failed)} over {replications} replications."
    return f"Calibrated, as far as {replications} replications can tell."
