"""Ways to hide entries of a table, so that what fills them can be scored."""

import numpy as np
from jaxtyping import Bool, Float

from ppgen.errors import DataError

__all__ = ["MECHANISMS", "hidden_entries"]

MECHANISMS = ("at random", "by another column", "by its own value")
SLOPE = 2.0  # log odds of being hidden for a standard deviation


def hidden_entries(
    x: Float[np.ndarray, "N D"], mechanism: str, share: float, rng: np.random.Generator
) -> Bool[np.ndarray, "N D"]:
    """Entries to hide: ``share`` of those that are there, about; every row keeps one.

    ``"at random"`` asks nothing. ``"by another column"`` hides entries of every second column, the more, the larger the
    value of the column before, which stays. ``"by its own value"`` hides the more, the larger the value itself.
    """
    if mechanism not in MECHANISMS:
        raise DataError(f"missing_data: the mechanism must be one of {MECHANISMS}, got {mechanism!r}")
    if not 0 < share < 1:
        raise DataError(f"missing_data: the share to hide must be between 0 and 1, got {share}")
    there = ~np.isnan(x)
    if mechanism == "at random":
        chosen = there & (rng.random(x.shape) < share)
    elif mechanism == "by its own value":
        chosen = there & (rng.random(x.shape) < _chances(np.nan_to_num(x), there, share))
    else:
        second = np.arange(x.shape[1]) % 2 == 1
        driver = np.nan_to_num(np.roll(x, 1, 1))
        within = there & second
        wanted = min(0.95, share * there.sum() / max(within.sum(), 1))
        chosen = within & (rng.random(x.shape) < _chances(driver, within, wanted))
    return _with_one_left(chosen, there, rng)


def _chances(drive: np.ndarray, among: np.ndarray, share: float) -> np.ndarray:
    """Logistic chances of slope `SLOPE` whose mean among some entries is ``share``, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = (1 / (1 + np.exp(-(middle + SLOPE * drive[among])))).mean() if among.any() else share
        low, high = (middle, high) if mean < share else (low, middle)
    return 1 / (1 + np.exp(-(low + SLOPE * drive)))


def _with_one_left(chosen: np.ndarray, there: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same, with one entry given back to each row that would lose all it has."""
    for row in np.flatnonzero((there & ~chosen).sum(1) == 0):
        if there[row].any():
            chosen[row, rng.choice(np.flatnonzero(there[row]))] = False
    return chosen
