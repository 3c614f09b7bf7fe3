"""The labelled layer: whatever people hold becomes one DataArray with named dims, float64, NaN = not observed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from scipy.sparse import issparse
from torch import Tensor

from ppgen.data.indexes import check_times, index_labels, shared_labels
from ppgen.data.tables import as_frame, real_numbers
from ppgen.data.views import beside
from ppgen.errors import DataError

__all__ = ["as_observations", "exists", "lengths", "like", "to_tensor"]

DIMS = ("sequence", "time", "feature")
LARGEST_DENSE = 2**30  # bytes of a sparse matrix, made dense


def as_observations(
    x: object,
    *,
    dims: Sequence[str] = DIMS,
    name: str = "x",
    coords: Mapping[str, Sequence] | None = None,
) -> xr.DataArray:
    """``x`` as a labelled float64 array; NaN means not observed.

    Parameters
    ----------
    x :
        - an array or tensor with exactly ``len(dims)`` axes; entries masked in a masked array become NaN;
        - a list or dict of arrays without the first dim (ragged along the second): shorter ones end in NaN, the keys
          of a dict label the first dim;
        - a DataFrame or Series of numbers (booleans are 0 and 1, a missing entry of any type is NaN): where there are
          three dims one sequence, rows are the second dim, columns the third; where there are two, rows and columns;
          where there is one, the only column;
        - where there are two dims, neither of them time, a dict of tables {view: rows and columns} side by side, their
          rows matched by label; see :func:`ppgen.data.views.beside`;
        - a sparse matrix, of scipy or torch, that takes no more than 1 GB when dense; what it does not hold is zero;
        - a DataArray with these dims by name (the first may be absent), or a Dataset that holds just one.
    dims : names of the axes. The meaning of an axis is never guessed from its length.
    name : name of the array in messages and in the result.
    coords : labels for dims that ``x`` itself does not label.

    Returns
    -------
    xarray.DataArray : with dims ``dims``; when the first two are (sequence, time), a coordinate ``length`` along
        sequence counts the frames up to the end of each sequence as it was given.

    Raises
    ------
    DataError : wrong number of axes or dim names, a sparse matrix that would be too large, text, objects, complex
        numbers, infinite values, or dates that do not go forward; said in words.

    Examples
    --------
    >>> import numpy as np
    >>> as_observations({"a": np.zeros((3, 2)), "b": np.ones((2, 2))}).sizes
    Frozen({'sequence': 2, 'time': 3, 'feature': 2})
    """
    dims = tuple(dims)
    if isinstance(x, xr.Dataset | xr.DataArray):
        array = _from_xarray(x, dims, name)
    elif isinstance(x, pd.DataFrame | pd.Series):
        array = _from_table(x, dims, name)
    elif isinstance(x, Mapping) and _is_views(x, dims):
        read = {str(view): as_observations(one, dims=dims, name=f"{name}[{view!r}]") for view, one in x.items()}
        array = beside(read, name)
    elif isinstance(x, Mapping):
        array = _from_ragged(list(x.values()), dims, name, labels=[str(k) if not _scalar(k) else k for k in x])
    elif isinstance(x, list | tuple):
        array = _from_ragged(list(x), dims, name)
    else:
        array = _from_array(x, dims, name)
    array = _with_coords(array, coords or {}, name)
    _refuse_infinite(array, name)
    if not array.size:
        raise DataError(f"{name}: must hold at least one entry, got shape {array.shape}; pass data")
    return _with_lengths(_with_times(array, name)).rename(name)


def to_tensor(observations: xr.DataArray) -> Tensor:
    """The values as a float64 tensor that shares no memory with them."""
    return torch.tensor(np.ascontiguousarray(observations.values, dtype=np.float64))


def lengths(x: Float[Tensor, "N T *D"]) -> Int[Tensor, " N"]:
    """Return, per sequence, the index of the last frame with any observed entry, plus one (0 when there is none)."""
    if x.ndim < 2:
        raise DataError(f"lengths: x must have shape (N, T, ...), got {tuple(x.shape)}; add the missing axis")
    seen = ~torch.isnan(x)
    seen = seen.flatten(2).any(-1) if x.ndim > 2 else seen
    steps = torch.arange(1, x.shape[1] + 1, device=x.device)
    return (seen * steps).amax(1) if x.shape[1] else steps.new_zeros(len(x))


def exists(x: Float[Tensor, "N T *D"]) -> Bool[Tensor, "N T"]:
    """Tell the steps of each sequence from those past its end."""
    return torch.arange(x.shape[1], device=x.device) < lengths(x)[:, None]


def like(
    observations: xr.DataArray,
    values: Tensor | np.ndarray,
    dims: Sequence[str],
    *,
    name: str | None = None,
    coords: Mapping[str, Sequence] | None = None,
) -> xr.DataArray:
    """``values`` with named ``dims``, labelled as ``observations`` is wherever the two share a dim.

    Raises
    ------
    DataError : the number of axes, or the length of a shared dim, differs.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != len(dims):
        raise DataError(f"like: values must have dims {tuple(dims)}, got shape {array.shape}; name every axis")
    for dim, size in zip(dims, array.shape, strict=True):
        if dim in observations.sizes and observations.sizes[dim] != size:
            raise DataError(f"like: {dim} must have length {observations.sizes[dim]} like the data, got {size}")
    shared = {key: coord for key, coord in observations.coords.items() if coord.dims and set(coord.dims) <= set(dims)}
    return xr.DataArray(array, dims=tuple(dims), coords={**shared, **(coords or {})}, name=name)


