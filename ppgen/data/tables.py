"""Tables of pandas as numbers: real ones, whole ones, booleans; a missing entry is NaN."""

import numpy as np
import pandas as pd

from ppgen.errors import DataError

__all__ = ["as_frame", "real_numbers", "whole_numbers"]

NUMBERS = (
    "integer",
    "floating",
    "mixed-integer-float",
    "boolean",
    "decimal",
    "empty",
)  # what objects may turn out to be
CATEGORIES = (
    "encode categories as whole numbers (`.astype('category').cat.codes`, which has -1 for a missing one: in x make "
    "it NaN, in u leave the row out or give it a number of its own) or as columns of 0 and 1 (`pandas.get_dummies`), "
    "or drop them"
)
DATES = "write dates as numbers (`(date - date.min()).dt.days`), or drop them"
COMPLEX = "pass real and imaginary parts as columns of their own"


def as_frame(table: pd.DataFrame | pd.Series) -> pd.DataFrame:
    """The table itself, or the one column that a Series is."""
    return table.to_frame() if isinstance(table, pd.Series) else table


def real_numbers(what: str, frame: pd.DataFrame) -> np.ndarray:
    """Every column in float64, (rows, columns); missing entries are NaN, and True is one.

    Parameters
    ----------
    what : is read, for messages: ``"x"``.

    Raises
    ------
    DataError : columns of text, dates, categories or complex numbers, by name, with how to encode them.
    """
    _refuse_others(what, frame)
    columns = [frame.iloc[:, place] for place in range(frame.shape[1])]
    return np.stack([column.to_numpy(np.float64, na_value=np.nan) for column in columns], -1)


def whole_numbers(what: str, frame: pd.DataFrame) -> np.ndarray | None:
    """Every column in int64, (rows, columns), where all are whole numbers without a gap; else None.

    Raises
    ------
    DataError : as `real_numbers`.
    """
    _refuse_others(what, frame)
    whole = all(pd.api.types.is_integer_dtype(kind) for kind in frame.dtypes) and not frame.isna().to_numpy().any()
    return frame.to_numpy(np.int64) if whole else None


def _refuse_others(what: str, frame: pd.DataFrame) -> None:
    bad = {str(name): column for name, column in frame.items() if not _is_real(column)}
    if not bad:
        return
    kinds = [pd.api.types.infer_dtype(column, skipna=True) for column in bad.values()]
    if all(kind.startswith(("date", "timedelta", "period")) for kind in kinds):
        advice = DATES
    else:
        advice = COMPLEX if set(kinds) == {"complex"} else CATEGORIES
    raise DataError(f"{what} must hold numbers, its columns {list(bad)[:6]} do not; {advice}")


def _is_real(column: pd.Series) -> bool:
    """Tell whether a column holds real numbers, also as objects, of which some or all may be missing."""
    if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_complex_dtype(column.dtype):
        return False
    if column.dtype == object:
        return pd.api.types.infer_dtype(column, skipna=True) in NUMBERS
    return bool(pd.api.types.is_numeric_dtype(column.dtype))
