"""Arguments of an answer, refused in words before they cost time or memory."""

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import DataError

__all__ = ["as_device", "as_inputs", "require_at_least", "require_memory"]

MEMORY = 4 * 2**30  # bytes that one answer may take


def as_inputs(who: str, u: object, x: Tensor) -> Tensor | None:
    """Inputs as a float64 tensor with a row per row of ``x``; None stays None.

    Raises
    ------
    DataError : text or objects, another number of rows, or NaN, which only observations may hold.
    """
    if u is None:
        return None
    values = np.asarray(u.detach().cpu() if isinstance(u, Tensor) else u)
    if values.dtype.kind not in "biuf":
        raise DataError(f"{who}: u must hold numbers, got {values.dtype}; encode it")
    if values.ndim == 0 or len(values) != len(x):
        raise DataError(f"{who}: u must have {len(x)} rows like x, got shape {values.shape}")
    if not np.isfinite(values).all():
        place = tuple(np.argwhere(~np.isfinite(values))[0].tolist())
        raise DataError(
            f"{who}: u must be finite, got {values[place]} at {place}; only x may have gaps, fill or drop them"
        )
    return torch.tensor(values, dtype=x.dtype)


def as_device(who: str, name: str) -> torch.device | None:
    """The device of this name; None for ``"auto"``, which is where the data or the model are.

    Raises
    ------
    DataError : torch has no such device here.
    """
    if name == "auto":
        return None
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        cause = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(
            f'{who}: device must be "auto" or one that torch has here, got {name!r} ({cause}); "cpu" always works'
        ) from error


def require_at_least(what: str, value: int, smallest: int) -> None:
    """Raise `DataError` for a count below ``smallest``."""
    if value < smallest:
        raise DataError(f"{what} must be at least {smallest}, got {value}; pass a larger one")


def require_memory(who: str, draws: int, entries: int, advice: str) -> None:
    """Raise `DataError` when ``draws`` of ``entries`` float64 numbers would take more than 4 GB."""
    size = draws * entries * 8
    if size > MEMORY:
        raise DataError(
            f"{who}: {draws} draws of {entries} entries must fit in {MEMORY / 2**30:.0f} GB, "
            f"got {size / 2**30:.1f} GB; {advice}"
        )
