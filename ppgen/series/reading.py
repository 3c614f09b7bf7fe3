"""Time series to forecast: a person's own file, or series that come with statsmodels."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from jaxtyping import Float

from ppgen.behavior.tables import csv_table
from ppgen.errors import DataError

__all__ = ["BUNDLED", "Series", "bundled_series", "read_series"]

FEWEST = 40  # steps
HELD_OUT = 0.2  # of the steps, at the end
HARMONICS = 2  # of a season, at most

BUNDLED = {"nile": None, "co2": 12, "macro": None}
"""Name -> number of steps of a season."""


@final
@dataclass(frozen=True)
class Series:
    """One sequence in standard units.

    Attributes
    ----------
    name : what it is called.
    columns : names of the D series.
    times : labels of the T steps, for figures and tables.
    values : (T, D) in standard deviations from the mean of the steps before the held-out end; NaN is missing.
    center, spread : (D,), this mean and standard deviation.
    season : steps of a season, or None.
    train : number of steps before the held-out end.
    """

    name: str
    columns: tuple[str, ...]
    times: tuple[str, ...]
    values: Float[np.ndarray, "T D"]
    center: Float[np.ndarray, " D"]
    spread: Float[np.ndarray, " D"]
    season: int | None
    train: int

    def restored(self, values: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B D"]:
        """Values in the units of the series."""
        return values * self.spread + self.center

    def calendar(self, steps: int) -> Float[np.ndarray, "steps U"]:
        """Inputs of the first so many steps, ahead of the end too: a trend, and harmonics of the season."""
        time = np.arange(steps)
        trend = (time - self.train / 2) / (self.train / 2)
        waves = [] if self.season is None else range(1, min(HARMONICS, self.season // 2) + 1)
        angles = [2 * np.pi * k * time / float(self.season or 1) for k in waves]
        return np.stack([trend, *(f(angle) for angle in angles for f in (np.sin, np.cos))], -1)


def read_series(path: Path, columns: list[str], time: str | None, season: int | None) -> Series:
    """Read columns of a file of comma-separated values with a row for each step, in order; an empty cell is missing.

    Raises
    ------
    FileError, DataError : no such file or column, words where numbers should be; said in words.
    """
    table = csv_table("regimes", path)
    wanted = columns or [str(name) for name in table if name != time and pd.api.types.is_numeric_dtype(table[name])]
    if lacking := [name for name in [*wanted, *([time] if time else [])] if name not in table]:
        raise DataError(
            f"regimes: {path.name} must have the columns that were named, {lacking} lack; it has {list(table)}"
        )
    times = table[time].astype(str) if time else pd.Series(range(len(table))).astype(str)
    return _standard(path.stem, table[wanted], times.tolist(), season)


def bundled_series(name: str) -> Series:
    """Nile (flow by year), co2 (by month, its gaps left) or macro (growth, inflation, unemployment by quarter)."""
    try:
        from statsmodels import datasets
    except ImportError as error:
        raise DataError(
            'regimes: --data needs statsmodels, which holds these series; `pip install "ppgen[bench]"`, or give --csv'
        ) from error
    if name not in BUNDLED:
        raise DataError(f"regimes: --data must be one of {list(BUNDLED)}, got {name!r}")
    if name == "nile":
        table = datasets.nile.load_pandas().data
        return _standard("nile", table[["volume"]], table["year"].astype(int).astype(str).tolist(), None)
    if name == "co2":
        monthly = datasets.co2.load_pandas().data.resample("MS").mean()
        return _standard("co2", monthly, [f"{when:%Y-%m}" for when in monthly.index], BUNDLED[name])
    table = datasets.macrodata.load_pandas().data
    growth = 400 * np.log(table["realgdp"]).diff()
    made = pd.DataFrame({"growth": growth, "inflation": table["infl"], "unemployment": table["unemp"]}).iloc[1:]
    times = [f"{int(y)}Q{int(q)}" for y, q in zip(table["year"][1:], table["quarter"][1:], strict=True)]
    return _standard("macro", made, times, None)


def _standard(name: str, table: pd.DataFrame, times: list[str], season: int | None) -> Series:
    if season is not None and not 2 <= season <= len(table) // 3:
        raise DataError(f"regimes: --season must be between 2 and a third of the {len(table)} steps, got {season}")
    found = []
    for column in table:
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
        if (odd := np.isnan(numbers) & table[column].notna().to_numpy()).any():
            row = int(odd.argmax())
            raise DataError(f"regimes: {column} must hold numbers, got {table[column].iloc[row]!r} at row {row}")
        if np.isinf(numbers).any():
            raise DataError(
                f"regimes: {column} must be finite, got an infinite number at row {np.isinf(numbers).argmax()}"
            )
        found.append(numbers)
    if not found:
        raise DataError(f"regimes: {name} must have a column of numbers, got {list(table)}; name one by --series")
    values = np.stack(found, -1)
    last = int((~np.isnan(values).all(1)).nonzero()[0].max(initial=-1)) + 1
    values, times = values[:last], times[:last]
    if len(values) < FEWEST:
        raise DataError(f"regimes: {name} must have at least {FEWEST} steps, got {len(values)}")
    train = int(round((1 - HELD_OUT) * len(values)))
    counts = (~np.isnan(values[:train])).sum(0)
    if (few := counts < FEWEST // 2).any():
        column = list(table)[int(few.argmax())]
        raise DataError(
            f"regimes: {column} must have at least {FEWEST // 2} values before the held-out end, got {counts.min()}"
        )
    center, spread = np.nanmean(values[:train], 0), np.nanstd(values[:train], 0)
    if (flat := spread <= 1e-12 * np.abs(center)).any():
        raise DataError(f"regimes: {list(table)[int(flat.argmax())]} must vary, got one value before the held-out end")
    return Series(name, tuple(map(str, table)), tuple(times), (values - center) / spread, center, spread, season, train)
