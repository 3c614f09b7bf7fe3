"""Views: several tables of the same rows, side by side in one array whose columns know which view they are of."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ppgen.data.indexes import tell
from ppgen.errors import DataError

__all__ = ["VIEW", "beside"]

VIEW = "view"  # coordinate along the columns


def beside(views: Mapping[str, xr.DataArray], name: str) -> xr.DataArray:
    """Views (rows, columns) side by side.

    A column is called by its view and its own name, ``"genes.a"``, and the coordinate ``view`` along the columns says
    which view it is of. Labelled rows are matched: one that a view does not have is not observed there, which the log
    says.

    Raises
    ------
    DataError : views that have no row in common, another number of rows, or labels that occur twice.
    """
    row, column = next(iter(views.values())).dims
    labels = _row_labels(views, str(row), name)
    parts = [_columns(view, one if labels is None else _matched(one, row, labels)) for view, one in views.items()]
    joined = xr.concat(parts, dim=column, coords="minimal", compat="override", join="override")
    return joined if labels is None else joined.assign_coords({row: labels})


def _row_labels(views: Mapping[str, xr.DataArray], row: str, name: str) -> np.ndarray | None:
    """Labels of all rows, in the order of the first view that has some; None where none has."""
    known = {view: pd.Index(one[row].values) for view, one in views.items() if row in one.coords}
    sizes = {view: one.sizes[row] for view, one in views.items()}
    first = next(iter(known.values()), None)
    if all(first is not None and index.equals(first) for index in known.values()) and len(set(sizes.values())) == 1:
        return None if first is None else np.asarray(first)
    if first is None or len(known) < len(views):
        raise DataError(f"{name}: views must have the same {row}s, got {sizes}; label the {row}s of all, or cut them")
    for view, index in known.items():
        if not index.is_unique or not len(index.intersection(first)):
            what = "labels of its own" if index.is_unique else "labels that occur twice"
            raise DataError(
                f"{name}: views must share the labels of their {row}s, got {what} in {view!r}; give each {row} one name"
            )
    whole = first
    for index in known.values():
        whole = whole.union(index, sort=False)
    absent = {view: len(whole) - len(index) for view, index in known.items() if len(index) < len(whole)}
    if absent:
        tell(
            f"{name}: of {len(whole)} {row}s some are in no more than a part of the views, and not observed in {absent}"
        )
    return np.asarray(whole)


def _matched(one: xr.DataArray, row: Any, labels: np.ndarray) -> xr.DataArray:  # noqa: ANN401 (a dim)
    return one.reindex({row: labels}) if row in one.coords else one


def _columns(view: str, one: xr.DataArray) -> xr.DataArray:
    """A view whose columns have the names of both."""
    column = one.dims[1]
    own = one[column].values.tolist() if column in one.coords else range(one.sizes[column])
    return one.assign_coords({column: [f"{view}.{label}" for label in own], VIEW: (column, [view] * one.sizes[column])})
