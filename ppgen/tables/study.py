"""Compare ways to fill a table on entries that were hidden, in several ways and amounts; choose one by its score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ppgen.diagnostics.scores import predictive_scores
from ppgen.errors import DataError
from ppgen.results.fit import Fit
from ppgen.tables.hiding import MECHANISMS, hidden_entries
from ppgen.tables.imputers import Filled, filled

__all__ = ["Study", "scores", "study"]

Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Study:
    """What was found: scores (a row for each way to hide, share and way to fill), the best way, its fit of the table,
    and draws of the table from it.
    """

    table: pd.DataFrame
    best: str
    fit: Fit
    draws: Float[np.ndarray, "S N D"]


def scores(whole: Float[np.ndarray, "N D"], hidden: Bool[np.ndarray, "N D"], found: Filled) -> dict[str, float]:
    """Root mean square error, continuous ranked probability score and coverage of intervals, in standard deviations."""
    error = (found.values - whole)[hidden]
    result = {"rmse": float(np.sqrt(np.mean(error**2)))}
    if found.draws is None:
        return result
    result |= predictive_scores(found.draws[:, hidden], whole[hidden])
    if found.fit is not None and not found.fit.model.only_gibbs:  # whose density is that of the mask too
        density = found.fit.log_conditional(whole, np.where(hidden, np.nan, whole), random_seed=0)
        result["nats an entry"] = float(density.sum()) / int(hidden.sum())
    return result


def study(
    x: Float[np.ndarray, "N D"], shares: Sequence[float], names: Sequence[str], random_seed: int, say: Say
) -> Study:
    """Hide entries of ``x`` (N, D), fill them in every way, and fill the gaps of ``x`` itself in the best.

    The best is the way whose continuous ranked probability score, averaged over ways to hide and shares, is least.
    """
    rows = []
    for number, (mechanism, share) in enumerate((m, s) for m in MECHANISMS for s in shares):
        rng = np.random.default_rng([random_seed, number])
        hidden = hidden_entries(x, mechanism, share, rng)
        given = np.where(hidden, np.nan, x)
        for name in names:
            found = filled(name, given, random_seed)
            rows.append({"hidden": mechanism, "share": share, "filled by": name, **scores(x, hidden, found)})
        say(f"{mechanism}, {share:.0%} hidden: {_leader(rows, mechanism, share)}")
    table = pd.DataFrame(rows)
    best = str(table.groupby("filled by", sort=False)["crps"].mean().idxmin())
    say(f"filling the table by: {best}")
    found = filled(best, x, random_seed)
    if found.fit is None or found.draws is None:
        raise DataError(f"missing_data: the table must be filled by a model, got {best}")
    return Study(table, best, found.fit, found.draws)


def _leader(rows: Sequence[dict], mechanism: str, share: float) -> str:
    own = [row for row in rows if row["hidden"] == mechanism and row["share"] == share]
    best = min(own, key=lambda row: row["rmse"])
    return f"least error by {best['filled by']}, {best['rmse']:.3f} standard deviations"
