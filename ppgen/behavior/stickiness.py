r"""The stickiness that makes the median syllable last as long as wished, found by a search and not by hand.

The median duration grows with the stickiness :math:`\kappa`, but how fast depends on how far the emissions are
from the truth: a too confident autoregression may ask for :math:`\kappa` beyond :math:`10^{30}`. A switch costs about
:math:`\log\kappa` nats, so the search runs over :math:`\log\kappa`: steps that double until the target is enclosed,
then false position on the log of the median, which copes with the noise that local optima bring. A trial starts from
the fit at the next smaller stickiness tried: states merge as stickiness grows, and would not come apart again on the
way back. Where a stickiness is so large that rounding drowns the data and the fit fails, the search stays below it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import pandas as pd

from ppgen.errors import DataError, FitError

__all__ = ["Search", "choose_stickiness"]

State = TypeVar("State")
# Log of the largest stickiness tried; beyond it float64 sums lose the rest of the transition prior.
LARGEST_LOG = 40 * math.log(10)
# Trials that may fail, and the range of log stickiness below a failed one that is not worth another trial.
MOST_FAILURES, NARROW = 6, 2.0


@dataclass(frozen=True)
class Search(Generic[State]):
    """The result of the search.

    Attributes
    ----------
    stickiness : the chosen value.
    state : the fit at that value.
    median : median duration of that fit, in frames.
    trail : one row per trial: ``stickiness``, ``median`` (frames).
    reached : true if the median is within the tolerance of the target.
    """

    stickiness: float
    state: State
    median: float
    trail: pd.DataFrame
    reached: bool


def choose_stickiness(
    fit_once: Callable[[float, State | None], tuple[State, float]],
    target_frames: float,
    *,
    first: float = 100.0,
    step: float | None = None,
    tolerance: float = 0.1,
    max_evaluations: int = 10,
) -> Search[State]:
    """Search for the stickiness whose median syllable lasts ``target_frames``.

    Parameters
    ----------
    fit_once : ``fit_once(stickiness, previous)`` fits briefly and gives the fit and the median duration of its
        syllables in frames; ``previous`` is the fit to start from, or None where none had a smaller stickiness.
    target_frames : the wished median, at least one frame.
    first : the first value tried, at least 1.
    step : the first step of the search, in log stickiness; it doubles until the target is enclosed. As large as the log
        of ``first`` when not given.
    tolerance : stop when the median is this close to the target, as a share of it, or half a frame: it cannot come
        closer.
    max_evaluations : stop after so many trials and keep the closest.

    Raises
    ------
    FitError : every trial failed.
    """
    if not target_frames >= 1:
        raise DataError(
            f"choose_stickiness: the target must be at least one frame, got {target_frames:.3g} frames; "
            "give a longer target duration or recordings with a higher frame rate"
        )
    allowed = max(tolerance * target_frames, 0.5)
    tried: list[tuple[float, float, State]] = []
    cost: float | None = math.log(first)
    failures, limit = 0, LARGEST_LOG
    while cost is not None and len(tried) < max_evaluations and failures <= MOST_FAILURES:
        below = [(c, i) for i, (c, _, _) in enumerate(tried) if c < cost]
        try:
            state, median = fit_once(math.exp(cost), tried[max(below)[1]][2] if below else None)
        except FitError:
            failures, limit = failures + 1, cost
            if failures > MOST_FAILURES and not tried:
                raise
        else:
            tried.append((cost, median, state))
            if abs(median - target_frames) <= allowed:
                break
        cost = _next([(c, m) for c, m, _ in tried], target_frames, step or max(math.log(first), 1.0), limit)
    return _best(tried, target_frames, allowed)


def _next(tried: list[tuple[float, float]], target: float, step: float, limit: float = LARGEST_LOG) -> float | None:
    """The next log stickiness to try, or None when the range up to ``limit``, where fits fail, is used up."""
    short = [(c, m) for c, m in tried if m < target]
    long = [(c, m) for c, m in tried if m >= target]
    if not tried:
        return limit / 2
    if not long:
        cost = max(c for c, _ in short)
        following = cost + step * 2 ** (len(short) - 1)
        if following < limit:
            return following
        if limit == LARGEST_LOG:
            return LARGEST_LOG if cost < LARGEST_LOG else None
        return (cost + limit) / 2 if limit - cost > NARROW else None
    if not short:
        cost = min(c for c, _ in long)
        return max(cost - step * 2 ** (len(long) - 1) / 2, 0.0) if cost > 0 else None
    low, high = _enclose(short, long)
    return _false_position(low, high, target) if abs(high[0] - low[0]) > 0.02 else None


def _enclose(short: list[tuple[float, float]], long: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The closest pair around the target. Where noise broke the order, the latest trial on either side counts."""
    low = max(short)
    above = [pair for pair in long if pair[0] > low[0]]
    if above:
        return low, min(above)
    high = min(long)
    below = [pair for pair in short if pair[0] < high[0]]
    return (max(below), high) if below else (low, high)


def _false_position(low: tuple[float, float], high: tuple[float, float], target: float) -> float:
    """The point at which the line through both log medians meets the target, kept inside the middle four fifths."""
    rise = math.log(max(high[1], 1e-3)) - math.log(max(low[1], 1e-3))
    share = (math.log(target) - math.log(max(low[1], 1e-3))) / rise if rise > 0 else 0.5
    return low[0] + float(np.clip(share, 0.1, 0.9)) * (high[0] - low[0])


def _best(tried: list[tuple[float, float, State]], target: float, allowed: float) -> Search[State]:
    trail = pd.DataFrame([(math.exp(c), m) for c, m, _ in tried], columns=["stickiness", "median"])
    distance = (np.log(trail["median"].clip(lower=1e-3)) - math.log(target)).abs()
    best = int(distance.fillna(math.inf).to_numpy().argmin())
    cost, median, state = tried[best]
    return Search(math.exp(cost), state, median, trail, abs(median - target) <= allowed)
