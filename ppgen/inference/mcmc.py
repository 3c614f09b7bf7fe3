r"""Markov chain Monte Carlo: the no-U-turn sampler over every parameter, latents summed out by the model.

Chains run in lockstep in one process, so that an interruption leaves as many draws of each. Recorded per draw: the
energy at the start of its trajectory, whether it diverged, its leapfrog steps, and the step size.

References: Hoffman & Gelman (2014); Betancourt (2017).
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import pandas as pd
import torch
from pyro.infer.autoguide.initialization import init_to_mean, init_to_sample, init_to_value
from pyro.infer.mcmc import NUTS
from torch import Tensor
from tqdm import tqdm

from ppgen.data.arrays import as_observations, to_tensor
from ppgen.errors import DataError, FitError
from ppgen.inference.guides import copy_model
from ppgen.inference.predictive import at, isolated, missing_share
from ppgen.model import Model
from ppgen.results.arguments import as_inputs, require_at_least
from ppgen.results.fit import Fit, fit_result
from ppgen.results.posterior import Draws
from ppgen.rng import private_stream

__all__ = ["fit"]

STARTS: dict[str, Callable[..., Any]] = {"prior": init_to_sample, "mean": init_to_mean}


def fit(
    model: Model,
    x: object,
    *,
    u: object = None,
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    dense_mass: bool = False,
    start: Fit | str = "prior",
    random_seed: int | None = None,
    progressbar: bool = True,
) -> Fit:
    """Sample the posterior of every parameter of ``model``.

    Parameters
    ----------
    model : it is not changed; the fit holds a copy.
    x : observations, anything :func:`ppgen.data.as_observations` takes; NaN is not observed.
    u : inputs of the model.
    draws, tune : kept draws, and adaptation steps before them, of each chain.
    chains : one alone cannot check itself.
    target_accept : acceptance to adapt the step size to; nearer 1 takes smaller steps.
    max_tree_depth : at most 2 to this power leapfrog steps a draw.
    dense_mass : adapt a full mass matrix (few, correlated parameters).
    start : ``"prior"`` (each chain from its own draw), ``"mean"`` (of the prior), or an earlier fit, from whose
        draws the chains start.

    Returns
    -------
    Fit
        Its posterior is `Draws`; interrupted by Ctrl-C, with the draws there are.

    Raises
    ------
    DataError : data or options that cannot be used.
    FitError : no starting point with finite density, or no draw that is finite.
    """
    _check_options(draws, tune, chains, target_accept, start)
    observations = as_observations(x, dims=model.data_dims)
    data = to_tensor(observations)
    inputs = as_inputs("mcmc", u, data)
    model = copy_model(model)
    model.check(data)
    began = time.perf_counter()
    with private_stream(random_seed) as seed, isolated():
        kernels = [
            RecordingNUTS(
                model.model,
                target_accept_prob=target_accept,
                max_tree_depth=max_tree_depth,
                full_mass=dense_mass,
                init_strategy=strategy,
            )
            for strategy in _starts(start, chains)
        ]
        runs, interrupted = _run(kernels, data, inputs, tune, draws, progressbar)
        posterior = _gather(kernels, runs, tune)
    attrs = {
        "engine": "mcmc",
        "random_seed": seed,
        "interrupted": interrupted,
        "seconds": time.perf_counter() - began,
        "tune": tune,
        "missing_share": missing_share(model, data),
    }
    return fit_result(model, posterior, _history(runs, tune), attrs, observations)


class Step(NamedTuple):
    """One transition: where it ended (unconstrained), and what was recorded."""

    place: dict[str, Tensor]
    record: dict[str, float | bool]


@final
class RecordingNUTS(NUTS):
    """Pyro's sampler, which forgets what diagnostics need: it notes each trajectory's energy, length and divergence."""

    _first_energy: float | None = None
    _evaluations: int = 0

    def transition(self, place: dict[str, Tensor]) -> Step:
        """One draw and its record."""
        self._first_energy, self._evaluations = None, 0
        divergences = len(self._divergences)
        place = self.sample(place)
        record = {
            "energy": math.nan if self._first_energy is None else self._first_energy,
            "diverging": len(self._divergences) > divergences,
            "n_steps": self._evaluations - 1,
            "step_size": float(self.step_size),
        }
        return Step({site: value.detach() for site, value in place.items()}, record)

    def _kinetic_energy(self, r_unscaled: dict[Any, Tensor]) -> Tensor:
        """Called first with a trajectory's fresh momentum, then once per leapfrog step."""
        energy = super()._kinetic_energy(r_unscaled)
        if self._first_energy is None and self._potential_energy_last is not None:
            self._first_energy = float(energy + self._potential_energy_last)
        self._evaluations += 1
        return energy


