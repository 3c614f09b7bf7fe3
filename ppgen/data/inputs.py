"""Inputs ``u`` beside the data: rows by the labels of ``x``, columns by the names of those of the fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor

from ppgen.arguments import as_inputs
from ppgen.data.arrays import to_tensor
from ppgen.data.indexes import index_labels
from ppgen.data.parts import Inputs, each
from ppgen.data.tables import as_frame, real_numbers, whole_numbers
from ppgen.errors import DataError

__all__ = [
    "INPUT",
    "LabelledInputs",
    "aligned_features",
    "counted",
    "few",
    "from_frame",
    "input_dims",
    "labels_of",
    "positions",
    "read_inputs",
    "read_one",
]

INPUT = "input"  # what the last axis of inputs is called


@final
@dataclass(frozen=True, eq=False)
class LabelledInputs:
    """Inputs as they came: numbers with a row per row of the data; and names of columns, {axis: names}, if any."""

    values: Inputs = None
    names: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def shape(self) -> list[int] | dict[str, list[int]] | None:
        """Shape of the numbers: of one array, or of each by name."""
        return each(self.values, lambda part: list(part.shape))


def read_inputs(
    who: str, u: object, observations: xr.DataArray, known: Mapping[str, np.ndarray] | None = None
) -> LabelledInputs:
    """Read ``u``: labelled rows are brought into the order of the data, labelled columns into that of a fit.

    Parameters
    ----------
    who : name of the caller in messages.
    u : an array, tensor, DataFrame, Series or DataArray; a dict of them (or a Dataset), whose whole numbers stay whole;
        None for no inputs.
    observations : the data.
    known : names of the columns of the fit's own inputs by axis, where they had any.

    Raises
    ------
    DataError : other rows than those of the data, other columns than those of the fit, or what `as_inputs` refuses.
    """
    if u is None:
        return LabelledInputs()
    if not isinstance(u, Mapping):
        return LabelledInputs(*read_one(f"{who}: u", u, observations, INPUT, known or {}))
    if not u or not all(isinstance(name, str) for name in u):
        raise DataError(f"{who}: u must be a dict of inputs by name, got the keys {list(u)}; name each by a text")
    found = {
        str(name): read_one(f"{who}: u[{name!r}]", one, observations, f"{name}_{INPUT}", known or {}, whole=True)
        for name, one in u.items()
    }
    names = {axis: labels for _, own in found.values() for axis, labels in own.items()}
    return LabelledInputs({name: values for name, (values, _) in found.items()}, names)


def input_dims(u: Inputs, dims: Sequence[str]) -> dict[str, list[str]]:
    """Names of the axes of inputs beside data with ``dims``: of one array, as ``"u"``, or of each by its name."""
    named = u if isinstance(u, Mapping) else {} if u is None else {"u": u}
    last = {name: f"{name}_{INPUT}" if isinstance(u, Mapping) else INPUT for name in named}
    return {name: [*dims[: max(part.ndim - 1, 1)], last[name]][: part.ndim] for name, part in named.items()}


def read_one(
    what: str, u: object, observations: xr.DataArray, axis: str, known: Mapping[str, np.ndarray], *, whole: bool = False
) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Read one array of inputs, and the names of its columns, which lie along ``axis``, if it has some.

    Parameters
    ----------
    what : is read, for messages: ``"svi: u"``.
    known : names of the columns of the fit by axis; ``whole`` numbers stay whole.

    Raises
    ------
    DataError : as `read_inputs`.
    """
    labelled = _labelled(what, u, observations, whole=whole)
    if labelled is None:
        return as_inputs(what, u, to_tensor(observations), whole=whole), {}
    for dim in labelled.dims if labelled.ndim == 1 else labelled.dims[:-1]:
        if dim in labelled.coords and dim in observations.coords:
            labelled = _rows(what, labelled, observations, str(dim))
        elif dim == "time" and dim in labelled.coords:
            _check_forward(what, labelled[dim].values)
    last = labelled.dims[-1]
    found = labelled[last].values if labelled.ndim > 1 and last in labelled.coords else None
    if found is not None and axis in known:
        order = positions(known[axis], found)
        if order is None:
            raise DataError(
                f"{what} must have the inputs of the fit, {known[axis].tolist()}, got {found.tolist()}; "
                "rename or select them"
            )
        labelled, found = labelled.isel({last: order}), known[axis]
    names = None if found is None else found.tolist()
    values = as_inputs(what, labelled.values, to_tensor(observations), whole=whole, names=names)
    return values, {} if found is None else {axis: found}


