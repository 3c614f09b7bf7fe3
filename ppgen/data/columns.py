"""Columns of data that say nothing of their own: constant ones, and copies of others."""

import logging

import numpy as np
import xarray as xr

__all__ = ["note_idle_columns"]

log = logging.getLogger(__name__)

NAMED = 5  # columns that a note names


def note_idle_columns(who: str, x: xr.DataArray) -> None:
    """Log which features never change, and which are equal to another: fits work, but count them as evidence."""
    if str(x.dims[-1]) != "feature" or x.sizes["feature"] < 2 or not x.size:
        return
    values = np.asarray(x.values).reshape(-1, x.sizes["feature"])
    names = x["feature"].values if "feature" in x.coords else np.arange(values.shape[1])
    low, high = np.fmin.reduce(values, 0), np.fmax.reduce(values, 0)
    constant = low == high
    if constant.any():
        message = "%s: features %s of x never change; leave them out unless that is a finding"
        log.warning(message, who, _some(names[constant]))
    copies = [(first, second) for first, second in _alike(values) if not constant[first]]
    if copies:
        pairs = ", ".join(f"{names[second]} of {names[first]}" for first, second in copies[:NAMED])
        log.warning("%s: features of x are copies of others (%s); leave them out, for they count twice", who, pairs)


def _alike(values: np.ndarray) -> list[tuple[int, int]]:
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