def _from_xarray(x: xr.Dataset | xr.DataArray, dims: tuple[str, ...], name: str) -> xr.DataArray:
    if isinstance(x, xr.Dataset):
        variables = list(map(str, x.data_vars))
        if len(variables) != 1:
            raise DataError(f"{name}: a Dataset must hold one variable, got {variables}; pass dataset[variable]")
        x = x[variables[0]]
    if set(x.dims) == set(dims[1:]):
        x = x.expand_dims(dims[0])
    if set(x.dims) != set(dims):
        raise DataError(
            f"{name}: dims must be {', '.join(dims)}, got {', '.join(map(str, x.dims)) or 'none'}; use .rename(...)"
        )
    x = x.transpose(*dims)
    return x.copy(data=_floats(x.values, name))


def _from_table(x: pd.DataFrame | pd.Series, dims: tuple[str, ...], name: str) -> xr.DataArray:
    """A table as an array of rows, and of columns if they are a dim; with three dims the one member of the first."""
    if len(dims) == 3:
        return _from_table(x, dims[1:], name).expand_dims(dims[0])
    frame = as_frame(x)
    if any(isinstance(kind, pd.SparseDtype) for kind in frame.dtypes):
        _check_dense_size(frame.shape, name)
    _check_table(frame, dims, name)
    values = real_numbers(f"{name}:", frame)
    named = {} if frame.index.name is None else {"long_name": str(frame.index.name)}  # as CF and xarray's plots have it
    coords: dict[str, Any] = {dims[0]: (dims[0], index_labels(frame.index), named)}
    if len(dims) == 1:
        return xr.DataArray(values[:, 0], dims=dims, coords=coords)
    if not (isinstance(x, pd.Series) and x.name is None):
        coords[dims[1]] = index_labels(frame.columns)
    return xr.DataArray(values, dims=dims, coords=coords)


