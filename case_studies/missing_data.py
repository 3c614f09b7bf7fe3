"""Missing entries of a table: compare ways to fill them, fill them with intervals, find doubtful ones.

Typical use:

    python case_studies/missing_data.py --table wine --out results
    python case_studies/missing_data.py --csv measurements.csv --out results
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
    name="missing_data", help=__doc__, help_format="plaintext", version_flags=[], result_action="return_value",
    suppress_keyboard_interrupt=False,
)  # fmt: skip


@app.default
def fill(
    *,
    out: Annotated[Path, Parameter(help="Folder for the results; it must be new or empty.")],
    csv: Annotated[Path | None, Parameter(help="Table with a row for each case; an empty cell is missing.")] = None,
    table: Annotated[
        str | None, Parameter(help="wine, breast_cancer or diabetes, which come with scikit-learn.")
    ] = None,
    share: Annotated[
        list[float] | None, Parameter(negative=(), help="Share to hide; repeat. Default: .1 .3 .5")
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of all randomness.")] = 0,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace the results of an earlier run there.")] = False,
) -> None:
    """Fill the missing entries of a table.

    Hides entries that are there (at random, by another column, by their own value), fills them by the mean, nearest
    neighbours, iterative regressions, a Gaussian mixture, factor analysis and factors with a mechanism of what
    is missing, and fills the table by the best. Writes into OUT: report.html, filled.csv, intervals.csv (of each gap),
    outliers.csv, next.csv (what to measure next), scores.csv and model/. Open report.html first.
    """
    from ppgen.errors import DataError
    from ppgen.tables.job import fill as job

    if (csv is None) == (table is None):
        raise DataError("missing_data: give either --csv FILE or --table NAME, one of the two")
    source: Path | str = csv if csv is not None else str(table)
    job(source, out, shares=share or [0.1, 0.3, 0.5], random_seed=seed, overwrite=overwrite, say=print)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 2 with one message when not, 130 when interrupted."""
    from ppgen.behavior.command import run

    return run(app, "missing_data", arguments, "give fewer rows")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended cleans up as after Ctrl-C
    sys.exit(main())
