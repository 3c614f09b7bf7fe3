r"""Can this fit be trusted? Checks on plain arrays, each a line in words; the verdict fails closed.

Every check is written so that NaN fails it; what could not be checked is said. Thresholds, and where they come from:

- :math:`\hat R` at most 1.01 (Vehtari et al. 2021), nested for 16 chains or more (:mod:`ppgen.inference.convergence`);
  where many entries are compared, at most what chains that agree would reach by chance in one run of a thousand, and
  never above 1.05;
- effective sizes of 400 in all (the same), enough for the other numbers here to be known, and for an error of the mean
  (MCSE) of 0.05 standard deviations. Not 100 per chain: with many chains nothing needs so many;
- a chain is odd when it is 0.3 pooled standard deviations from the rest (what :math:`\hat R` sees of one among four)
  and Grubbs's test says the same;
- tail shape at most 0.7, beyond which means and their errors are not to be had from any number of draws (Vehtari et al.
  2024); the same number is the limit of the importance ratios :math:`p/q` of a variational fit (Yao et al. 2018);
- E-BFMI at least 0.3 (Betancourt 2016), over 1,000 draws or more: of a group of chains where they are shorter.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from ppgen.inference.chain_checks import check_chains, check_labels, check_modes, check_sampler
from ppgen.inference.verdict import Check, Report, report

__all__ = [
    "Check",
    "Report",
    "check_chains",
    "check_convergence",
    "check_elbo",
    "check_importance",
    "check_interrupted",
    "check_labels",
    "check_missing",
    "check_modes",
    "check_restarts",
    "check_sampler",
    "report",
]

Array = np.ndarray

MISSING_SHARE, RESTART_NATS, ELBO_DROP = 0.5, 10.0, 1e-8
GAIN, SETTLED_STEPS = 1.0, 100  # nats still gained over the last tenth of a run, of so many steps at least


def check_importance(log_ratio: Float[Array, " S"]) -> Iterator[Check]:
    """Pareto shape k-hat of ``log p(theta, x) - log q(theta)`` at draws from q: whether q can stand in for p.

    Where the model gives a bound of its evidence, so is this p.
    """
    ratio = np.asarray(log_ratio, dtype=float)
    limit = min(1 - 1 / math.log10(ratio.size), 0.7) if ratio.size > 10 else 0.0
    value = _pareto_shape(ratio)
    yield Check(
        "Pareto k-hat",
        value,
        f"< {limit:.2f}",
        value < limit,
        "the variational posterior of the parameters is no stand-in for the exact one: do not quote its intervals of "
        "single parameters, judge predictions on held-out data, or run mcmc",
    )


def check_elbo(elbo: Float[Array, " I"], *, monotone: bool) -> Iterator[Check]:
    """Every bound is a number; a ``monotone`` bound (full-batch coordinate ascent) never goes down."""
    values = np.asarray(elbo, dtype=float)
    finite = float(np.isfinite(values).mean()) if values.size else math.nan
    yield Check("finite ELBO", finite, "= 100% of steps", finite == 1.0, "a step lost its way: try a smaller step size")
    if monotone and values.size > 1:
        drop = float(np.max(-np.diff(values) / np.maximum(1.0, np.abs(values[1:]))))
        yield Check(
            "ELBO drop", drop, f"<= {ELBO_DROP:g} relative", drop <= ELBO_DROP, "report this: the bound must never drop"
        )


def check_convergence(converged: bool | None, elbo: Float[Array, " I"]) -> Iterator[Check]:
    """Whether the engine's own test of convergence was met, and the bound has stopped rising.

    The number is the slope over the last tenth of the run. Where that is 100 steps or more of a noisy bound, what they
    gained must be under a nat, or within three standard errors.
    """
    slope, error, steps = _last_slope(np.asarray(elbo, dtype=float))
    settled = steps < SETTLED_STEPS or slope * steps <= max(GAIN, 3 * error * steps)
    yield Check(
        "ELBO slope",
        slope,
        "converged by the engine's test, nats per step",
        converged is True and settled,
        "it stopped before it was done: raise max_steps",
    )


def check_interrupted() -> Iterator[Check]:
    """A run that somebody stopped."""
    yield Check("complete run", 0.0, "= 1", False, "it was interrupted; what there is may do, but nobody has shown it")


def check_missing(share: float) -> Iterator[Check]:
    """Share of missing entries: with most of them missing, the answers are mostly the model's own."""
    yield Check(
        "missing share",
        share,
        f"<= {MISSING_SHARE:.0%}",
        share <= MISSING_SHARE,
        "more is imagined than seen: check the data, and that gaps do not depend on what they hide",
    )


def check_restarts(elbos: Sequence[float]) -> Iterator[Check]:
    """How far the best restart is ahead of the second: a lone winner may not be the best there is."""
    values = np.sort(np.asarray(elbos, dtype=float))[::-1]
    if values.size > 1:
        gap = float(values[0] - values[1]) if np.isfinite(values).all() else math.nan
        yield Check(
            "gap between the two best restarts",
            gap,
            f"<= {RESTART_NATS:g} nats",
            gap <= RESTART_NATS,
            "the optimum depends on the start: raise n_init",
        )


def _pareto_shape(log_ratio: Array) -> float:
    """k-hat of the largest ratios; NaN ratios make it NaN, ratios all alike (q is exact) make it minus infinity."""
    from arviz_stats.base import array_stats

    if log_ratio.size < 25 or not np.isfinite(log_ratio).all():
        return math.nan
    if np.ptp(log_ratio) < 1e-8 * max(1.0, float(np.abs(log_ratio).max())):
        return -math.inf
    # arviz smooths the importance weights of leave-one-out, which are those of minus its argument.
    _, shape = array_stats.psislw(-log_ratio, axis=-1)
    return float(shape)


def _last_slope(elbo: Array) -> tuple[float, float, int]:
    """Gain per step over the last tenth of the steps (two at least) by least squares, its standard error, the steps."""
    tail = elbo[-max(2, elbo.size // 10) :]
    if tail.size < 2:
        return math.nan, math.nan, 0
    steps = np.arange(tail.size) - (tail.size - 1) / 2
    slope = float(steps @ tail / (steps @ steps))
    rest = tail - tail.mean() - slope * steps
    error = math.sqrt(float(rest @ rest) / max(1, tail.size - 2) / float(steps @ steps))
    return slope, error, tail.size