def aligned_features(who: str, observations: xr.DataArray, labels: Mapping[str, np.ndarray]) -> xr.DataArray:
    """Data with its named features in the order of ``labels``, {dim: labels}; rows and steps stay where they are.

    Raises
    ------
    DataError : other features than those.
    """
    for dim in map(str, observations.dims[1:]):
        if dim == "time" or dim not in labels or dim not in observations.coords:
            continue
        ours, theirs = labels[dim], observations[dim].values
        order = positions(ours, theirs)
        if order is None:
            raise DataError(
                f"{who}: x must have the {dim}s of the fit, {ours.tolist()}, got {theirs.tolist()}; "
                "rename or select them"
            )
        observations = observations.isel({dim: order})
    return observations


def labels_of(observations: xr.DataArray) -> dict[str, np.ndarray]:
    """Labels of the axes that have some, {dim: labels}."""
    return {str(dim): observations[dim].values for dim in observations.dims if dim in observations.coords}


def positions(labels: Sequence[Any] | np.ndarray, among: Sequence[Any] | np.ndarray) -> np.ndarray | None:
    """Positions of ``labels`` ``among`` others; None if these are not the same ones."""
    ours, theirs = _index(labels), _index(among)
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


def _labelled(what: str, u: object, observations: xr.DataArray, *, whole: bool) -> xr.DataArray | None:
    """``u`` with named dims, those it shares with the data first, if it has labels at all."""
    dims = tuple(map(str, observations.dims))
    if isinstance(u, pd.DataFrame | pd.Series):
        if dims[1:2] == ("time",) and len(observations) == 1 and len(u) > 1:  # one row: inputs of the whole sequence
            return from_frame(what, as_frame(u), dims[1:], whole=whole).expand_dims(dims[0])
        found = from_frame(what, as_frame(u), dims, whole=whole)
        return found[:, 0] if isinstance(u, pd.Series) else found
    if not isinstance(u, xr.DataArray):
        return None
    shared = [dim for dim in dims if dim in u.dims]
    rest = [dim for dim in u.dims if dim not in shared]
    return u.transpose(*shared, *rest) if shared[:1] == [dims[0]] and len(rest) < 2 else u


def from_frame(what: str, u: pd.DataFrame, dims: tuple[str, ...], *, whole: bool) -> xr.DataArray:
    """A table of inputs with its rows along the first of ``dims``; ``whole`` numbers stay whole if all are.

    Raises
    ------
    DataError : rows or columns with several levels of labels, or what holds no numbers.
    """
    if isinstance(u.index, pd.MultiIndex) or isinstance(u.columns, pd.MultiIndex):
        raise DataError(f"{what} must have plain rows and columns, got a MultiIndex; reset it")
    values = whole_numbers(what, u) if whole else None
    coords: dict[str, Any] = {dims[0]: index_labels(u.index), INPUT: index_labels(u.columns)}
    return xr.DataArray(real_numbers(what, u) if values is None else values, dims=(dims[0], INPUT), coords=coords)


def _rows(what: str, u: xr.DataArray, observations: xr.DataArray, dim: str) -> xr.DataArray:
    """``u`` in the order of the data along ``dim``; rows that are merely counted are in order already.

    Of rows, but not of steps, there may be more than the data have: those are left out.
    """
    expected, got = observations[dim].values, u[dim].values
    ours = np.isin(got, expected) if dim == observations.dims[0] else np.ones(len(got), dtype=bool)
    order = positions(expected, got[ours])
    if order is not None:
        return u.isel({dim: np.flatnonzero(ours)[order]})
    if len(expected) == len(got) and (counted(got, expected) or counted(expected, got)):
        return u
    odd = [label for label in got.tolist() if label not in set(expected.tolist())]
    twice = "" if pd.Index(expected).is_unique and pd.Index(got).is_unique else " (some occur twice: in this order)"
    raise DataError(
        f"{what} must have the {dim}s of x, {few(expected)}{twice}, got {few(got)}"
        + (f", {odd[0]!r} among them" if odd else "")
        + "; select them, or pass u.to_numpy() if the rows are in the order of x"
    )


def _check_forward(what: str, times: np.ndarray) -> None:
    """Refuse steps whose numbers or dates do not go forward, where the data have none to bring them in order by."""
    if times.dtype.kind in "iufM" and not pd.Index(times).is_monotonic_increasing:
        raise DataError(
            f"{what} must have steps that go forward, for those of x have no labels to order them by, got "
            f"{few(times)}; sort it by its index, or pass u.to_numpy() if the rows are in the order of x"
        )


def counted(labels: np.ndarray, others: np.ndarray) -> bool:
    """Tell whether ``labels`` are the numbers 0, 1, 2, ... that pandas gives unnamed rows, beside names."""
    counting = np.array_equal(labels, np.arange(len(labels)))
    return counting and labels.dtype.kind in "iu" and others.dtype.kind not in "biuf"


def few(labels: np.ndarray) -> str:
    """The first labels and how many there are, for messages."""
    shown = ", ".join(map(str, labels[:3]))
    return f"{shown}, ... ({len(labels)})" if len(labels) > 3 else shown
