"""Ways to forecast a series: models of this suite, statsmodels where it is installed, and the last value seen."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import arviz_stats
import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from ppgen.emissions import Autoregressive
from ppgen.errors import FitError
from ppgen.inference import vb
from ppgen.model import Conjugate
from ppgen.models import HMM, LDS, SLDS
from ppgen.predictions.over_draws import Theta
from ppgen.predictions.steps import log_steps
from ppgen.results.answers import at_draws
from ppgen.results.fit import Fit
from ppgen.series.reading import Series

__all__ = [
    "DRAWS",
    "INNER",
    "Draw",
    "Forecaster",
    "candidates",
    "fitted",
    "last_value",
    "left_out",
    "peers",
    "with_statsmodels",
]

DRAWS, FOLLOWED = 300, 60  # draws of a forecast; of a switching system, whose states are followed by paths for each
LATENT, STATES = (1, 2, 4), (2, 3)  # sizes, chosen by the density of the last fifth of the steps for training
INNER = 0.8
SAME = 1e-9  # nats between draws that are rounding

Draw = Callable[[int, int], Float[np.ndarray, "S H D"]]
"""Draws of so many steps behind the first so many."""


@final
@dataclass(frozen=True)
class Forecaster:
    """A fit of the first steps of a series, and what it draws of later ones."""

    fit: Fit
    calendar: bool

    def inputs(self, series: Series, steps: int) -> np.ndarray | None:
        """Inputs of the first so many steps, if the model takes any."""
        return series.calendar(steps)[None] if self.calendar else None

    def draws(self, series: Series, steps: int, horizon: int) -> Float[np.ndarray, "S H D"]:
        """Draws of ``horizon`` steps behind the first ``steps``."""
        u = self.inputs(series, steps + horizon)
        count = FOLLOWED if isinstance(self.fit.model, SLDS) else DRAWS
        found = self.fit.forecast(series.values[None, :steps], horizon, draws=count, u=u, random_seed=steps)
        return np.asarray(found)[:, 0]

    def step_densities(self, series: Series) -> Float[np.ndarray, " T"] | None:
        """Log density of each step given those before it, in nats; None where the model has none."""
        u = self.inputs(series, len(series.values))
        try:
            found = self.fit.log_likelihood(series.values[None], u=u, per="step", random_seed=0)
        except FitError:
            return None
        return np.asarray(found)[0]


def left_out(found: Forecaster, series: Series, steps: int) -> float | None:
    """Sum over the first ``steps`` steps of the log density of each, given those before, in nats, its own weight taken
    out of the posterior by Pareto-smoothed importance sampling; None where the model has no such densities.

    Reference: Vehtari, Gelman & Gabry (2017).
    """
    u = found.inputs(series, steps)
    x = torch.as_tensor(series.values[None, :steps])
    inputs = None if u is None else torch.as_tensor(u)

    def score(theta: Theta) -> torch.Tensor:
        return log_steps(found.fit.model, theta, x, u=inputs)

    try:
        each = at_draws(found.fit, "left_out", score, (x, inputs), DRAWS, 0, progressbar=False)[:, 0]
    except FitError:
        return None
    nats, seen = np.asarray(each), ~np.isnan(series.values[:steps]).all(1)
    varies = seen & (np.ptp(nats, axis=0) > SAME)  # first frames of an autoregression do not
    values = xr.DataArray(nats[None][..., varies], dims=("chain", "draw", "step"), name="x")
    groups = {"posterior": xr.Dataset({"x": values[..., 0]}), "log_likelihood": xr.Dataset({"x": values})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(arviz_stats.loo(xr.DataTree.from_dict(groups)).elpd) + float(nats[0, seen & ~varies].sum())


def candidates(series: Series) -> dict[str, list[tuple[Conjugate, bool]]]:
    """Name -> models of several sizes, and whether each takes the calendar as inputs."""
    D, U = len(series.columns), series.calendar(1).shape[1]
    return {
        "LDS": [(LDS(latent, D), False) for latent in LATENT],
        "LDS with calendar": [(LDS(latent, D, inputs=U), True) for latent in LATENT],
        "HMM": [(HMM(states, D), False) for states in STATES],
        "HMM with calendar": [(HMM(states, D, inputs=U), True) for states in STATES],
        "autoregressive HMM": [(HMM(states, emission=Autoregressive(D, 2)), False) for states in STATES],
        "SLDS": [(SLDS(2, 2, D), False)],
    }


def fitted(model: Conjugate, series: Series, steps: int, *, calendar: bool, random_seed: int) -> Forecaster:
    """A fit of the first ``steps`` steps."""
    u = series.calendar(steps)[None] if calendar else None
    fit = vb.fit(model, series.values[None, :steps], u=u, n_init=2, random_seed=random_seed, progressbar=False)
    return Forecaster(fit, calendar)


def last_value(series: Series) -> Draw:
    """The last value seen (of the season, if there is one), and changes over as many steps as the past had."""
    lag = series.season or 1

    def draw(steps: int, horizon: int) -> np.ndarray:
        past = _carried(series.values[:steps])
        ahead = np.arange(horizon)
        base = past[steps - lag + ahead % lag]
        rng, found = np.random.default_rng(steps), np.empty((DRAWS, horizon, past.shape[1]))
        for h in ahead:
            back = lag * (1 + h // lag)
            changes = past[back:] - past[:-back] if back < steps else past - past.mean(0)
            found[:, h] = base[h] + changes[rng.integers(len(changes), size=DRAWS)]
        return found

    return draw


def with_statsmodels() -> bool:
    """Whether statsmodels is installed."""
    from importlib.util import find_spec

    return find_spec("statsmodels") is not None


def peers(series: Series) -> dict[str, Draw]:
    """Statsmodels' structural model (a local linear trend and the season) and SARIMAX, of each column by itself."""
    from statsmodels.tsa.api import SARIMAX
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    def structural(x: np.ndarray) -> object:
        return UnobservedComponents(x, level="local linear trend", seasonal=series.season)

    def sarimax(x: np.ndarray) -> object:
        seasonal = (0, 1, 1, series.season) if series.season else (0, 0, 0, 0)
        return SARIMAX(x, order=(1, 1, 1), seasonal_order=seasonal)

    return {"structural (statsmodels)": _each(series, structural), "SARIMAX (statsmodels)": _each(series, sarimax)}


def _each(series: Series, make: Callable[[np.ndarray], object]) -> Draw:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = [make(column[: series.train]).fit(disp=False).params for column in series.values.T]  # type: ignore[attr-defined]

    def draw(steps: int, horizon: int) -> np.ndarray:
        rng, found = np.random.default_rng(steps), np.empty((DRAWS, horizon, len(series.columns)))
        for d, (column, params) in enumerate(zip(series.values.T, known, strict=True)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ahead = make(column[:steps]).filter(params).get_forecast(horizon)  # type: ignore[attr-defined]
            found[..., d] = rng.normal(ahead.predicted_mean, np.sqrt(ahead.var_pred_mean), (DRAWS, horizon))
        return found

    return draw


def _carried(x: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
    """Gaps filled by the value before them, at the start by the one behind."""
    import pandas as pd

    return pd.DataFrame(x).ffill().bfill().to_numpy()
