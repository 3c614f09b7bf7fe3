"""The report of a series: what forecasts best, what comes next, and which regimes there were."""

import numpy as np
import pandas as pd

from ppgen.behavior.report import Section
from ppgen.plots.series import forecast_fan, forecasts_compared, regime_probabilities
from ppgen.plots.style import apart
from ppgen.series.reading import Series
from ppgen.series.study import Study, origins

__all__ = ["ahead_table", "regimes_table", "series_sections"]

RARE = 0.005  # share of the steps below which a regime is not in use


@apart()
def series_sections(study: Study, series: Series, horizon: int) -> list[Section]:
    """What forecasts best, what comes next, and the regimes."""
    values = series.restored(series.values)
    examples = {name: series.restored(draws) for name, draws in study.examples.items()}
    gaps = int(np.isnan(series.values).sum())
    begin = origins(series, horizon)[0]
    return [
        Section(
            "In short",
            [
                f"{len(series.values)} steps ({series.times[0]} to {series.times[-1]}) of {', '.join(series.columns)}; "
                f"{gaps} values missing. Models were fitted to the first {series.train} steps and forecast up to "
                f"{horizon} steps from {len(origins(series, horizon))} places behind these. crps and rmse are in "
                "standard deviations; intervals of 50, 80 and 95 % should hold so many of the values that came."
            ],
            [forecasts_compared(series.times, values, begin, examples, series.columns[0])],
            [study.table.sort_values("crps")],
            _verdict(study),
        ),
        Section(
            "What comes next",
            [f"By {study.best[0]}, fitted to all steps; bands hold 50 and 90 %."],
            [forecast_fan(series.times, values, series.restored(study.ahead), series.columns)],
            [ahead_table(study, series)],
        ),
        Section(
            "Regimes",
            [
                f"By {study.regimes[0]}, the hidden Markov model of greatest density of the held-out steps. Whether "
                "there are regimes at all is what the table above says: compare it with the models without. "
                + _used(study)
            ],
            [regime_probabilities(series.times, values, study.probabilities, series.columns)],
        ),
    ]


def ahead_table(study: Study, series: Series) -> pd.DataFrame:
    """A row for each series and step ahead: mean, and the ends of 50 and 90 %, in the units of the series."""
    draws = series.restored(study.ahead)
    levels = {"low 90%": 0.05, "low 50%": 0.25, "high 50%": 0.75, "high 90%": 0.95}
    rows = []
    for d, name in enumerate(series.columns):
        own = {label: np.quantile(draws[..., d], level, axis=0) for label, level in levels.items()}
        steps = np.arange(1, draws.shape[1] + 1)
        rows.append(pd.DataFrame({"series": name, "ahead": steps, "mean": draws[..., d].mean(0), **own}))
    return pd.concat(rows, ignore_index=True)


def regimes_table(study: Study, series: Series) -> pd.DataFrame:
    """A row for each step: its label and the probability of each regime."""
    names = [f"probability {k}" for k in range(study.probabilities.shape[1])]
    found = pd.DataFrame(study.probabilities, columns=names)
    found.insert(0, "time", list(series.times))
    return found


def _used(study: Study) -> str:
    K, used = study.probabilities.shape[1], int((study.probabilities.mean(0) > RARE).sum())
    return f"Of its {K} regimes {used} {'is' if used == 1 else 'are'} in use."


def _verdict(study: Study) -> tuple[str, bool]:
    crps = study.table["crps"]
    simple = float(crps["last value"])
    gain = 1 - float(crps[study.best[0]]) / simple
    peers = crps[[name for name in crps.index if name.endswith("(statsmodels)")]]
    other = "" if peers.empty else f" {peers.idxmin()} has {peers.min():.3f}."
    words = f"{study.best[0]} forecasts best of the models here: crps {crps[study.best[0]]:.3f}, {abs(gain):.0%} "
    return words + f"{'less' if gain > 0 else 'more'} than the last value.{other}", gain > 0
