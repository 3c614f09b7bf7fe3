"""The verdict on a list of checks: lines in words, and a verdict that fails closed."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import pandas as pd

__all__ = ["MODES", "POINT", "UNSEEN", "Check", "Report", "report"]

MODES = "modes"  # the check whose advice is part of the verdict
UNSEEN = "comparison with the posterior"  # the check that stands for those which could not be made
POINT = "uncertainty"  # the check that a point estimate has not
WIDTH = 120  # of a line of passed checks
PLAIN = ("none of ", "the same ")  # how thresholds of yes or no begin: a passed one needs no number


class Check(NamedTuple):
    """One line of a report; a ``threshold`` that begins with "of" says what a count is of: ``5 of 64,000 draws``."""

    check: str
    value: float
    threshold: str
    ok: bool
    advice: str


@final
@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """Report on the trust in a fit: ``ok``, a ``verdict`` in words, and a ``table`` with one row per check."""

    ok: bool
    verdict: str
    table: pd.DataFrame

    def __str__(self) -> str:
        """The verdict, a line per failed check, and the passed ones by name."""
        rows = self._rows()
        lines = [_line(row) for row in rows if not row.ok]
        passed = "; ".join(_short(row) for row in rows if row.ok)
        return "\n".join([self.verdict, *lines, *textwrap.wrap(f"ok   {passed}" if passed else "", WIDTH)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """The verdict, and a table with the failed checks first, as a notebook shows them."""
        rows = sorted(self._rows(), key=lambda row: row.ok)
        heads = "".join(f"<th>{name}</th>" for name in ("", "check", "found", "what to do"))
        body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(row))}</tr>" for row in rows)
        return f"<p>{html.escape(self.verdict)}</p><table><tr>{heads}</tr>{body}</table>"

    def _rows(self) -> list[Check]:
        return [Check(*row) for row in self.table[list(Check._fields)].itertuples(index=False)]


def report(checks: Sequence[Check], notes: Sequence[str] = ()) -> Report:
    """Verdict over all checks, with ``notes`` behind it; without any check it is not good, for nothing was shown.

    The table gives advice where a check failed, and nowhere else.
    """
    table = pd.DataFrame(
        [row if not row.ok else row._replace(advice="") for row in checks], columns=list(Check._fields)
    )
    failed = [check for check in checks if not check.ok]
    found = [f"{check.advice[0].upper()}{check.advice[1:]}." for check in failed if check.check == MODES]
    return Report(bool(checks) and not failed, " ".join([_words(checks, failed), *found, *notes]), table)


def _words(checks: Sequence[Check], failed: Sequence[Check]) -> str:
    """The verdict in a sentence or two: failed checks, then what was not shown."""
    if not checks:
        return "Not to be trusted: nothing could be checked."
    if not failed:
        return f"No problem found: {len(checks)} of {len(checks)} checks passed."
    unseen = "".join(f" Not shown: {check.advice}." for check in failed if check.check == UNSEEN)
    wrong = [check.check.split(" of ")[0] for check in failed if check.check not in (UNSEEN, POINT)]
    point = "A point estimate, without uncertainty" if any(check.check == POINT for check in failed) else ""
    if wrong:
        names = ", ".join(dict.fromkeys(wrong))
        sentence = f"Not to be trusted as it is: {len(wrong)} of {len(checks)} checks failed ({names}).{unseen}"
        return f"{point}. {sentence}" if point else sentence
    passed = len(checks) - len(failed)
    sentence = f"{passed} check{'' if passed == 1 else 's'}"
    if point:
        return f"{point}: {sentence} of how it was found passed."
    return f"Not shown to be good: {sentence} passed, but the one that matters was not made.{unseen}"


def _found(row: Check) -> str:
    """The number beside what was wanted."""
    if row.threshold.startswith("of "):
        return f"{row.value:,.0f} {row.threshold}"
    return f"{row.value:.4g} (wanted {row.threshold})"


def _line(row: Check) -> str:
    return f"FAIL {row.check}: {_found(row)}: {row.advice}"


def _short(row: Check) -> str:
    if row.threshold.startswith(PLAIN):
        return row.check
    return f"{row.check} {row.value:,.0f}" if row.threshold.startswith("of ") else f"{row.check} {row.value:.4g}"


def _cells(row: Check) -> tuple[str, str, str, str]:
    return "ok" if row.ok else "FAIL", row.check, _found(row), "" if row.ok else row.advice
