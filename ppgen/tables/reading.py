"""Tables to fill: bundled ones, or a person's own file of comma-separated values."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from jaxtyping import Float

from ppgen.behavior.tables import csv_table
from ppgen.errors import DataError

__all__ = ["BUNDLED", "Table", "bundled_table", "read_table"]

BUNDLED = ("wine", "breast_cancer", "diabetes")
FEWEST = 20  # rows


@final
@dataclass(frozen=True)
class Table:
    """Columns of numbers in standard units.

    Attributes
    ----------
    name : what the table is called.
    columns : names of its D columns.
    values : (N, D) in standard deviations from the mean of each column; NaN is missing.
    center, spread : (D,), mean and standard deviation of each column in its own units.
    left_out : columns that hold no numbers, or one value, and why.
    """

    name: str
    columns: tuple[str, ...]
    values: Float[np.ndarray, "N D"]
    center: Float[np.ndarray, " D"]
    spread: Float[np.ndarray, " D"]
    left_out: dict[str, str]

    def restored(self, values: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B D"]:
        """Values in the units of the columns."""
        return values * self.spread + self.center


def bundled_table(name: str) -> Table:
    """One of the tables that come with scikit-learn, by its name."""
    from sklearn import datasets

    if name not in BUNDLED:
        raise DataError(f"missing_data: --table must be one of {BUNDLED}, got {name!r}")
    found = getattr(datasets, f"load_{name}")(as_frame=True).data
    return _standard(name, found)


def read_table(path: Path) -> Table:
    """Read the columns of numbers of a file of comma-separated values; an empty cell is missing.

    Raises
    ------
    FileError, DataError : no such file, no table, too few rows or columns; said in words.
    """
    table = csv_table("missing_data", path)
    return _standard(path.stem, table)


def _standard(name: str, table: pd.DataFrame) -> Table:
    kept, left_out = {}, {}
    for column in table.columns:
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
        if (np.isnan(numbers) & table[column].notna().to_numpy()).any():
            left_out[str(column)] = "holds words"
        elif np.isinf(numbers).any():
            left_out[str(column)] = "holds infinite numbers"
        elif len(np.unique(numbers[~np.isnan(numbers)])) < 2:
            left_out[str(column)] = "holds one value or none"
        else:
            kept[str(column)] = numbers
    if len(kept) < 2:
        raise DataError(
            f"missing_data: {name} must have at least two columns of numbers that vary, got {len(kept)}; left out: "
            f"{left_out or 'none'}"
        )
    values = np.stack(list(kept.values()), -1)
    if len(values) < FEWEST:
        raise DataError(f"missing_data: {name} must have at least {FEWEST} rows, got {len(values)}")
    center, spread = np.nanmean(values, 0), np.nanstd(values, 0)
    return Table(name, tuple(kept), (values - center) / spread, center, spread, left_out)
