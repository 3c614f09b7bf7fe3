"""Forecasts of time series, with intervals, and the regimes behind them.

Typical use:

    python case_studies/regimes.py --data nile --out results
    python case_studies/regimes.py --csv sales.csv --time month --series units --season 12 --out results
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

# Threads that wait for each other by spinning are many times slower than one thread on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = App(
    name="regimes", help=__doc__, help_format="plaintext", version_flags=[], result_action="return_value",
    suppress_keyboard_interrupt=False,
)  # fmt: skip


@app.default
def analyse(
    *,
    out: Annotated[Path, Parameter(help="Folder for the results; it must be new or empty.")],
    csv: Annotated[Path | None, Parameter(help="Table with a row for each step; an empty cell is missing.")] = None,
    data: Annotated[str | None, Parameter(help="nile, co2 or macro, which come with statsmodels.")] = None,
    series: Annotated[
        list[str] | None, Parameter(negative=(), help="A column to forecast; repeat. All by default.")
    ] = None,
    time: Annotated[str | None, Parameter(help="Column of labels of the steps.")] = None,
    season: Annotated[int | None, Parameter(help="Steps of a season, 12 for months of a year.")] = None,
    horizon: Annotated[int, Parameter(help="Steps to forecast.")] = 8,
    seed: Annotated[int, Parameter(help="Seed of all randomness.")] = 0,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace the results of an earlier run there.")] = False,
) -> None:
    """Forecast time series and find their regimes.

    Fits linear dynamical systems, hidden Markov models, autoregressive ones and a switching system to the first four
    fifths, forecasts the rest from several places, compares with the last value (and with statsmodels, if it is
    installed), and fits the best to all. Writes into OUT: report.html, forecast.csv, regimes.csv (probability of each
    regime at each step), scores.csv and model/. Open report.html first.
    """
    from ppgen.errors import DataError
    from ppgen.series.job import analyse as job
    from ppgen.series.reading import bundled_series, read_series

    if (csv is None) == (data is None):
        raise DataError("regimes: give either --csv FILE or --data NAME, one of the two")
    found = bundled_series(str(data)) if csv is None else read_series(csv, series or [], time, season)
    job(found, out, [] if csv is None else [csv], horizon=horizon, random_seed=seed, overwrite=overwrite, say=print)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 2 with one message when not, 130 when interrupted."""
    from ppgen.behavior.command import run

    return run(app, "regimes", arguments, "give fewer steps")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended cleans up as after Ctrl-C
    sys.exit(main())
