"""Inputs ``u`` beside the data: rows by the labels of ``x``, columns by the names of those of the fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor

from ppgen.arguments import as_inputs
from ppgen.data.arrays import to_tensor
from ppgen.data.indexes import index_labels
from ppgen.data.tables import real_numbers
from ppgen.errors import DataError

__all__ = ["INPUT", "Inputs", "aligned_features", "labels_of", "places", "read_inputs"]

INPUT = "input"  # what the last axis of inputs is called


@final
@dataclass(frozen=True, eq=False)
class Inputs:
    """What came as ``u``: numbers with a row per row of the data, and the names of their columns; None where absent."""

    values: Tensor | None = None
    names: np.ndarray | None = None

    @property
    def shape(self) -> list[int] | None:
        """Of the numbers."""
        return None if self.values is None else list(self.values.shape)


def read_inputs(
    who: str, u: object, observations: xr.DataArray, names: Sequence[Any] | np.ndarray | None = None
) -> Inputs:
    """Read ``u``: labelled rows are brought into the order of the data, labelled columns into that of ``names``.

    Parameters
    ----------
    who : is asked, for messages.
    u : an array, tensor, DataFrame, Series or DataArray; None for no inputs.
    observations : the data.
    names : of the columns of the fit's own inputs, where they had any.

    Raises
    ------
    DataError : other rows than those of the data, other columns than ``names``, or what `as_inputs` refuses.
    """
    if u is None:
        return Inputs()
    labelled = _labelled(who, u, observations)
    if labelled is None:
        return Inputs(as_inputs(who, u, to_tensor(observations)))
    for dim in labelled.dims if labelled.ndim == 1 else labelled.dims[:-1]:
        if dim in labelled.coords and dim in observations.coords:
            labelled = _rows(who, labelled, observations, str(dim))
    last = labelled.dims[-1]
    found = labelled[last].values if labelled.ndim > 1 and last in labelled.coords else None
    if found is not None and names is not None:
        order = places(names, found)
        if order is None:
            raise DataError(
                f"{who}: u must have the inputs of the fit, {np.asarray(names).tolist()}, got {found.tolist()}; "
                "rename or select them"
            )
        labelled, found = labelled.isel({last: order}), np.asarray(names)
    return Inputs(as_inputs(who, labelled.values, to_tensor(observations)), found)


def aligned_features(who: str, observations: xr.DataArray, labels: Mapping[str, np.ndarray]) -> xr.DataArray:
    """Data with its named features in the order of ``labels``, {dim: labels}; rows and steps stay where they are.

    Raises
    ------
    DataError : other features than those.
    """
    for dim in map(str, observations.dims[1:]):
        if dim == "time" or dim not in labels or dim not in observations.coords:
            continue
        wanted, given = labels[dim], observations[dim].values
        order = places(wanted, given)
        if order is None:
            raise DataError(
                f"{who}: x must have the {dim}s of the fit, {wanted.tolist()}, got {given.tolist()}; "
                "rename or select them"
            )
        observations = observations.isel({dim: order})
    return observations


def labels_of(observations: xr.DataArray) -> dict[str, np.ndarray]:
    """Labels of the axes that have some, {dim: labels}."""
    return {str(dim): observations[dim].values for dim in observations.dims if dim in observations.coords}


def places(wanted: Sequence[Any] | np.ndarray, given: Sequence[Any] | np.ndarray) -> np.ndarray | None:
    """Where each of the ``wanted`` labels is among those ``given``; None where they are not the same ones."""
    ours, theirs = _index(wanted), _index(given)
    if len(ours) != len(theirs):
        return None
    if not (ours.is_unique and theirs.is_unique):
        return np.arange(len(ours)) if ours.equals(theirs) else None
    found = theirs.get_indexer(ours)
    return None if (found < 0).any() else found


def _index(labels: Sequence[Any] | np.ndarray) -> pd.Index:
    """Labels to compare: numbers and dates by value, all else as text."""
    values = np.asarray(labels)
    return pd.Index(values) if values.dtype.kind in "biufmM" else pd.Index([str(v) for v in values.tolist()])


def _labelled(who: str, u: object, observations: xr.DataArray) -> xr.DataArray | None:
    """``u`` with named dims, those it shares with the data first, if it has labels at all."""
    dims = tuple(map(str, observations.dims))
    if isinstance(u, pd.Series):
        return _from_frame(who, u.to_frame(), dims)[:, 0]
    if isinstance(u, pd.DataFrame):
        one = dims[1:2] == ("time",) and observations.shape[:2] == (1, len(u))
        return _from_frame(who, u, dims[1:]).expand_dims(dims[0]) if one else _from_frame(who, u, dims)
    if not isinstance(u, xr.DataArray):
        return None
    shared = [dim for dim in dims if dim in u.dims]
    rest = [dim for dim in u.dims if dim not in shared]
    return u.transpose(*shared, *rest) if shared[:1] == [dims[0]] and len(rest) < 2 else u


def _from_frame(who: str, u: pd.DataFrame, dims: tuple[str, ...]) -> xr.DataArray:
    if isinstance(u.index, pd.MultiIndex) or isinstance(u.columns, pd.MultiIndex):
        raise DataError(f"{who}: u must have plain rows and columns, got a MultiIndex; reset it")
    coords: dict[str, Any] = {dims[0]: index_labels(u.index), INPUT: index_labels(u.columns)}
    return xr.DataArray(real_numbers(f"{who}: u", u), dims=(dims[0], INPUT), coords=coords)


def _rows(who: str, u: xr.DataArray, observations: xr.DataArray, dim: str) -> xr.DataArray:
    """``u`` in the order of the data along ``dim``; rows that are merely counted are in order already."""
    wanted, given = observations[dim].values, u[dim].values
    order = places(wanted, given)
    if order is not None:
        return u.isel({dim: order})
    if len(wanted) == len(given) and (_counted(given, wanted) or _counted(wanted, given)):
        return u
    odd = [label for label in given.tolist() if label not in set(wanted.tolist())]
    raise DataError(
        f"{who}: u must have the {dim}s of x, {_few(wanted)}, got {_few(given)}"
        + (f", {odd[0]!r} among them" if odd else "")
        + "; select them, or pass u.to_numpy() if the rows are in the order of x"
    )


def _counted(labels: np.ndarray, others: np.ndarray) -> bool:
    """Whether ``labels`` are the numbers 0, 1, 2, ... that pandas gives unnamed rows, beside names."""
    counting = np.array_equal(labels, np.arange(len(labels)))
    return counting and labels.dtype.kind in "iu" and others.dtype.kind not in "biuf"


def _few(labels: np.ndarray) -> str:
    shown = ", ".join(map(str, labels[:3]))
    return f"{shown}, ... ({len(labels)})" if len(labels) > 3 else shown
