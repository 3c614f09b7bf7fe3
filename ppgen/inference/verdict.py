"""What checks come to: lines in words, and a verdict that fails closed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import pandas as pd

__all__ = ["MODES", "Check", "Report", "report"]

MODES = "modes"  # the check whose advice is part of the verdict


class Check(NamedTuple):
    """One line of a report."""

    check: str
    value: float
    threshold: str
    ok: bool
    advice: str


@final
@dataclass(frozen=True, eq=False)
class Report:
    """Whether a fit can be trusted: ``ok``, a ``verdict`` in words, and a ``table`` with one row per check."""

    ok: bool
    verdict: str
    table: pd.DataFrame

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(_line(Check(*row)) for row in self.table.itertuples(index=False))])


def report(checks: Sequence[Check], notes: Sequence[str] = ()) -> Report:
    """Verdict over all checks, with ``notes`` behind it; without any check it is not good, for nothing was shown."""
    table = pd.DataFrame(list(checks), columns=list(Check._fields))
    failed = [check for check in checks if not check.ok]
    if not checks:
        words = "Not to be trusted: nothing could be checked."
    elif failed:
        names = ", ".join(dict.fromkeys(check.check.split(" of ")[0] for check in failed))
        words = f"Not to be trusted as it is: {len(failed)} of {len(checks)} checks failed ({names})."
    else:
        words = f"No problem found: {len(checks)} of {len(checks)} checks passed."
    found = [f"{check.advice[0].upper()}{check.advice[1:]}." for check in failed if check.check == MODES]
    return Report(bool(checks) and not failed, " ".join([words, *found, *notes]), table)


def _line(row: Check) -> str:
    mark, advice = ("ok  ", "") if row.ok else ("FAIL", f": {row.advice}")
    return f"{mark} {row.check}: {row.value:.4g} (wanted {row.threshold}){advice}"
