"""Labels of rows and steps as pandas holds them, as plain arrays that any answer and any file can hold."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ppgen.errors import DataError

__all__ = ["check_times", "index_labels", "plain_labels", "shared_labels"]

UNEVEN = 1.5  # times the shortest step is the longest of an even axis, as that of months

log = logging.getLogger(__name__)
_told: set[str] = set()


def index_labels(index: pd.Index) -> np.ndarray:
    """Labels of an index: periods as the time they begin, times with a zone in UTC, text as text."""
    if isinstance(index, pd.PeriodIndex):
        index = index.to_timestamp()
    if isinstance(index, pd.DatetimeIndex) and index.tz is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    return np.asarray(index, dtype=str) if index.inferred_type == "string" else index.to_numpy()


def plain_labels(labels: object) -> list[int | float | bool | str]:
    """Labels of any kind as numbers and text, which any file can hold."""
    values = np.asarray(labels)
    return [one if values.dtype.kind in "biuf" else str(one) for one in values.tolist()]


def shared_labels(labels: Sequence[np.ndarray | None], name: str) -> np.ndarray | None:
    """Labels along the longest of some axes, of which the others have the first.

    None where they have others, which the log then says, or none, or are merely counted.
    """
    if all(one is None or np.array_equal(one, np.arange(len(one))) for one in labels):
        return None
    longest = max((one for one in labels if one is not None), key=len)
    if all(one is not None and pd.Index(one).equals(pd.Index(longest[: len(one)])) for one in labels):
        return longest
    tell(f"{name}: labels along its members (times, say) differ, so answers count their rows from 0")
    return None


def check_times(labels: np.ndarray, name: str) -> None:
    """Refuse dates that do not go forward, and say so where steps are uneven: a model takes rows for neighbours.

    Raises
    ------
    DataError : dates or durations that are out of order, or occur twice.
    """
    if labels.dtype.kind not in "iufmM" or len(labels) < 2:
        return
    dates = labels.dtype.kind in "mM"
    steps = np.diff(labels if dates else labels.astype(float)).astype(float)
    if dates and not (steps > 0).all():
        place = int(np.flatnonzero(~(steps > 0))[0])
        raise DataError(
            f"{name}: times must go forward, got {labels[place]} and then {labels[place + 1]}; sort the rows, and give "
            "each recording as a sequence of its own"
        )
    if not (steps > 0).all():
        tell(f"{name}: labels of the steps do not go forward; each row is taken to follow the one above it")
    elif steps.max() > UNEVEN * steps.min() and not _working(labels):
        shortest, longest = (np.diff(labels)[at] for at in (steps.argmin(), steps.argmax()))
        words = [str(pd.Timedelta(step)) if dates else f"{step:g}" for step in (shortest, longest)]
        tell(
            f"{name}: steps are uneven, from {words[0]} to {words[1]}, and each row is taken as one step after the one "
            "above it; put rows of NaN where some are missing"
        )


def tell(message: str) -> None:
    """Say it in the log, once."""
    if message not in _told:
        _told.add(message)
        log.warning(message)


def _working(labels: np.ndarray) -> bool:
    """Tell whether dates are the working days, one after the other, or every so many of them."""
    if labels.dtype.kind != "M":
        return False
    days = labels.astype("datetime64[D]")
    steps = np.busday_count(days[:-1], days[1:])
    return bool(np.is_busday(days).all() and steps[0] > 0 and (steps == steps[0]).all())
