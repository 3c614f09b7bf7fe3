"""Arguments of a plain function: tables and labelled arrays become tensors at the door."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from ppgen.data.tables import as_frame, real_numbers, whole_numbers
from ppgen.errors import DataError

__all__ = ["as_arguments"]


def as_arguments(who: str, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What ``function`` is called with: Series, DataFrames and DataArrays as tensors, anything else as it is.

    Real numbers become float64, whole numbers stay whole, NaN stays NaN.

    Raises
    ------
    DataError : text or objects among them, by the name of the argument.
    """
    names = _names(function, len(args))
    return tuple(_as_tensor(who, name, value) for name, value in zip(names, args, strict=True))


def _names(function: Callable[..., Any], count: int) -> list[str]:
    """Names of the first arguments, as far as they have some."""
    try:
        found = [name for name, one in inspect.signature(function).parameters.items() if one.kind != one.VAR_POSITIONAL]
    except (TypeError, ValueError):
        found = []
    return [found[place] if place < len(found) else f"argument {place + 1}" for place in range(count)]


def _as_tensor(who: str, name: str, value: object) -> object:
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


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(values, np.float64 if values.dtype.kind == "f" else None))
