"""Arguments of a plain function: tables and labelled arrays become tensors at the door."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ppgen.data.indexes import index_labels
from ppgen.data.inputs import few, positions
from ppgen.data.tables import as_frame, real_numbers, whole_numbers
from ppgen.errors import DataError

__all__ = ["as_arguments", "axis_labels"]


def as_arguments(who: str, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of ``function``: Series, DataFrames and DataArrays as tensors, also in a dict; anything else as it is.

    Real numbers become float64, whole numbers stay whole, NaN stays NaN. Labels that are those of the rows of the first
    argument, in another order, are brought into its order, along every axis that has them; other labels are not read.

    Raises
    ------
    DataError : text or objects among them, by the name of the argument; or the labels of the rows in another order,
        where some of them occur twice.
    """
    names = _names(function, len(args))
    rows = [None, *[_labels(args[0], 0)] * (len(args) - 1)] if args else []  # the first stays as it is
    return tuple(_as_tensor(who, *one) for one in zip(names, args, rows, strict=True))


def axis_labels(value: object) -> list[np.ndarray | None]:
    """Labels of each axis of a table or a labelled array, None of an axis without; of anything else no axis."""
    if not isinstance(value, pd.DataFrame | pd.Series | xr.DataArray):
        return []
    return [_labels(value, axis) for axis in range(value.ndim)]


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """Names of the first arguments, as far as they have some."""
    try:
        found = [name for name, one in inspect.signature(function).parameters.items() if one.kind != one.VAR_POSITIONAL]
    except (TypeError, ValueError):
        found = []
    return [found[place] if place < len(found) else f"argument {place + 1}" for place in range(count)]


def _as_tensor(who: str, name: str, value: object, rows: np.ndarray | None) -> object:
    if isinstance(value, dict | xr.Dataset):
        return {key: _as_tensor(who, f"{name}[{key!r}]", part, rows) for key, part in value.items()}
    value = _in_order(f"{who}: {name}", value, rows)
    if isinstance(value, pd.DataFrame | pd.Series):
        frame, what = as_frame(value), f"{who}: {name}"
        whole = whole_numbers(what, frame)
        found = _tensor(real_numbers(what, frame) if whole is None else whole)
        return found[:, 0] if isinstance(value, pd.Series) else found
    if isinstance(value, xr.DataArray):
        if value.dtype.kind not in "biuf":
            raise DataError(f"{who}: {name} must hold numbers, got {value.dtype}; encode it")
        return _tensor(value.values)
    return value


def _in_order(what: str, value: Any, rows: np.ndarray | None) -> Any:  # noqa: ANN401 (an argument of a function)
    """A table or labelled array with every axis that has the labels of the ``rows`` in their order."""
    axes = range(value.ndim) if rows is not None and isinstance(value, pd.DataFrame | pd.Series | xr.DataArray) else ()
    for axis in axes:
        own = _labels(value, axis)
        order = None if own is None or rows is None else positions(rows, own)
        if order is None:
            _refuse_shuffled(what, own, rows)
            continue
        if isinstance(value, xr.DataArray):
            value = value.isel({value.dims[axis]: order})
        else:
            value = value.iloc[order] if axis == 0 else value.iloc[:, order]
    return value


def _refuse_shuffled(what: str, own: np.ndarray | None, rows: np.ndarray | None) -> None:
    """Refuse labels that occur as often as those of the rows, in another order that they cannot be brought out of."""
    if own is None or rows is None or len(own) != len(rows):
        return
    if sorted(map(str, own.tolist())) == sorted(map(str, rows.tolist())):
        raise DataError(
            f"{what} must have its rows in the order of the data, as labels that occur twice cannot bring them there, "
            f"got {few(rows)} beside {few(own)}; sort both alike, or pass it as an array if its rows are in order"
        )


def _labels(value: object, axis: int) -> np.ndarray | None:
    """Labels of a table's or a labelled array's axis, if it has some."""
    if isinstance(value, pd.DataFrame | pd.Series) and not isinstance(value.axes[axis], pd.MultiIndex):
        return index_labels(value.axes[axis])
    if isinstance(value, xr.DataArray) and value.ndim > axis and value.dims[axis] in value.coords:
        return np.asarray(value[value.dims[axis]].values)
    return None


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(values, np.float64 if values.dtype.kind == "f" else None))
