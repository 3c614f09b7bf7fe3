"""The result of a fit: labelled answers about any data its model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor

from ppgen.arguments import require_at_least
from ppgen.data.inputs import LabelledInputs, labels_of
from ppgen.diagnostics.checks import Report
from ppgen.errors import DataError
from ppgen.model import Model
from ppgen.programs.memory import memory
from ppgen.programs.program import Function
from ppgen.results import answers
from ppgen.results.checks import diagnose
from ppgen.results.conditional import log_conditional
from ppgen.results.function_rows import as_asked
from ppgen.results.information import expected_information
from ppgen.results.labels import SWITCHED, Switched, aligned, numbered
from ppgen.results.numbering import ordered, renamed, warn
from ppgen.results.outliers import outliers
from ppgen.results.posterior import Draws, Factors
from ppgen.results.reading import Read, read
from ppgen.results.rebuild import Given
from ppgen.results.stored import describe_fit, restore_parts
from ppgen.rng import private_stream
from ppgen.storage.folder import read_folder, versions, write_folder

__all__ = ["Fit", "fit_result", "load"]


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A fitted model: the model, the posterior of its parameters, and the record of the run.

    Parameters
    ----------
    model : the model that was fitted.
    posterior : `Factors` (variational Bayes) or `Draws` (MCMC, SVI).
    history : one row per step of the run.
    attrs : engine, seed, whether it converged or was interrupted, versions, times; JSON values.
    labels : coordinates of the training data, {dim: labels}; of a plain function those of its first argument.

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

    @property
    def params(self) -> Mapping[str, Tensor]:
        """Values that the ``pyro.param`` statements of the program learnt in `svi.fit`; predictions use them."""
        return memory(self.model).params

    def latents(self, x: object, draws: int = 0, *, u: object = None, random_seed: int | None = None) -> xr.Dataset:
        """Posterior of the latents that were summed out: probabilities (or means), modes and ``draws`` draws.

        A hidden Markov model has ``z`` (sequence, time, state), NaN past the end of a sequence, and ``z_mode`` and
        ``z_draw``, numbers of states along ``state``, -1 past the end. Variational Bayes gives the exact q(z), whose
        mode is the most probable path. Draws give the average over up to 200 of them, whose mode is the most probable
        state of each step. Discrete sites that `mcmc.fit` summed out by enumeration have their own names, and their
        values are numbered.
        """
        return answers.latents(self, x, draws, u=u, random_seed=random_seed)

    def impute(
        self,
        x: object,
        draws: int = 500,
        *,
        u: object = None,
        sparse: bool = False,
        random_seed: int | None = None,
        progressbar: bool = True,
    ) -> xr.DataArray | xr.Dataset:
        """Predictive draws of exactly the missing entries; observed entries are the data, bit for bit.

        Trailing NaN is the end of a sequence and stays NaN; see `forecast`. ``sparse`` gives a Dataset with ``x``
        (draw, missing) and the position of each missing entry, which is all that a large recording needs. Further
        outcomes of a plain function come along as in `posterior_predictive`.

        Raises
        ------
        DataError : when the draws would need more than 4 GB.
        """
        return answers.impute(self, x, draws, u=u, sparse=sparse, random_seed=random_seed, progressbar=progressbar)

    def outliers(
        self,
        x: object,
        draws: int = 500,
        *,
        level: float = 0.05,
        u: object = None,
        random_seed: int | None = None,
        progressbar: bool = True,
    ) -> xr.Dataset:
        """Entries of ``x`` that look wrong: how far out each lies of what the others say it should have been.

        ``tail`` is the probability of a value as far out on either side, given the rest of the row (of a sequence:
        given 19 in 20 of the other entries), from ``draws`` draws, beyond which it is extrapolated; ``expected``,
        ``low`` and ``high`` are the median of what it should have been and the ends of 95 %. ``adjusted`` is the least
        false discovery rate at which the entry would be called an outlier, ``outlier`` whether it is below ``level``.
        Missing entries have NaN; so has the last step of a sequence where it is hidden whole. See
        `ppgen.results.outliers`.

        Raises
        ------
        DataError : fewer than 100 draws, a level outside 0 and 1, or data without an observed entry.
        """
        return outliers(self, x, draws, level, u=u, random_seed=random_seed, progressbar=progressbar)

    def predict(
        self,
        x: object,
        draws: int = 500,
        *,
        quantiles: float | Sequence[float] = (0.05, 0.5, 0.95),
        u: object = None,
        random_seed: int | None = None,
    ) -> xr.Dataset:
        """The distribution of each missing entry given everything observed, parameter uncertainty included.

        ``estimate`` (its mean), ``sd`` and ``quantiles`` (quantile, ...) over ``draws`` draws of `impute`. An observed
        entry is itself, with an ``sd`` of zero.

        Raises
        ------
        DataError : quantiles outside 0 and 1, or draws that would need more than 4 GB.
        """
        return answers.predict(self, x, draws, quantiles, u=u, random_seed=random_seed)

    def expected_information(
        self,
        x: object,
        candidates: Sequence[object] | None = None,
        draws: int = 1000,
        *,
        about: Sequence[object] | None = None,
        u: object = None,
        random_seed: int | None = None,
        progressbar: bool = True,
    ) -> xr.Dataset:
        """What each missing entry of ``x``, measured next, would teach about the other missing ones of its row.

        ``information`` is the mutual information in nats given what was observed, the parameters known, averaged over
        ``draws`` of them; ``mc_error`` is its standard error, so the estimate of a useless entry may be below zero.
        ``candidates`` and ``about`` are labels of features: those that could be measured, and those that one wants to
        know. The rest is NaN. Of a time series a row is a sequence, and every missing entry costs three passes over the
        data for each draw.

        Raises
        ------
        DataError : labels that the data lack, no candidate that is missing, or fewer than two draws.
        """
        return expected_information(
            self, x, candidates, about, draws, u=u, random_seed=random_seed, progressbar=progressbar
        )

    def forecast(
        self, x: object, horizon: int, draws: int = 500, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataArray:
        """Draws of the ``horizon`` steps after each sequence's last observation, (draw, sequence, ahead, feature).

        Inputs ``u`` have a row for each step of ``x``, and then one for each step ahead. Labelled ones (a DataFrame
        where ``x`` is one sequence, or a DataArray) have the times of ``x`` among theirs; the times of the steps ahead
        are then the coordinate ``time`` of the answer.

        Raises
        ------
        DataError : data without time, or inputs without these rows.
        """
        return answers.forecast(self, x, horizon, draws, u=u, random_seed=random_seed)

    def posterior_predictive(
        self, x: object, draws: int = 500, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataArray | xr.Dataset:
        """Replicated data sets of the shape of ``x`` (NaN past the end of a sequence), (draw, *dims of x).

        A plain function with further outcomes (sites that observe its other arguments) gives a Dataset: ``x``, and
        each outcome by the name of its site. Entries of ``x`` that no site observes stay as they are.
        """
        return answers.posterior_predictive(self, x, draws, u=u, random_seed=random_seed)

    def log_likelihood(
        self,
        x: object,
        draws: int = 200,
        *,
        u: object = None,
        per: str = "row",
        random_seed: int | None = None,
    ) -> xr.DataArray | xr.Dataset:
        """Log posterior predictive density of each sequence or row in nats: log of the mean of p(x | theta).

        The density of a row is that of all its observed sites. ``per="site"`` gives a Dataset with the density of each
        site by itself; their draws of p(x | theta), not these means, sum to the row's.

        Where p(x | theta) has no closed form, it is estimated without bias, and ``attrs`` says so.

        ``per="step"`` splits the density of a time series, (sequence, time), into log p(x_t | x_1, ..., x_{t-1}), which
        sum to that of their sequence; 0 where nothing was observed, NaN past the end. For data held out from the fit
        they score forecasts of one step; for the data of the fit they are in-sample, since the posterior has seen them.

        Raises
        ------
        FitError : the density of a step is not known, as where missing frames have no closed form.
        """
        return answers.log_likelihood(self, x, draws, u=u, per=per, random_seed=random_seed)

    def log_conditional(
        self, x: object, given: object, draws: int = 200, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataArray:
        """Log density of the values of ``x`` that ``given`` does not have, given those that it has, of each row.

        ``given`` is ``x`` with some entries hidden by NaN. In nats: log of the mean over ``draws`` draws of theta of
        p(x | theta) / p(given | theta). With a fit of ``given`` it scores predictions of what was hidden, all entries
        of a row together.

        Raises
        ------
        DataError : ``given`` has another shape, or a value that ``x`` has not.
        """
        return log_conditional(self, x, given, draws, u=u, random_seed=random_seed)

    def to_arviz(
        self, x: object = None, draws: int = 1000, *, u: object = None, random_seed: int | None = None
    ) -> xr.DataTree:
        """ArviZ's DataTree of this fit: at most ``draws`` draws of each chain.

        Without ``x`` it has the groups posterior and sample_stats, and params if `svi.fit` learnt a ``pyro.param``.
        With the data it also has prior, prior_predictive, posterior_predictive, log_likelihood (per sequence or row; if
        the program has none it is left out, and the log says so), observed_data and constant_data, and values of
        ``pyro.deterministic`` beside the parameters, for which the program is run again. Exchangeable labels are
        numbered alike in every draw (`relabel`).
        """
        from ppgen.results.arviz import to_arviz  # ArviZ is slow to import

        require_at_least("to_arviz: draws", draws, 1)
        read = None if x is None else self._read(x, u)
        with private_stream(random_seed):
            tree = to_arviz(self.relabel(), read, draws)
        for name, group in () if read is None else tree.children.items():
            tree[name] = xr.DataTree(as_asked(self, x, group.to_dataset()))
        return tree

    def diagnose(
        self, x: object = None, draws: int = 1000, *, u: object = None, random_seed: int | None = None
    ) -> Report:
        """Say whether this fit can be trusted, failing closed; see :mod:`ppgen.diagnostics.checks`.

        A variational fit is compared with the exact posterior (Pareto k-hat over ``draws`` draws) only if the data
        ``x`` are given again.
        """
        require_at_least("diagnose: draws", draws, 1)
        with private_stream(random_seed):
            return diagnose(self, None if x is None else self._read(x, u), draws)

    def relabel(self, labels: Mapping[str, int | tuple[int, ...]] | None = None) -> "Fit":
        """Number exchangeable labels alike in every draw; see :mod:`ppgen.diagnostics.relabel`.

        Parameters
        ----------
        labels : for a plain function, the sites that have labels, and the axes (among the site's own, from 0) that they
            number: ``{"mu": 0, "weight": 0}``. A model that names its ``exchangeable`` axes needs none.

        `diagnose`, `latents` and `to_arviz` do this themselves if a model names its axes. Variational factors have one
        numbering. What the chains did is kept, and `diagnose` still says it.

        Raises
        ------
        DataError : labels of sites or axes that are not there, or of variational factors.
        """
        if labels is not None and not isinstance(self.posterior, Draws):
            raise DataError(
                "relabel: variational factors have one numbering, so there is nothing to align, got labels; use "
                "fit.order or fit.rename"
            )
        if not isinstance(self.posterior, Draws) or labels is None:
            posterior, switched = self._numbered
            if posterior is self.posterior:
                return self
            before = self.attrs.get(SWITCHED, {})  # what the chains did, not what was left to align
            return replace(self, posterior=posterior, attrs={**self.attrs, SWITCHED: {**switched, **before}})
        axes = {site: (axis,) if isinstance(axis, int) else tuple(axis) for site, axis in labels.items()}
        posterior, found = aligned(self.posterior, {"the draws": axes})
        words = [alignment.words(name) for name, alignment in found.items()]
        return replace(self, posterior=posterior, attrs={**self.attrs, "relabelled": words})

    def rename(self, **axes: Sequence[str]) -> "Fit":
        """Name labels, once it is known which is which: ``fit.rename(state=["rest", "run"])`` gives a new fit.

        Raises
        ------
        DataError : an axis that no parameter has, or another number of names.
        """
        return renamed(self, axes)

    def order(
        self, axis: str, by: str, *, x: object = None, u: object = None, descending: bool = False, **where: object
    ) -> "Fit":
        """Reorder exchangeable labels: ``fit.order("state", by="location", feature="speed")`` gives a new fit.

        Nothing that the fit says of data changes. Names that `rename` gave go with their labels; names that the model
        had before the fit stay where they are, the first for the label that is now first.

        Parameters
        ----------
        axis : one of ``model.exchangeable``.
        by : a site, whose posterior mean then ascends; with the data ``x`` a variable of `latents`, whose average over
            the data then ascends: ``by="z", x=x, descending=True`` puts the most used first.
        where : labels to select along other axes of ``by``.

        Raises
        ------
        DataError : labels with a meaning of their own, or nothing of that name to order by.
        """
        return ordered(self, axis, by, where, x=x, u=u, descending=descending)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write this fit to a new ``folder``, as a whole or not at all; ``overwrite`` replaces an earlier fit there.

        Files in the folder that are not the fit's own stay where they are.

        Raises
        ------
        FileError : the folder holds something, with ``overwrite`` no whole fit, or the model cannot be described.
        """
        content, tensors = describe_fit(self)
        write_folder(folder, content, tensors, self.history, overwrite=overwrite)

    def _read(self, x: object, u: object) -> Read:
        return read(self, x, u)

    @property
    def numbered_posterior(self) -> Factors | Draws:
        """The posterior; of chains, with exchangeable labels numbered alike, and latent spaces turned alike."""
        return self._numbered[0]

    @cached_property
    def _numbered(self) -> tuple[Factors | Draws, Switched]:
        """The posterior as `numbered_posterior`, and how its labels had switched."""
        if not isinstance(self.posterior, Draws) or "log_q" in self.posterior.stats:
            return self.posterior, {}
        return numbered(self.model, self.posterior)


def fit_result(
    model: Model,
    posterior: Factors | Draws,
    history: pd.DataFrame,
    attrs: Mapping[str, Any],
    observations: xr.DataArray,
    inputs: LabelledInputs | None = None,
) -> Fit:
    """Put a `Fit` together: engines call it, and it adds versions and labels of the training data.

    ``inputs`` are those beside the data; an empty one says that there were none, and None that nothing is known.
    """
    labels = labels_of(observations)
    warn(model, posterior)
    if inputs is not None:
        attrs = {**attrs, "inputs": inputs.shape}
        labels |= inputs.names
    if isinstance(model, Function):
        labels |= model.labels
    return Fit(model, posterior, history, {**attrs, "versions": versions()}, labels)


def load(folder: str | Path, model: Given = None) -> Fit:
    """Read a fit that `Fit.save` wrote. Nothing in the folder is executed or imported.

    Parameters
    ----------
    folder : folder of the saved fit.
    model : for your own model its class, or an instance (needed if it has no `config`); for a plain function that
        function, with the numbers and arrays around it that it was fitted with. ppgen's own models need none.

    Raises
    ------
    FileError : missing, truncated, changed or foreign files, another format, or a model that is not the one saved.
    """
    content, tensors, history = read_folder(folder)
    rebuilt, posterior, attrs, labels = restore_parts(content, tensors, model)
    return Fit(rebuilt, posterior, history, attrs, labels)
