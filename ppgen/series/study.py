"""Compare forecasts on the held-out end of a series, from several origins; fit the best to all, and its regimes."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import pandas as pd
from jaxtyping import Float

from ppgen.diagnostics.scores import predictive_scores
from ppgen.model import Conjugate
from ppgen.series.forecasters import (
    INNER,
    Draw,
    Forecaster,
    candidates,
    fitted,
    last_value,
    left_out,
    peers,
    with_statsmodels,
)
from ppgen.series.reading import Series

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Study", "forecast_scores", "origins", "study"]

ORIGINS = 6  # places in the held-out end that forecasts begin at
Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Study:
    """What was found.

    Attributes
    ----------
    table : a row for each way to forecast: scores of the held-out end.
    best : the model whose forecasts are best, fitted to all steps, by its ``name``.
    regimes : the hidden Markov model of greatest held-out density, fitted to all steps, by its ``name``.
    examples : name -> draws from the first origin, for the figure.
    ahead : draws of the steps behind the end, (S, H, D).
    probabilities : (T, K) of the regimes.
    """

    table: pd.DataFrame
    best: tuple[str, Forecaster]
    regimes: tuple[str, Forecaster]
    examples: dict[str, Float[np.ndarray, "S H D"]]
    ahead: Float[np.ndarray, "S H D"]
    probabilities: Float[np.ndarray, "T K"]


def origins(series: Series, horizon: int) -> list[int]:
    """Numbers of steps seen before each forecast: spread over the held-out end, each behind an observed step."""
    seen = np.flatnonzero(~np.isnan(series.values).all(1)) + 1
    last = max(series.train, len(series.values) - horizon)
    among = seen[(seen >= series.train) & (seen <= last)]
    among = among if len(among) else seen[seen <= series.train][-1:]
    return sorted({int(among[i]) for i in np.linspace(0, len(among) - 1, ORIGINS).round().astype(int)})


def forecast_scores(series: Series, draw: Draw, horizon: int) -> dict[str, float]:
    """Continuous ranked probability score and coverage over all origins, and the error of the mean, standardised."""
    drawn, truth = [], []
    for steps in origins(series, horizon):
        reach = min(horizon, len(series.values) - steps)
        found = draw(steps, reach)
        drawn.append(found.reshape(len(found), -1))
        truth.append(series.values[steps : steps + reach].ravel())
    samples, value = np.concatenate(drawn, 1), np.concatenate(truth)
    samples, value = samples[:, ~np.isnan(value)], value[~np.isnan(value)]
    error = float(np.sqrt(np.mean((samples.mean(0) - value) ** 2)))
    scores = predictive_scores(samples, value)
    return {"crps": scores.pop("crps"), "rmse": error, **scores}


def study(series: Series, horizon: int, random_seed: int, say: Say) -> Study:
    """Compare all ways to forecast ``horizon`` steps, and fit the best model and the best with regimes to all."""
    rows: dict[str, dict[str, float]] = {}
    chosen: dict[str, tuple[Conjugate, bool]] = {}
    examples, first = {}, origins(series, horizon)[0]
    reach = min(horizon, len(series.values) - first)
    for name, sizes in candidates(series).items():
        with _quiet():
            chosen[name] = _sized(sizes, series, random_seed)
            model, calendar = chosen[name]
            found = fitted(model, series, series.train, calendar=calendar, random_seed=random_seed)
            rows[name] = forecast_scores(series, lambda n, h, f=found: f.draws(series, n, h), horizon)  # type: ignore[misc]
            rows[name] |= _densities(found, series)
            examples[name] = found.draws(series, first, reach)
        say(f"{name}: crps {rows[name]['crps']:.3f}")
    others = {"last value": last_value(series), **(peers(series) if with_statsmodels() else {})}
    for name, draw in others.items():
        rows[name] = forecast_scores(series, draw, horizon)
        examples[name] = draw(first, reach)
        say(f"{name}: crps {rows[name]['crps']:.3f}")
    table = pd.DataFrame.from_dict(rows, orient="index")
    best = str(table.loc[list(chosen), "crps"].idxmin())
    regime = str(table.loc[[name for name in chosen if "HMM" in name], "nats, held out"].fillna(-np.inf).idxmax())
    with _quiet():
        whole = {name: _whole(chosen[name], series, random_seed) for name in {best, regime}}
    ahead = whole[best].draws(series, len(series.values), horizon)
    u = whole[regime].inputs(series, len(series.values))
    states = np.asarray(whole[regime].fit.latents(series.values[None], u=u, random_seed=random_seed)["z"])[0]
    return Study(table, (best, whole[best]), (regime, whole[regime]), examples, ahead, states)


def _sized(sizes: list[tuple[Conjugate, bool]], series: Series, random_seed: int) -> tuple[Conjugate, bool]:
    """The size that forecasts the last fifth of the steps for training best, fitted to those before."""
    if len(sizes) == 1:
        return sizes[0]
    inner = int(round(INNER * series.train))
    short = Series(
        series.name, series.columns, series.times[: series.train], series.values[: series.train], series.center,
        series.spread, series.season, inner,
    )  # fmt: skip
    scores = []
    for model, calendar in sizes:
        found = fitted(model, short, inner, calendar=calendar, random_seed=random_seed)
        scores.append(forecast_scores(short, lambda n, h, f=found: f.draws(short, n, h), 4)["crps"])  # type: ignore[misc]
    return sizes[int(np.argmin(scores))]


def _whole(chosen: tuple[Conjugate, bool], series: Series, random_seed: int) -> Forecaster:
    model, calendar = chosen
    return fitted(model, series, len(series.values), calendar=calendar, random_seed=random_seed)


def _densities(found: Forecaster, series: Series) -> dict[str, float]:
    """Nats an entry of each step given those before: of the steps that the fit has seen, and of the held-out end."""
    each = found.step_densities(series)
    if each is None:
        return {}
    there = (~np.isnan(series.values)).sum(1)
    parts = {"nats, training": slice(0, series.train), "nats, held out": slice(series.train, None)}
    nats = {name: float(np.nansum(each[part]) / max(1, there[part].sum())) for name, part in parts.items()}
    loo = left_out(found, series, series.train)
    return nats if loo is None else nats | {"nats, leaving one out": loo / max(1, there[: series.train].sum())}


@contextmanager
def _quiet() -> "Iterator[None]":
    """Warnings about single fits are not told while many are compared."""
    log = logging.getLogger("ppgen")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
