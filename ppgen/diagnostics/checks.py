r"""Can this fit be trusted? Checks on plain arrays, each a line in words; the verdict fails closed.

Every check is written so that NaN fails it, and reports what could not be checked. Thresholds and their sources:

- :math:`\hat R` at most 1.01 (Vehtari et al. 2021), nested for 16 chains or more (see ``convergence``);
  where many entries are compared, at most what chains that agree would reach by chance in one run of a thousand, and
  never above 1.05;
- effective sizes of 400 in all (the same), enough for the other numbers here to be known, and for an error of the mean
  (MCSE) of 0.05 standard deviations. Not 100 per chain: with many chains nothing needs so many;
- a chain is odd when it is 0.3 pooled standard deviations from the rest (what :math:`\hat R` sees of one among four)
  and Grubbs's test says the same;
- tail shape at most 0.7, beyond which means and their errors are not to be had from any number of draws (Vehtari et al.
  2024); the same number is the limit of the importance ratios :math:`p/q` of a variational fit (Yao et al. 2018), whose
  means and widths reweighting may move by a tenth (:mod:`ppgen.diagnostics.importance`);
- E-BFMI at least 0.3 (Betancourt 2016), over 1,000 draws or more: of a group of chains where they are shorter.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from ppgen.diagnostics.chain_checks import check_chains, check_labels, check_modes, check_sampler
from ppgen.diagnostics.importance import check_importance, check_moments, check_rows
from ppgen.diagnostics.verdict import POINT, UNSEEN, Check, Report, report

__all__ = [
    "Check",
    "Report",
    "check_chains",
    "check_compared",
    "check_convergence",
    "check_elbo",
    "check_finite",
    "check_importance",
    "check_interrupted",
    "check_labels",
    "check_missing",
    "check_modes",
    "check_moments",
    "check_point",
    "check_restarts",
    "check_rows",
    "check_sampler",
    "report",
]

Array = np.ndarray

MISSING_SHARE, RESTART_NATS, ELBO_DROP = 0.5, 10.0, 1e-8
GAIN, SETTLED_STEPS = 1.0, 100  # nats still gained over the last tenth of a run, of so many steps at least
FEWEST_STEPS = 10  # in the last tenth of a run, for its slope to decide alone
STILL_RISING = 'the bound still rises: raise max_steps, or let the rate fall to zero (schedule="cosine")'


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
    """Check that the engine's own test of convergence was met, and that the bound has stopped rising.

    The number is the slope over the last tenth of the run. Where that is 100 steps or more of a noisy bound, what they
    gained must be under a nat, or within three standard errors. With ``converged`` None the engine made no test, as
    without early stopping: then the slope of ten steps or more decides alone.
    """
    slope, error, steps = _last_slope(np.asarray(elbo, dtype=float))
    settled = slope * steps <= max(GAIN, 3 * error * steps)
    if converged is None:
        good, rule, advice = settled and steps >= FEWEST_STEPS, "at most noise, nats per step", STILL_RISING
    else:
        good, rule = converged and (steps < SETTLED_STEPS or settled), "converged by the engine's test, nats per step"
        advice = STILL_RISING if converged else "it stopped before it was done: raise max_steps"
    yield Check("ELBO slope", slope, rule, good, advice)


def check_compared() -> Iterator[Check]:
    """Stands for the checks that need the data, where it was not given."""
    yield Check(
        UNSEEN,
        math.nan,
        "the data",
        False,
        "how far q is from the posterior (k-hat, means, widths): give diagnose the data, fit.diagnose(x)",
    )


def check_finite(share: float) -> Iterator[Check]:
    """Share of the numbers that q is made of, or of its draws, which are finite."""
    yield Check(
        "finite posterior", share, "= 100%", share == 1.0, "q holds NaN or infinity: the run lost its way, fit again"
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


def check_point() -> Iterator[Check]:
    """Stand in for the comparison of widths, which a point estimate does not have."""
    yield Check(
        POINT,
        0.0,
        "a distribution",
        False,
        "one value stands for the whole posterior, and predictions are too sure by what is not known of it: use "
        'guide="mean_field" or "full_rank", or mcmc.fit, where that matters',
    )


def check_restarts(elbos: Sequence[float]) -> Iterator[Check]:
    """Check how far the best restart is ahead of the second: a lone winner may not be the best there is."""
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
