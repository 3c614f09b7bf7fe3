"""Columns of data that say nothing of their own, or something else than they seem to: the log names them."""

import logging

import numpy as np
import xarray as xr
from jaxtyping import Float

__all__ = ["note_columns"]

log = logging.getLogger(__name__)

NAMED = 5  # columns that a note names
MARKS = [sign * (10.0**digits - 1) for digits in range(2, 7) for sign in (-1, 1)]  # 99, -99, 999, ... for "missing"


def note_columns(who: str, x: xr.DataArray) -> None:
    """Log columns that hold no observation, that never change, that copy another, or that mark gaps by a number.

    Fits work with all of them, but count copies and constants as evidence, and marks as measurements.
    """
    wide = str(x.dims[-1]) == "feature"
    values = np.asarray(x.values).reshape(-1, x.sizes["feature"] if wide else 1)
    if not values.size:
        return
    names = x["feature"].values if wide and "feature" in x.coords else np.arange(values.shape[1])
    low, high = np.fmin.reduce(values, 0), np.fmax.reduce(values, 0)
    unseen = np.isnan(low)
    if unseen.all():
        log.warning("%s: x holds no observation, every entry is NaN, so that the posterior is the prior", who)
        return
    if unseen.any():
        log.warning(
            "%s: features %s of x were never observed; leave them out unless that is meant", who, _some(names[unseen])
        )
    if values.shape[1] > 1:
        _note_idle(who, values, names, low == high)
    _note_marks(who, values, names if wide else None, low, high)


def _note_idle(who: str, values: Float[np.ndarray, "N D"], names: np.ndarray, constant: np.ndarray) -> None:
    """Log features that never change, and those that are equal to another."""
    if constant.any():
        message = "%s: features %s of x never change; leave them out unless that is a finding"
        log.warning(message, who, _some(names[constant]))
    seen = ~np.isnan(values).all(0)
    copies = [(first, second) for first, second in _alike(values) if not constant[first] and seen[first]]
    if copies:
        pairs = ", ".join(f"{names[second]} of {names[first]}" for first, second in copies[:NAMED])
        log.warning("%s: features of x are copies of others (%s); leave them out, for they count twice", who, pairs)


def _note_marks(
    who: str, values: Float[np.ndarray, "N D"], names: np.ndarray | None, low: np.ndarray, high: np.ndarray
) -> None:
    """Log columns whose extreme is one of `MARKS`, several times, further from all else than that is wide."""
    for place in np.flatnonzero(np.isin(low, MARKS) | np.isin(high, MARKS)):
        column = values[~np.isnan(values[:, place]), place]
        for mark in {float(low[place]), float(high[place])} & set(MARKS):
            rest = column[column != mark]
            count = len(column) - len(rest)
            if count > 1 and len(rest) and np.abs(rest - mark).min() > max(np.ptp(rest), 1):
                which = "x" if names is None else f"feature {names[place]} of x"
                message = (
                    "%s: %s holds %g %d times, far from all else; if that marks what is missing, replace it by NaN"
                )
                log.warning(message, who, which, mark, count)


def _alike(values: Float[np.ndarray, "N D"]) -> list[tuple[int, int]]:
    """Pairs of equal columns, each with the first that it equals: by random sums, then entry by entry."""
    weights = np.random.default_rng(0).normal(size=len(values))
    sums = weights @ np.nan_to_num(values)
    first: dict[float, int] = {}
    pairs = [(first.setdefault(value, column), column) for column, value in enumerate(sums.tolist())]
    alike = [(one, two) for one, two in pairs if one != two]
    return [(one, two) for one, two in alike if np.array_equal(values[:, one], values[:, two], equal_nan=True)]


def _some(names: np.ndarray) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more
