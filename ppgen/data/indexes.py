"""Labels of rows and steps as pandas holds them, as plain arrays that any answer and any file can hold."""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ppgen.errors import DataError

__all__ = ["check_times", "index_labels", "shared_labels"]

UNEVEN = 1.5  # the longest step of an even axis is at most so many times the shortest

_log = logging.getLogger("ppgen")
_told: set[str] = set()


def index_labels(index: pd.Index) -> np.ndarray:
    """Labels of an index: periods as the time they begin, times with a zone in UTC, text as text."""
    if isinstance(index, pd.PeriodIndex):
        index = index.to_timestamp()
    if isinstance(index, pd.DatetimeIndex) and index.tz is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    return np.asarray(index, dtype=str) if index.inferred_type == "string" else index.to_numpy()


def shared_labels(indexes: Sequence[pd.Index], name: str) -> np.ndarray | None:
    """Labels along the longest of some axes, of which the others have the first.

    None where they have others, which the log then says, and for rows that pandas merely counts.
    """
    if all(isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1 for index in indexes):
        return None
    labels = [index_labels(index) for index in indexes]
    longest = max(labels, key=len)
    if all(pd.Index(one).equals(pd.Index(longest[: len(one)])) for one in labels):
        return longest
    tell(f"{name}: the frames have different rows (times, say), so answers number their steps from 0")
    return None


def check_times(labels: np.ndarray, name: str) -> None:
    """Refuse dates that do not go forward, and say so where steps are uneven: a model takes them for neighbours.

    Raises
    ------
    DataError : dates or durations that are out of order, or occur twice.
    """
    if labels.dtype.kind not in "iufmM" or len(labels) < 2:
        return
    steps = np.diff(labels).astype(float)
    if labels.dtype.kind in "mM" and not (steps > 0).all():
        place = int(np.flatnonzero(~(steps > 0))[0])
        raise DataError(
            f"{name}: times must go forward, got {labels[place]} and then {labels[place + 1]}; sort the rows, and give "
            "each recording as a sequence of its own"
        )
    if not (steps > 0).all():
        tell(f"{name}: labels of the steps do not go forward; each row is taken to follow the one above it")
    elif steps.max() > UNEVEN * steps.min() and not _regular(labels):
        tell(
            f"{name}: steps are uneven, from {np.diff(labels).min()} to {np.diff(labels).max()}, and each row is taken "
            "as one step after the one above it; put rows of NaN where some are missing"
        )


def tell(message: str) -> None:
    """Say it in the log, once."""
    if message not in _told:
        _told.add(message)
        _log.warning(message)


def _regular(labels: np.ndarray) -> bool:
    """Whether dates follow a calendar, as months and working days do."""
    return labels.dtype.kind == "M" and len(labels) > 2 and pd.infer_freq(pd.DatetimeIndex(labels)) is not None