def _check_options(draws: int, tune: int, chains: int, target_accept: float, start: Fit | str) -> None:
    require_at_least("mcmc: draws", draws, 1)
    require_at_least("mcmc: tune", tune, 0)
    require_at_least("mcmc: chains", chains, 1)
    if not 0 < target_accept < 1:
        raise DataError(f"mcmc: target_accept must be between 0 and 1, got {target_accept}; 0.8 is usual")
    if not isinstance(start, Fit) and start not in STARTS:
        raise DataError(f"mcmc: start must be one of {sorted(STARTS)} or an earlier fit, got {start!r}")


def _starts(start: Fit | str, chains: int) -> list[Callable[..., Any]]:
    """A starting strategy per chain."""
    if isinstance(start, str):
        return [STARTS[start]] * chains
    theta = start.posterior.draws(chains)
    return [init_to_value(values=at(theta, chain)) for chain in range(chains)]


def _run(
    kernels: Sequence[RecordingNUTS], x: Tensor, u: Tensor | None, tune: int, draws: int, progressbar: bool
) -> tuple[list[list[Step]], bool]:
    """All chains in lockstep; what there is when interrupted, if there is a draw."""
    runs: list[list[Step]] = [[] for _ in kernels]
    places = [_set_up(kernel, x, u, tune) for kernel in kernels]
    with tqdm(total=tune + draws, desc="mcmc", disable=not progressbar, delay=1) as bar:
        try:
            for _ in range(tune + draws):
                for chain, kernel in enumerate(kernels):
                    runs[chain].append(kernel.transition(places[chain]))
                    places[chain] = runs[chain][-1].place
                bar.update()
                bar.set_postfix_str(f"step size {kernels[0].step_size:.2g}", refresh=False)
        except KeyboardInterrupt:
            if min(map(len, runs)) <= tune:
                raise
            return runs, True
    return runs, False


def _set_up(kernel: RecordingNUTS, x: Tensor, u: Tensor | None, tune: int) -> dict[str, Tensor]:
    """Find a starting place of finite density."""
    try:
        kernel.setup(tune, x, u=u)
    except ValueError as error:
        if "valid initial params" not in str(error):
            raise
        raise FitError(
            "mcmc: a starting point must have finite density and gradient, 100 tries found none; scale the data to "
            "about unit variance, tighten the priors, or start from another fit"
        ) from error
    return kernel.initial_params


def _gather(kernels: Sequence[RecordingNUTS], runs: Sequence[Sequence[Step]], tune: int) -> Draws:
    """Draws of every site in its own units, as many of each chain, and the records beside them."""
    kept = [run[tune : min(map(len, runs))] for run in runs]
    sites: dict[str, list[Tensor]] = {}
    for kernel, run in zip(kernels, kept, strict=True):
        for site in run[0].place:
            free = torch.stack([step.place[site] for step in run])
            transform = kernel.transforms.get(site)
            sites.setdefault(site, []).append(free if transform is None else transform.inv(free))
    records = {
        name: torch.from_numpy(np.array([[step.record[name] for step in run] for run in kept]))
        for name in kept[0][0].record
    }
    draws = Draws({site: torch.stack(values) for site, values in sites.items()}, records)
    bad = sorted(site for site, value in draws.sites.items() if not bool(torch.isfinite(value).all()))
    if bad:
        raise FitError(f"mcmc: draws must be finite, those of {bad} are not; scale the data, or tighten the priors")
    return draws


def _history(runs: Sequence[Sequence[Step]], tune: int) -> pd.DataFrame:
    """One row per chain and step, tuning included."""
    rows = [
        {"step": number + 1, "chain": chain, "tuning": number < tune, **step.record}
        for chain, run in enumerate(runs)
        for number, step in enumerate(run)
    ]
    return pd.DataFrame(rows)
