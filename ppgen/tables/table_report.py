"""The report of a filled table: what fills best, whether intervals are right, doubtful entries, what to ask next."""

import numpy as np
import pandas as pd

from ppgen.behavior.report import Section
from ppgen.plots.style import apart
from ppgen.plots.tables import errors_by_share, interval_coverage
from ppgen.tables.imputers import MODELS
from ppgen.tables.reading import Table
from ppgen.tables.study import Study

__all__ = ["filled_table", "intervals_table", "next_table", "outliers_table", "table_sections"]

SHOWN = 15  # entries that the report lists
NEXT_ROWS = 50  # rows of which is asked what to measure next: those that lack most


@apart()
def table_sections(study: Study, table: Table, doubtful: pd.DataFrame, measured_next: pd.DataFrame) -> list[Section]:
    """What fills best, how well, whether intervals are right, and what a person can do next."""
    means = study.table.drop(columns=["hidden", "share"]).groupby("filled by", sort=False).mean()
    gaps = int(np.isnan(table.values).sum())
    left = "; ".join(f"{name} {why}" for name, why in table.left_out.items())
    return [
        Section(
            "In short",
            [
                f"{len(table.values):,} rows, {len(table.columns)} columns, {gaps:,} entries missing "
                f"({gaps / table.values.size:.1%}). Entries that are there were hidden in three ways, and filled in "
                f"{len(means)} ways; errors are in standard deviations of a column.",
                *([f"Columns left out: {left}."] if left else []),
            ],
            [errors_by_share(study.table)],
            [means],
            _verdict(study, means),
        ),
        Section(
            "Are intervals right?",
            [
                "An interval that promises 80 % should hold 80 % of the hidden entries: below the line intervals are "
                "too narrow, above it too wide. Only models give a distribution for each entry."
            ],
            [interval_coverage(study.table)],
            [study.table.set_index(["hidden", "share", "filled by"])],
        ),
        Section(
            "Entries to look at",
            [
                "How far out each entry lies of what factor analysis of its row says it should have been; `adjusted` "
                "is the least false discovery rate at which it would be called wrong."
            ],
            tables=[doubtful.head(SHOWN)],
            verdict=_doubts(doubtful),
        ),
        Section(
            "What to measure next",
            [
                "Which missing entry, measured, would say most about the other missing ones of its row, in nats."
                if len(measured_next)
                else "Not known of a model of what is missing, which says of no entry what measuring it would say."
                if study.fit.model.only_gibbs
                else "No row lacks two entries, so measuring one would say nothing about another."
            ],
            tables=[measured_next.head(SHOWN)] if len(measured_next) else [],
        ),
    ]


def filled_table(study: Study, table: Table) -> pd.DataFrame:
    """The table in its own units, gaps filled by the mean of their distribution."""
    whole = np.where(np.isnan(table.values), study.draws.mean(0), table.values)
    return pd.DataFrame(table.restored(whole), columns=list(table.columns))


def intervals_table(study: Study, table: Table) -> pd.DataFrame:
    """A row for each gap, in the units of its column: mean, standard deviation and the ends of 90 %."""
    rows, columns = np.nonzero(np.isnan(table.values))
    draws = table.restored(study.draws)[:, rows, columns]
    return pd.DataFrame(
        {
            "row": rows,
            "column": np.array(table.columns)[columns],
            "mean": draws.mean(0),
            "sd": draws.std(0),
            "low": np.quantile(draws, 0.05, axis=0) if len(rows) else [],
            "high": np.quantile(draws, 0.95, axis=0) if len(rows) else [],
        }
    )


def outliers_table(table: Table, random_seed: int) -> pd.DataFrame:
    """Entries by how doubtful they are for factor analysis, in the units of their column.

    A mixture would give a wrong value a component of its own, and call it right.
    """
    fit = MODELS["factor analysis"](table.values, random_seed)
    found = fit.outliers(table.values, random_seed=random_seed, progressbar=False)
    tail, adjusted = found["tail"].to_numpy(), found["adjusted"].to_numpy()
    order = np.argsort(np.where(np.isnan(tail), np.inf, tail), axis=None)[: int((~np.isnan(tail)).sum())]
    rows, columns = np.unravel_index(order, tail.shape)
    value, expected = table.restored(table.values), table.restored(found["expected"].to_numpy())
    low, high = (table.restored(found[name].to_numpy()) for name in ("low", "high"))
    places = rows, columns
    return pd.DataFrame(
        {
            "row": rows, "column": np.array(table.columns)[columns], "value": value[places],
            "expected": expected[places], "low": low[places], "high": high[places],
            "tail": tail[places], "adjusted": adjusted[places],
        }
    )  # fmt: skip


def next_table(study: Study, table: Table, random_seed: int) -> pd.DataFrame:
    """Missing entries of the rows that lack most, by what measuring each would say about the others."""
    lacking = np.isnan(table.values).sum(1)
    rows = np.argsort(-lacking, kind="stable")[:NEXT_ROWS]
    rows = rows[lacking[rows] > 1]
    empty = pd.DataFrame({"row": [], "column": [], "information": [], "mc_error": []})
    if not len(rows) or study.fit.model.only_gibbs:
        return empty
    found = study.fit.expected_information(table.values[rows], random_seed=random_seed, progressbar=False)
    value, error = found["information"].to_numpy(), found["mc_error"].to_numpy()
    at, columns = np.nonzero(~np.isnan(value))
    made = pd.DataFrame(
        {
            "row": rows[at], "column": np.array(table.columns)[columns], "information": value[at, columns],
            "mc_error": error[at, columns],
        }
    )  # fmt: skip
    return made.sort_values("information", ascending=False, ignore_index=True)


def _verdict(study: Study, means: pd.DataFrame) -> tuple[str, bool]:
    promised = [column for column in means if str(column).startswith("in ")]
    simple = means[means[promised].isna().all(axis=1)]  # those without a distribution
    best, other = float(means.loc[study.best, "rmse"]), float(simple["rmse"].min())
    name = simple["rmse"].idxmin()
    better = f"{abs(1 - best / other):.0%} {'less' if best < other else 'more'} error than {name}"
    return f"The table is filled by {study.best}: on average {better}, and with a distribution for each entry.", True


def _doubts(doubtful: pd.DataFrame) -> tuple[str, bool]:
    called = int((doubtful["adjusted"] < 0.05).sum())
    if not called:
        return "No entry is called wrong at a false discovery rate of 5 %.", True
    return (
        f"{called} {'entry is' if called == 1 else 'entries are'} called wrong at a false discovery rate of 5 %.",
        False,
    )
