"""What a fit gives back: labelled answers about any data its model takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from ppgen.data.arrays import as_observations, like, to_tensor
from ppgen.errors import DataError
from ppgen.inference import predictive
from ppgen.inference.diagnostics import Report
from ppgen.model import Conjugate, Model
from ppgen.results.arguments import as_inputs, require_at_least, require_memory
from ppgen.results.checks import diagnose
from ppgen.results.labels import aligned, declared
from ppgen.results.posterior import Draws, Factors
from ppgen.results.storage import read_folder, versions, write_folder
from ppgen.results.stored import describe_fit, restore_parts
from ppgen.rng import private_stream

__all__ = ["Fit", "fit_result", "load"]

AVERAGED = 200  # draws over which latents are averaged: message passing is paid for each
DELAY = 2  # seconds before a progress bar is shown


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A model, what is believed of its parameters, and the record of the run.

    Parameters
    ----------
    model : the model that was fitted.
    posterior : `Factors` (variational Bayes) or `Draws` (MCMC, SVI).
    history : one row per step of the run.
    attrs : engine, seed, whether it converged or was interrupted, versions, times; JSON values.
    labels : coordinates of the training data, {dim: labels}.

    Every method takes data in any form of :func:`ppgen.data.as_observations`, new data as well as that of the fit, and
    answers with its labels. ``random_seed`` makes an answer with draws repeatable; global generators are not touched.
    """

    model: Model
    posterior: Factors | Draws
    history: pd.DataFrame
    attrs: Mapping[str, Any]
    labels: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        notes = [
            f"{name}={self.attrs[name]!r}" for name in ("engine", "converged", "interrupted") if name in self.attrs
        ]
        return f"Fit({', '.join([type(self.model).__name__, *notes])}, {len(self.history)} steps)"

    def latents(self, x: object, draws: int = 0, *, u: object = None, random_seed: int | None = None) -> xr.Dataset:
        """Posterior of what was summed out: probabilities (or means), modes and ``draws`` draws.

        Of a hidden Markov model: ``z`` (sequence, time, state), ``z_mode`` (-1 past the end of a sequence), ``z_draw``.
        From variational Bayes the exact q(z), whose mode is the most probable path; from draws the average over up to
        200 of them, whose mode is the most probable state of each step. Discrete sites that `mcmc.fit` summed out by
        enumeration come under their own names, their values numbered.
        """
        observations, data, inputs = self._read(x, u)
        require_at_least("latents: draws", draws, 0)
        require_memory("latents", max(draws, 1), data.shape[:2].numel(), "pass fewer draws")
        with private_stream(random_seed):
            found = self._latents(data, inputs, draws)
        variables = {name: self._label(observations, value, found.dims[name]) for name, value in found.values.items()}
        for name, value in found.draws.items():
            variables[name] = self._label(observations, value, ("draw", *found.dims[name]))
        return xr.Dataset(variables, attrs={"engine": str(self.attrs.get("engine", ""))})

    def impute(
        self, x: object, draws: int = 500, *, u: object = None, sparse: bool = False, random_seed: int | None = None
    ) -> xr.DataArray | xr.Dataset:
        """Predictive draws of exactly the missing entries; observed entries are the data, bit for bit.

        Trailing NaN is the end of a sequence and stays NaN; see `forecast`. ``sparse`` gives a Dataset with ``x``
        (draw, missing) and the place of each missing entry, which is all that a large recording needs.

        Raises
        ------
        DataError : when the draws would need more than 4 GB.
        """
        observations, data, inputs = self._read(x, u)
        hidden = torch.isnan(data) & predictive.exists(self.model, data)
        size = int(hidden.sum()) if sparse else data.numel()
        require_memory("impute", draws, size, "pass sparse=True or fewer draws")

        def fill(theta: predictive.Theta, start: Tensor | None = None) -> Tensor:
            return predictive.impute(self.model, theta, data, u=inputs, start=start)

        values = self._predict("impute", fill, draws, random_seed, then=fill, keep=hidden if sparse else None)
        if not sparse:
            return self._label(observations, values, ("draw", *self.model.data_dims)).rename(observations.name)
        places = np.argwhere(hidden.numpy())
        coords = {
            dim: (
                "missing",
                observations[dim].values[places[:, axis]] if dim in observations.coords else places[:, axis],
            )
            for axis, dim in enumerate(self.model.data_dims)
        }
        return xr.Dataset({"x": (("draw", "missing"), values.numpy())}, coords)

    def forecast(
        self, x: object, horizon: int, draws: int = 500, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataArray:
        """Draws of the ``horizon`` steps after each sequence's last observation, (draw, sequence, ahead, feature)."""
        observations, data, inputs = self._read(x, u)
        require_at_least("forecast: horizon", horizon, 1)
        dims = ["ahead" if dim == "time" else dim for dim in self.model.data_dims]
        require_memory("forecast", draws, len(data) * horizon * data[0, 0].numel(), "pass fewer draws")
        values = self._predict(
            "forecast",
            lambda theta: predictive.forecast(self.model, theta, data, horizon, u=inputs),
            draws,
            random_seed,
        )
        answer = self._label(observations, values, ("draw", *dims)).rename(observations.name)
        return answer.assign_coords(ahead=np.arange(1, horizon + 1))

    def posterior_predictive(
        self, x: object, draws: int = 500, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataArray:
        """Replicated data sets of the shape of ``x`` (NaN past the end of a sequence), (draw, *dims of x)."""
        observations, data, inputs = self._read(x, u)
        require_memory("posterior_predictive", draws, data.numel(), "pass fewer draws")
        values = self._predict(
            "posterior_predictive",
            lambda theta: predictive.replicate(self.model, theta, data, u=inputs),
            draws,
            random_seed,
        )
        return self._label(observations, values, ("draw", *self.model.data_dims)).rename(observations.name)

    def log_likelihood(
        self, x: object, draws: int = 200, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataArray:
        """Log posterior predictive density of each sequence or row in nats: log of the mean of p(x | theta)."""
        observations, data, inputs = self._read(x, u)
        require_memory("log_likelihood", draws, len(data), "pass fewer draws")
        values = self._predict(
            "log_likelihood",
            lambda theta: predictive.log_likelihood(self.model, theta, data, u=inputs),
            draws,
            random_seed,
        )
        mean = torch.logsumexp(values, 0) - np.log(draws)
        return self._label(observations, mean, self.model.data_dims[:1]).rename("log_likelihood")

    def to_arviz(
        self, x: object = None, draws: int = 1000, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataTree:
        """ArviZ's DataTree of this fit: at most ``draws`` draws of each chain.

        Without ``x`` the groups posterior and sample_stats; with the data also prior, prior_predictive,
        posterior_predictive, log_likelihood (per sequence or row), observed_data and constant_data. Exchangeable
        labels are numbered alike in every draw (`relabel`).
        """
        from ppgen.results.arviz import to_arviz  # ArviZ is slow to import

        require_at_least("to_arviz: draws", draws, 1)
        read = None if x is None else self._read(x, u)
        with private_stream(random_seed):
            return to_arviz(self.relabel(), read, draws)

    def diagnose(
        self, x: object = None, draws: int = 1000, *, u: object = None, random_seed: int | None = None
    ) -> Report:
        """Say whether this fit can be trusted, failing closed; see :mod:`ppgen.inference.diagnostics`.

        A variational fit is compared with the exact posterior (Pareto k-hat over ``draws`` draws) only where the data
        ``x`` is given again.
        """
        require_at_least("diagnose: draws", draws, 1)
        with private_stream(random_seed):
            return diagnose(self, None if x is None else self._read(x, u), draws)

    def relabel(self, labels: Mapping[str, int | tuple[int, ...]] | None = None) -> "Fit":
        """Number exchangeable labels alike in every draw; see :mod:`ppgen.inference.relabel`.

        Parameters
        ----------
        labels : of a plain function, the sites that have labels and the axes (of the site's own, from 0) that they
            number, ``{"mu": 0, "weight": 0}``; of a model that names its ``exchangeable`` axes, nothing.

        `diagnose`, `latents` and `to_arviz` do this themselves where a model names its axes. Variational factors have
        one numbering.

        Raises
        ------
        DataError : labels of sites or axes that are not there.
        """
        if labels is None or not isinstance(self.posterior, Draws):
            return self if self._numbered is self.posterior else replace(self, posterior=self._numbered)
        axes = {site: (axis,) if isinstance(axis, int) else tuple(axis) for site, axis in labels.items()}
        posterior, found = aligned(self.posterior, {"the draws": axes})
        words = [alignment.words(name) for name, alignment in found.items()]
        return replace(self, posterior=posterior, attrs={**self.attrs, "relabelled": words})

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write this fit to a new ``folder``, all or nothing; ``overwrite`` replaces an earlier fit there.

        Files in the folder that are not the fit's own stay where they are.

        Raises
        ------
        FileError : the folder holds something, with ``overwrite`` no whole fit, or the model cannot be described.
        """
        content, tensors = describe_fit(self)
        write_folder(folder, content, tensors, self.history, overwrite=overwrite)

    def _read(self, x: object, u: object) -> tuple[xr.DataArray, Tensor, Tensor | None]:
        observations = self._aligned(as_observations(x, dims=self.model.data_dims))
        data = to_tensor(observations)
        self.model.check(data)
        return observations, data, as_inputs("Fit", u, data)

    def _aligned(self, observations: xr.DataArray) -> xr.DataArray:
        """Bring named features into the order of the training data; refuse others."""
        axis = self.model.data_dims[-1]
        if axis not in self.labels or axis not in observations.coords:
            return observations
        wanted, given = np.asarray(self.labels[axis]).tolist(), observations[axis].values.tolist()
        if wanted == given:
            return observations
        if sorted(map(str, wanted)) != sorted(map(str, given)):
            raise DataError(f"Fit: x must have the {axis}s of the fit, {wanted}, got {given}; rename or select them")
        return observations.sel({axis: wanted})

    @cached_property
    def _numbered(self) -> Factors | Draws:
        """The posterior; of chains, with exchangeable labels numbered alike in every draw."""
        if not isinstance(self.posterior, Draws) or "log_q" in self.posterior.stats:
            return self.posterior
        labels = declared(self.model, self.posterior)
        return aligned(self.posterior, labels)[0] if labels else self.posterior

    def _latents(self, data: Tensor, inputs: Tensor | None, draws: int) -> predictive.Latents:
        if isinstance(self.posterior, Factors) and isinstance(self.model, Conjugate):
            with torch.no_grad():
                exact = self.model.likelihood(self.posterior.statistics()).latents(data)
                return predictive.summarized(exact, draws)
        posterior = self._numbered
        theta = posterior.draws(AVERAGED if isinstance(posterior, Factors) else min(AVERAGED, posterior.size))
        return predictive.latents(self.model, theta, data, draws, u=inputs)

    def _predict(
        self,
        who: str,
        answer: Callable[[predictive.Theta], Tensor],
        draws: int,
        random_seed: int | None,
        *,
        then: Callable[[predictive.Theta, Tensor], Tensor] | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """``answer`` at each of ``draws`` draws in one array; see `gather` in :mod:`ppgen.inference.over_draws`."""
        with private_stream(random_seed), tqdm(total=draws, desc=who, delay=DELAY, leave=False) as bar:
            return predictive.gather(answer, self.posterior.draws(draws), then, keep=keep, done=bar.update)

    def _label(self, observations: xr.DataArray, values: Tensor, dims: tuple[str, ...]) -> xr.DataArray:
        coords = {dim: list(labels) for dim, labels in self.model.coords.items() if dim in dims}
        return like(observations, values, dims, coords=coords)


def fit_result(
    model: Model,
    posterior: Factors | Draws,
    history: pd.DataFrame,
    attrs: Mapping[str, Any],
    observations: xr.DataArray,
) -> Fit:
    """Put a `Fit` together: engines call it, and it adds versions, labels of the training data, and point estimates.

    A site in ``model.dims`` that no factor draws is a point estimate: the model's attribute of that name.
    """
    if isinstance(posterior, Factors):
        drawn = {site for factor in posterior.factors.values() for site in factor.family.sites}
        points = {site: getattr(model, site) for site in model.dims if site not in drawn and hasattr(model, site)}
        posterior = Factors(posterior.factors, {**points, **posterior.points})
    labels = {str(dim): observations[dim].values for dim in observations.dims if dim in observations.coords}
    return Fit(model, posterior, history, {**attrs, "versions": versions()}, labels)


def load(folder: str | Path, model: Model | type[Model] | None = None) -> Fit:
    """Read a fit that `Fit.save` wrote. Nothing in the folder is executed or imported.

    Parameters
    ----------
    folder : where it was saved.
    model : your own model's class, or an instance of it; ppgen's own models need none.

    Raises
    ------
    FileError : missing, truncated, changed or foreign files, another format, or a model that is not the one saved.
    """
    content, tensors, history = read_folder(folder)
    rebuilt, posterior, attrs, labels = restore_parts(content, tensors, model)
    return Fit(rebuilt, posterior, history, attrs, labels)
