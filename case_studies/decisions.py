"""Strategies behind choices: hidden Markov models of generalised linear choices, and mixtures of experts.

Typical use:

    python case_studies/decisions.py --demo --out results
    python case_studies/decisions.py --csv trials.csv --choice right --stimulus contrast --session day --out results
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
    name="decisions", help=__doc__, help_format="plaintext", version_flags=[], result_action="return_value",
    suppress_keyboard_interrupt=False,
)  # fmt: skip


@app.default
def find(
    *,
    out: Annotated[Path, Parameter(help="Folder for the results; it must be new or empty.")],
    csv: Annotated[Path | None, Parameter(help="Table with a row for each trial, in order.")] = None,
    choice: Annotated[str, Parameter(help="Its column of choices: 0, 1, or empty where there was none.")] = "choice",
    stimulus: Annotated[list[str] | None, Parameter(negative=(), help="A column of numbers shown; repeat.")] = None,
    session: Annotated[str | None, Parameter(help="Column that tells sessions apart.")] = None,
    last_choice: Annotated[bool, Parameter(help="Whether the choice before is an input too.")] = True,
    states: Annotated[int, Parameter(help="The most strategies there can be.")] = 4,
    seed: Annotated[int, Parameter(help="Seed of all randomness.")] = 0,
    demo: Annotated[bool, Parameter(negative=(), help="Simulated choices, whose strategies are known.")] = False,
    overwrite: Annotated[bool, Parameter(negative=(), help="Replace the results of an earlier run there.")] = False,
) -> None:
    """Find the strategies behind choices.

    Compares logistic regression, hidden Markov models of 2 strategies and more, and a mixture of experts by sessions
    held out (every fifth), fits the best number of strategies to all, and writes into OUT: report.html, trials.csv
    (probability of each strategy at each trial), weights.csv, models.csv and model/. Open report.html first.
    """
    from ppgen.behavior import decisions
    from ppgen.errors import DataError

    if states < 1:
        raise DataError(f"decisions: --states must be at least 1, got {states}")
    if demo == (csv is not None):
        raise DataError("decisions: give either --csv FILE or --demo, one of the two")
    if csv is None:
        decisions.demo(out, most=states, random_seed=seed, overwrite=overwrite, say=print)
    else:
        decisions.fit(
            csv, out, choice, stimulus or [], session, last=last_choice, most=states, random_seed=seed,
            overwrite=overwrite, say=print,
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 2 with one message when not, 130 when interrupted."""
    from ppgen.behavior.command import run

    return run(app, "decisions", arguments, "give fewer trials")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended cleans up as after Ctrl-C
    sys.exit(main())
