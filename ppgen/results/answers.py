"""Answers of a fit about data: arrays first, then their labels. `Fit` says what each of them is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from ppgen.arguments import require_at_least, require_memory
from ppgen.collapsed.estimated import estimates
from ppgen.data.arrays import like
from ppgen.data.parts import Inputs
from ppgen.errors import DataError
from ppgen.expecting import observed_given
from ppgen.model import Conjugate, Model
from ppgen.predictions import predictive, steps
from ppgen.predictions.local_sites import for_rows, pool_of
from ppgen.predictions.over_draws import NOTHING
from ppgen.predictions.weights import watched
from ppgen.programs.memory import memory
from ppgen.results.function_rows import as_asked
from ppgen.results.numbering import names
from ppgen.results.posterior import Draws, Factors
from ppgen.results.reading import read, read_ahead
from ppgen.rng import private_stream

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = [
    "at_draws",
    "forecast",
    "impute",
    "latents",
    "log_likelihood",
    "outcome_dims",
    "outcomes",
    "posterior_predictive",
    "predict",
    "shares_nothing",
]

AVERAGED = 200  # draws over which latents are averaged: message passing is paid for each
DELAY = 2  # seconds before a progress bar is shown

P = ParamSpec("P")
A = TypeVar("A", bound=xr.DataArray | xr.Dataset)

Named = Mapping[str, Tensor]
"""The data, as ``"x"``, and other outcomes by the name of their site."""


def _as_asked(answer: Callable[Concatenate["Fit", object, P], A]) -> Callable[Concatenate["Fit", object, P], A]:
    """Let the rows of an answer about ``x`` come in the order of ``x``; see `ppgen.results.function_rows`."""

    @wraps(answer)
    def found(fit: "Fit", x: object, *args: P.args, **kwargs: P.kwargs) -> A:
        return as_asked(fit, x, answer(fit, x, *args, **kwargs))

    return found


@_as_asked
def latents(fit: "Fit", x: object, draws: int, *, u: object, random_seed: int | None) -> xr.Dataset:
    """See `Fit.latents`."""
    observations, data, inputs = read(fit, x, u)
    require_at_least("latents: draws", draws, 0)
    require_memory("latents", max(draws, 1), data.shape[:2].numel(), "pass fewer draws")
    with private_stream(random_seed), watched("latents"):
        found = _latents(fit, data, inputs, draws)
    variables = {name: _label(fit, observations, value, found.dims[name]) for name, value in found.values.items()}
    for name, value in found.draws.items():
        variables[name] = _label(fit, observations, value, ("draw", *found.dims[name]))
    return xr.Dataset(variables, attrs={"engine": str(fit.attrs.get("engine", ""))})


@_as_asked
def impute(
    fit: "Fit", x: object, draws: int, *, u: object, sparse: bool, random_seed: int | None, progressbar: bool
) -> xr.DataArray | xr.Dataset:
    """See `Fit.impute`."""
    observations, data, inputs = read(fit, x, u)
    hidden = torch.isnan(data) & predictive.exists(fit.model, data)
    others = sum(value.numel() for value in outcomes(fit, data, inputs).values())
    size = int(hidden.sum()) if sparse else data.numel() + others
    require_memory("impute", draws, size, "pass sparse=True or fewer draws")

    def fill(theta: predictive.Theta) -> Named:
        return predictive.imputed(fit.model, theta, data, u=inputs)

    def fill_data(theta: predictive.Theta) -> Tensor:
        return predictive.impute(fit.model, theta, data, u=inputs)

    how: dict[str, Any] = {"pool": True, "progressbar": progressbar}

    if not sparse:
        return _labelled(fit, observations, at_draws(fit, "impute", fill, (data, inputs), draws, random_seed, **how))
    values = at_draws(fit, "impute", fill_data, (data, inputs), draws, random_seed, keep=hidden, **how)
    places = np.argwhere(hidden.numpy())
    coords = {
        dim: (
            "missing",
            observations[dim].values[places[:, axis]] if dim in observations.coords else places[:, axis],
        )
        for axis, dim in enumerate(_dims(observations))
    }
    return xr.Dataset({"x": (("draw", "missing"), values.numpy())}, coords)


def predict(
    fit: "Fit", x: object, draws: int, quantiles: float | Sequence[float], *, u: object, random_seed: int | None
) -> xr.Dataset:
    """See `Fit.predict`."""
    levels = np.atleast_1d(quantiles).tolist()
    if not all(0 <= q <= 1 for q in levels):
        raise DataError(f"predict: quantiles must lie between 0 and 1, got {levels}")
    found = impute(fit, x, draws, u=u, sparse=False, random_seed=random_seed, progressbar=True)
    drawn = found["x"] if isinstance(found, xr.Dataset) else found
    hidden = as_asked(fit, x, read(fit, x, u)[0]).isnull().values
    one = drawn.isel(draw=0, drop=True)  # means of equal numbers round
    ends = xr.where(hidden, drawn.quantile(levels, "draw", skipna=False), one)  # past an end all draws are NaN
    estimate, spread = xr.where(hidden, drawn.mean("draw", skipna=False), one), drawn.std("draw", skipna=False)
    return xr.Dataset({"estimate": estimate, "sd": spread.where(hidden, 0.0), "quantiles": ends})


def forecast(fit: "Fit", x: object, horizon: int, draws: int, *, u: object, random_seed: int | None) -> xr.DataArray:
    """See `Fit.forecast`."""
    require_at_least("forecast: horizon", horizon, 1)
    (observations, data, inputs), times = read_ahead(fit, x, u, horizon)
    if data.ndim < 2:
        raise DataError(f"forecast: x must have time, got {', '.join(_dims(observations))}; it is for time series")
    dims = ["ahead" if dim == "time" else dim for dim in _dims(observations)]
    require_memory("forecast", draws, len(data) * horizon * data[0, 0].numel(), "pass fewer draws")

    def ahead(theta: predictive.Theta) -> Tensor:
        return predictive.forecast(fit.model, theta, data, horizon, u=inputs)

    values = at_draws(fit, "forecast", ahead, (data, inputs), draws, random_seed, pool=True)
    answer = _label(fit, observations, values, ("draw", *dims)).rename(observations.name)
    answer = answer.assign_coords(ahead=np.arange(1, horizon + 1))
    if times is None:
        return answer
    same = (times == times[0]).all()
    return answer.assign_coords(time=("ahead", times[0]) if same else ((answer.dims[1], "ahead"), times))


@_as_asked
def posterior_predictive(
    fit: "Fit", x: object, draws: int, *, u: object, random_seed: int | None
) -> xr.DataArray | xr.Dataset:
    """See `Fit.posterior_predictive`."""
    observations, data, inputs = read(fit, x, u)
    size = data.numel() + sum(value.numel() for value in outcomes(fit, data, inputs).values())
    require_memory("posterior_predictive", draws, size, "pass fewer draws")

    def replicate(theta: predictive.Theta) -> Named:
        return predictive.replicates(fit.model, theta, data, u=inputs)

    values = at_draws(fit, "posterior_predictive", replicate, (data, inputs), draws, random_seed)
    return _labelled(fit, observations, values)


def outcomes(fit: "Fit", data: Tensor, inputs: Inputs) -> Named:
    """Other outcomes than the data, by site; a program that observes nothing of the data is refused here."""
    with private_stream(0):
        theta = for_rows(fit.model, fit.posterior.draws(1), data, inputs)
        return predictive.other_outcomes(fit.model, predictive.at(theta, 0), data, u=inputs)


@_as_asked
def log_likelihood(
    fit: "Fit", x: object, draws: int, *, u: object, per: str, random_seed: int | None
) -> xr.DataArray | xr.Dataset:
    """See `Fit.log_likelihood`."""
    if per not in ("row", "step", "site"):
        raise DataError(f'log_likelihood: per must be "row", "step" or "site", got {per!r}; choose one')
    observations, data, inputs = read(fit, x, u)
    dims = _dims(observations)
    if per == "step" and dims[1:2] != ("time",):
        raise DataError(f'log_likelihood: per="step" is for data with time, got {", ".join(dims)}; ask for rows')
    require_memory("log_likelihood", draws, data.shape[: 1 + (per == "step")].numel(), "pass fewer draws")
    alone = per == "row" and shares_nothing(fit)  # then all draws are the same, and their proposals are made at once
    count = 1 if alone else draws
    ways: dict[str, Callable[..., Any]] = {
        "row": partial(
            predictive.log_likelihood, proposals=predictive.proposals_of(draws) if alone else predictive.PROPOSALS
        ),
        "step": steps.log_steps,
        "site": predictive.log_likelihoods,
    }
    one = ways[per]

    def score(theta: predictive.Theta) -> Any:  # noqa: ANN401 (a tensor, or one for each site)
        return one(fit.model, theta, data, u=inputs)

    with estimates() as note:
        values = at_draws(fit, "log_likelihood", score, (data, inputs), count, random_seed)
    if per == "site":
        means = {name: torch.logsumexp(value, 0) - np.log(draws) for name, value in values.items()}
        return xr.Dataset({name: _label(fit, observations, mean, dims[:1]) for name, mean in means.items()})
    if per == "row":
        mean = torch.logsumexp(values, 0) - np.log(len(values))
        return _label(fit, observations, mean, dims[:1]).rename("log_likelihood").assign_attrs(note.attrs)
    exists = predictive.exists(fit.model, data).flatten(2).any(-1)
    mean = torch.where(exists, steps.averaged(values), torch.nan)
    return _label(fit, observations, mean, dims[:2]).rename("log_likelihood")


def _latents(fit: "Fit", data: Tensor, inputs: Inputs, draws: int) -> predictive.Latents:
    if isinstance(fit.posterior, Factors) and isinstance(fit.model, Conjugate):
        with torch.no_grad():
            found = observed_given(fit.model, fit.posterior.statistics(), data, inputs, fit.posterior.points)
            exact = [fn.latents(value) for fn, value in found.values() if hasattr(fn, "latents")]
            if exact:
                return predictive.summarized(exact[0], draws)
    posterior = fit.numbered_posterior
    given = tuple(posterior.discrete) if isinstance(posterior, Draws) else ()
    count = AVERAGED if isinstance(posterior, Factors) or given else min(AVERAGED, posterior.size)
    theta = for_rows(fit.model, posterior.draws(count), data, inputs)
    if memory(fit.model).is_of(data, inputs):  # then probabilities say more than draws
        theta, given = {name: value for name, value in theta.items() if name not in given}, ()
    if not shares_nothing(fit):
        return predictive.latents(fit.model, theta, data, draws, u=inputs, given=given)
    weighed = pool_of(fit.model, data, inputs, max(draws, AVERAGED))
    drawn = predictive.latents(fit.model, weighed.draws(max(draws, AVERAGED)), data, draws, u=inputs)
    return replace(drawn, values={**drawn.values, **weighed.means()})


def at_draws(
    fit: "Fit",
    who: str,
    answer: Callable[[predictive.Theta], Any],
    rows: tuple[Tensor, Inputs],
    draws: int,
    random_seed: int | None,
    *,
    keep: Tensor | None = None,
    pool: bool = False,
    progressbar: bool = True,
) -> Any:  # noqa: ANN401 (what the answer is)
    """``answer`` at each of ``draws`` draws in one array; see `gather` in :mod:`ppgen.predictions.over_draws`.

    Where the ``rows`` (data and inputs) share nothing and ``pool`` is asked for, a draw is one of what they own.
    """
    hidden = not progressbar
    with (
        private_stream(random_seed),
        watched(who),
        tqdm(total=draws, desc=who, delay=DELAY, leave=False, disable=hidden) as bar,
    ):
        theta = for_rows(fit.model, fit.posterior.draws(draws), *rows)
        if pool and NOTHING in theta:
            theta = pool_of(fit.model, *rows, draws).draws(draws)
        return predictive.gather(answer, theta, keep=keep, done=bar.update)


def shares_nothing(fit: "Fit") -> bool:
    """Tell whether each row owns all latents, so that every draw of the parameters is the same."""
    posterior = fit.posterior
    return isinstance(posterior, Draws) and {*posterior.sites, *posterior.discrete} <= set(memory(fit.model).of_rows)


def _dims(observations: xr.DataArray) -> tuple[str, ...]:
    return tuple(map(str, observations.dims))


def _labelled(fit: "Fit", observations: xr.DataArray, values: Named) -> xr.DataArray | xr.Dataset:
    """Draws of the data, or of them and of each other outcome by its site."""
    dims = _dims(observations)
    found = _label(fit, observations, values["x"], ("draw", *dims)).rename(observations.name)
    if len(values) == 1:
        return found
    own = {
        name: _label(fit, observations, value, ("draw", *outcome_dims(fit.model, name, value[0], observations)))
        for name, value in values.items()
        if name != "x"
    }
    return xr.Dataset({"x": found, **own})


def outcome_dims(model: Model, name: str, value: Tensor, observations: xr.DataArray) -> tuple[str, ...]:
    """Names of the axes of another outcome: its rows are those of the data if its site lies in their plate."""
    dims = [f"{name}_dim_{axis}" for axis in range(value.ndim)]
    known = memory(model)
    if value.ndim and len(value) == len(observations) and (name in known.in_rows or not known.row_plates):
        dims[0] = str(observations.dims[0])
    return tuple(dims)


def _label(fit: "Fit", observations: xr.DataArray, values: Tensor, dims: tuple[str, ...]) -> xr.DataArray:
    """Values with their dims; rows and draws without labels of their own are numbered."""
    sizes = dict(zip(dims, values.shape, strict=True))
    counted = {dim: range(sizes[dim]) for dim in ("draw", str(observations.dims[0])) if dim in sizes}
    counted = {dim: labels for dim, labels in counted.items() if dim not in observations.coords}
    return like(observations, values, dims, coords={**counted, **{d: v for d, v in names(fit).items() if d in dims}})
