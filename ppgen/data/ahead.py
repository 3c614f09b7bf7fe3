"""Inputs of a forecast: their rows are the steps of the data, and then those ahead."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ppgen.data.indexes import index_labels
from ppgen.data.inputs import counted, few, positions
from ppgen.errors import DataError

__all__ = ["rows_wanted", "with_steps_ahead"]

NUMBERS, DATES = "biuf", "mM"  # kinds of labels that have an order


def rows_wanted(steps: int, horizon: int) -> str:
    """The rows that inputs of a forecast must have, in words."""
    return f"a row for each of the {steps} steps of x and the {horizon} ahead, {steps + horizon}"


def with_steps_ahead(what: str, u: object, observations: xr.DataArray, horizon: int) -> xr.DataArray:
    """Lengthen data by ``horizon`` empty steps, with the times that the inputs ``u`` have beyond those of the data.

    Times ahead are sorted, where they are numbers or dates. The answer has no times where ``u`` has none for the steps
    ahead, or where they cannot be told from those of the data.

    Raises
    ------
    DataError : labelled inputs with another number of rows, without the times of the data, or with times ahead that do
        not follow these.
    """
    padded = observations.drop_vars("time", errors="ignore").pad(time=(0, horizon), constant_values=np.nan)
    own = observations["time"].values if "time" in observations.coords else None
    times = None
    for name, labels in _times(what, u, observations):
        if len(labels) != observations.sizes["time"] + horizon:
            wanted = rows_wanted(observations.sizes["time"], horizon)
            raise DataError(
                f"{name} must have {wanted}, got {len(labels)}; pass the rows of the past and of the future"
            )
        times = _joined(name, own, labels) if times is None else times
    return padded if times is None else padded.assign_coords(time=times)


def _times(what: str, u: object, observations: xr.DataArray) -> list[tuple[str, np.ndarray]]:
    """Labels of the steps of each input that has some."""
    if isinstance(u, Mapping):
        return [found for name, one in u.items() for found in _times(f"{what}[{name!r}]", one, observations)]
    if isinstance(u, xr.DataArray):
        return [(what, u["time"].values)] if "time" in u.coords and "time" in u.dims else []
    if isinstance(u, pd.DataFrame | pd.Series) and len(observations) == 1 and len(u) > 1:
        return [] if isinstance(u.index, pd.MultiIndex) else [(what, index_labels(u.index))]
    return []


def _joined(what: str, own: np.ndarray | None, labels: np.ndarray) -> np.ndarray | None:
    """Times of the data, then those ahead; None where the rows of inputs are merely counted, beside times."""
    if own is None:
        return labels
    ahead = _ahead(own, labels)
    if len(ahead) == len(labels) - len(own) and positions(own, labels[~np.isin(labels, ahead)]) is not None:
        if ahead.dtype.kind in NUMBERS + DATES and not ahead[0] > own[-1]:
            raise DataError(
                f"{what} must have times ahead that follow the last one of x, {own[-1]}, got {ahead[0]}; leave others "
                "out"
            )
        return np.concatenate([own, ahead])
    if counted(labels, own):
        return None
    if counted(own, labels):
        return labels
    raise DataError(
        f"{what} must have the times of x, {few(own)}, and then those ahead, got {few(labels)}; select them, or pass "
        "an array (sequence, time, input) if the rows are in order"
    )


def _ahead(own: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels that the data do not have, in order where they have one."""
    both = {own.dtype.kind, labels.dtype.kind}
    rest: Any = labels[~np.isin(labels, own)] if len(both) == 1 or both <= set(NUMBERS) else labels
    return np.sort(rest) if rest.dtype.kind in NUMBERS + DATES else rest