def _check_table(frame: pd.DataFrame, dims: tuple[str, ...], name: str) -> None:
    """Refuse tables that are not an array of numbers with these dims."""
    if len(dims) > 2:
        raise DataError(f"{name}: must have dims {', '.join(dims)}, got a DataFrame; pass an array or a DataArray")
    if isinstance(frame.index, pd.MultiIndex) or isinstance(frame.columns, pd.MultiIndex):
        raise DataError(
            f"{name}: a DataFrame must have plain rows and columns, got a MultiIndex; pass a dict of frames"
        )
    columns = frame.columns
    if not columns.is_unique:
        raise DataError(f"{name}: columns must differ, got {columns[columns.duplicated()].tolist()} more than once")
    if len(columns) == 0 or (len(dims) == 1 and len(columns) > 1):
        expected = "one column" if len(dims) == 1 else "columns"
        raise DataError(
            f"{name}: a DataFrame must have {expected}, got {columns.tolist()[:6]}; select what is observed"
        )


def _from_ragged(items: list[object], dims: tuple[str, ...], name: str, labels: Sequence | None = None) -> xr.DataArray:
    """Arrays of several lengths as one, shorter ones ending in NaN; ``labels`` are those of the first dim."""
    if not items:
        raise DataError(f"{name}: must hold at least one {dims[0]}, got none; pass one array per {dims[0]}")
    arrays = [_one(item, dims, f"{name}[{i if labels is None else labels[i]!r}]") for i, item in enumerate(items)]
    tails = {a.shape[1:] for a in arrays}
    if len(tails) > 1:
        raise DataError(f"{name}: every {dims[0]} must have the same {dims[-1]} axis, got {sorted(tails)[:4]}")
    longest = max(len(a) for a in arrays)
    values = np.full((len(arrays), longest, *tails.pop()), np.nan)
    for row, array in zip(values, arrays, strict=True):
        row[: len(array)] = array.values
    coords: dict[str, Any] = {} if labels is None else {dims[0]: list(labels)}
    for dim in dims[2:]:
        coords |= _common(arrays, dim, name)
    rows = shared_labels([a[dims[1]].values if dims[1] in a.coords else None for a in arrays], name)
    coords |= {} if rows is None else {dims[1]: rows}
    found = xr.DataArray(values, dims=dims, coords=coords)
    return found.assign_coords({"length": (dims[0], [len(a) for a in arrays])}) if dims[:2] == DIMS[:2] else found


def _common(arrays: list[xr.DataArray], dim: str, name: str) -> dict[str, np.ndarray]:
    """Labels along ``dim``, which must be the same, in one order, wherever there are any."""
    labels = [a[dim].values for a in arrays if dim in a.coords]
    for other in labels[1:]:
        if other.tolist() != labels[0].tolist():
            raise DataError(
                f"{name}: every frame must have the columns {labels[0].tolist()[:8]} in this order, "
                f"got {other.tolist()[:8]}; reorder them"
            )
    return {dim: labels[0]} if labels else {}


def _one(item: object, dims: tuple[str, ...], name: str) -> xr.DataArray:
    """One member of a ragged collection with the dims after the first."""
    if isinstance(item, pd.DataFrame | pd.Series):
        return _with_times(_from_table(item, dims[1:], name), name)
    if isinstance(item, xr.DataArray):
        return _with_times(_from_xarray(item, dims, name)[0], name)
    if isinstance(item, list | tuple):
        raise DataError(f"{name}: must be an array, got a {type(item).__name__}; wrap it in numpy.array(...)")
    return _from_array(item, dims[1:], name)


def _with_times(array: xr.DataArray, name: str) -> xr.DataArray:
    """The same, after its times were looked at."""
    if "time" in array.dims and "time" in array.coords:
        check_times(array["time"].values, name)
    return array


def _from_array(x: object, dims: tuple[str, ...], name: str) -> xr.DataArray:
    if issparse(x) or (isinstance(x, Tensor) and x.layout != torch.strided):
        x = _dense(x, name)
    if isinstance(x, Tensor):
        x = x.detach().cpu().resolve_conj().numpy()
    if not isinstance(x, np.ndarray):
        raise DataError(
            f"{name}: must be an array, tensor, list or dict of arrays, DataFrame or DataArray, got {type(x).__name__}"
        )
    if x.ndim != len(dims):
        advice = _axes_advice(x, dims, name)
        raise DataError(f"{name}: must have {len(dims)} axes ({', '.join(dims)}), got shape {x.shape}; {advice}")
    return xr.DataArray(_floats(x, name), dims=dims)


