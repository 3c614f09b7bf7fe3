"""Arguments of a plain function: tables and labelled arrays become tensors at the door."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

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
    if isinstance(value, pd.Series):
        return _from_frame(who, name, value.to_frame())[:, 0]
    if isinstance(value, pd.DataFrame):
        return _from_frame(who, name, value)
    if isinstance(value, xr.DataArray):
        if value.dtype.kind not in "biuf":
            raise DataError(f"{who}: {name} must hold numbers, got {value.dtype}; encode it")
        return _tensor(value.values)
    return value


def _from_frame(who: str, name: str, frame: pd.DataFrame) -> Tensor:
    bad = [str(column) for column, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if bad:
        raise DataError(
            f"{who}: {name} must hold numbers, its columns {bad[:6]} do not; encode categories as whole numbers with "
            "pandas.factorize, or as columns of 0 and 1 with pandas.get_dummies"
        )
    whole = all(pd.api.types.is_integer_dtype(kind) for kind in frame.dtypes) and not frame.isna().to_numpy().any()
    return _tensor(frame.to_numpy(np.int64) if whole else frame.to_numpy(np.float64, na_value=np.nan))


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(values, np.float64 if values.dtype.kind == "f" else None))
