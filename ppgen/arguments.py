"""Arguments of an answer, refused in words before they cost time or memory."""

import math
import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import DataError, FileError

__all__ = [
    "as_device",
    "as_dtype",
    "as_folder",
    "as_inputs",
    "require_at_least",
    "require_memory",
    "require_step_sizes",
    "require_within",
]

LARGEST_ANSWER = 4 * 2**30  # bytes that one answer may take


def as_inputs(what: str, u: object, x: Tensor, *, whole: bool = False, names: Sequence[object] | None = None) -> Tensor:
    """Inputs as a tensor in the type of ``x`` with a row per row of it; ``whole`` numbers may stay whole, in int64.

    Parameters
    ----------
    what : is read, for messages: ``"svi: u"``.
    names : of the columns, for messages.

    Raises
    ------
    DataError : text or objects, another number of rows, or NaN, which only observations may hold.
    """
    try:
        values = np.asarray(u.detach().cpu() if isinstance(u, Tensor) else u)
    except ValueError as error:
        raise DataError(
            f"{what} must be one array, got rows of different lengths; pad shorter ones with zeros past their end"
        ) from error
    if values.dtype.kind not in "biuf":
        raise DataError(f"{what} must hold numbers, got {values.dtype}; encode it")
    if values.ndim == 0 or len(values) != len(x):
        one = x.ndim == 3 and len(x) == 1 and values.ndim and len(values) == x.shape[1]
        name = what.partition(": ")[2] or what
        advice = f"it lacks the axis of sequences, pass {name}[None]" if one else f"pass a row of {name} for each of x"
        raise DataError(f"{what} must have {len(x)} rows like x, got shape {values.shape}; {advice}")
    if not np.isfinite(values).all():
        place = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        column = f", of input {place[-1] if names is None else names[place[-1]]!r}" if values.ndim > 1 else ""
        raise DataError(
            f"{what} must be finite, got {values[place]} at {place}{column}; only x may have gaps: fill or drop "
            "them, or make that input a column of x"
        )
    kind = torch.int64 if whole and values.dtype.kind in "iu" else x.dtype
    return torch.tensor(np.ascontiguousarray(values), dtype=kind)


def as_device(who: str, name: str) -> torch.device | None:
    """The device of this name; None for ``"auto"``, which is where the data or the model are.

    Raises
    ------
    DataError : torch has no such device here.
    """
    if name == "auto":
        return None
    try:
        torch.zeros(1, device=name).tolist()  # "meta" is a device without numbers
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        cause = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(
            f'{who}: device must be "auto" or one that torch has here, got {name!r} ({cause}); "cpu" always works'
        ) from error


def as_dtype(who: str, dtype: object) -> torch.dtype:
    """A type that a density can be computed in.

    Raises
    ------
    DataError : no floating type of torch's.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise DataError(f"{who}: dtype must be torch.float64 or torch.float32, got {dtype!r}; pass one of them")
    return dtype


def as_folder(who: str, checkpoint: object) -> Path | None:
    """The folder of a checkpoint, refused before any work is done for it; None for None.

    Raises
    ------
    DataError : no path.
    FileError : a file, or a folder that cannot be made or written.
    """
    if checkpoint is None:
        return None
    if not isinstance(checkpoint, str | os.PathLike) or not str(checkpoint):
        raise DataError(f"{who}: checkpoint must name a folder, got {checkpoint!r}; pass a path")
    folder = Path(checkpoint)
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise FileError(f"{who}: checkpoint must name a folder, got: {error.strerror}; pass another path") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise FileError(
            f"{who}: checkpoint {folder} must be a folder, but nothing can be written in {there}; pass another path"
        )
    return folder


def require_at_least(what: str, value: object, smallest: int) -> None:
    """Raise `DataError` unless the value is a whole number of at least ``smallest``."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise DataError(f"{what} must be a whole number, got {value!r}; pass an int")
    if value < smallest:
        raise DataError(f"{what} must be at least {smallest}, got {value}; pass a larger one")


def require_within(what: str, value: object, low: float, high: float, advice: str) -> None:
    """Raise `DataError` unless the value is a number strictly between ``low`` and ``high``."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and low < cast(float, value) < high):
        rule = "positive" if (low, high) == (0, math.inf) else f"between {low} and {high}"
        raise DataError(f"{what} must be {rule}, got {value!r}; {advice}")


def require_step_sizes(who: str, delay: float, forgetting: float, *, least: int = 0) -> None:
    """Raise `DataError` where ``(step + delay) ** -forgetting`` are no falling step sizes of one at most."""
    if not least <= delay < math.inf:
        raise DataError(f"{who}: delay must be {least or 'zero'} or more, got {delay}")
    if not 0 < forgetting <= 1:
        raise DataError(f"{who}: forgetting must be above 0 and at most 1, got {forgetting}")


def require_memory(who: str, draws: int, entries: int, advice: str) -> None:
    """Raise `DataError` when ``draws`` of ``entries`` float64 numbers would take more than 4 GB, or are none."""
    require_at_least(f"{who}: draws", draws, 1)
    size = draws * entries * 8
    if size > LARGEST_ANSWER:
        raise DataError(
            f"{who}: {draws} draws of {entries} entries must fit in {LARGEST_ANSWER / 2**30:.0f} GB, "
            f"got {size / 2**30:.1f} GB; {advice}"
        )