def _axes_advice(x: np.ndarray, dims: tuple[str, ...], name: str) -> str:
    """Which line adds the axes that an array lacks: what they mean is for the caller to say."""
    if x.dtype == object:
        return f"these are objects: pass a list of arrays, list({name})"
    if len(dims) - x.ndim == 1 and len(dims) > 1:
        return f"pass {name}[None] if this is one {dims[0]}, {name}[..., None] if it has one {dims[-1]}"
    if len(dims) == 3 and x.ndim == 1:
        return f"pass {name}[None, :, None] if this is one {dims[0]} of one {dims[-1]}"
    return "add or name axes"


def _is_views(x: Mapping[Any, Any], dims: tuple[str, ...]) -> bool:
    """Tell whether a dict holds tables of rows, not rows."""
    return len(dims) == 2 and "time" not in dims and any(getattr(one, "ndim", 1) == 2 for one in x.values())


def _dense(x: Any, name: str) -> object:  # noqa: ANN401 (a sparse matrix of torch or scipy)
    _check_dense_size(x.shape, name)
    return x.to_dense() if isinstance(x, Tensor) else x.toarray()


def _check_dense_size(shape: Sequence[int], name: str) -> None:
    size = math.prod(shape) * 8
    if size > LARGEST_DENSE:
        raise DataError(
            f"{name}: a sparse matrix must take {LARGEST_DENSE / 2**30:.0f} GB at most when dense, as this model reads "
            f"it, got {tuple(shape)}, {size / 2**30:.1f} GB; select rows or columns, or use a model of sparse data"
        )


def _floats(x: np.ndarray, name: str) -> np.ndarray:
    """A float64 copy; masked entries become NaN."""
    mask = np.ma.getmaskarray(x) if isinstance(x, np.ma.MaskedArray) else None
    array = np.asarray(x.data if isinstance(x, np.ma.MaskedArray) else x)
    if array.dtype.kind not in "fiub":
        hint = "use .real and .imag as features" if array.dtype.kind == "c" else "encode it as numbers"
        raise DataError(f"{name}: must hold real numbers, got {array.dtype}; {hint}")
    values = array.astype(np.float64)
    if mask is not None:
        values[mask] = np.nan
    return values


def _with_coords(array: xr.DataArray, coords: Mapping[str, Sequence], name: str) -> xr.DataArray:
    for dim, labels in coords.items():
        if dim not in array.dims:
            raise DataError(f"{name}: coords must label {', '.join(map(str, array.dims))}, got {dim!r}")
        if len(labels) != array.sizes[dim]:
            raise DataError(f"{name}: {dim} must have {array.sizes[dim]} labels, got {len(labels)}")
        if dim not in array.coords:
            array = array.assign_coords({dim: list(labels)})
    return array


def _with_lengths(array: xr.DataArray) -> xr.DataArray:
    """Note where each sequence ends, unless the caller's own lengths are there already."""
    if array.dims[:2] != DIMS[:2] or "length" in array.coords:
        return array
    return array.assign_coords(length=("sequence", lengths(to_tensor(array)).numpy()))


def _refuse_infinite(array: xr.DataArray, name: str) -> None:
    if np.isinf(array.values).any():
        place = np.argwhere(np.isinf(array.values))[0].tolist()
        where = ", ".join(f"{dim} {i}" for dim, i in zip(array.dims, place, strict=True))
        raise DataError(f"{name}: must be finite or NaN, got inf at {where}; write NaN for not observed")


def _scalar(key: object) -> bool:
    return isinstance(key, str | int | float)
