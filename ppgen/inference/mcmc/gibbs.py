r"""Gibbs sampling of a conjugate model: latents, missing entries and parameters are drawn in turn, given the others.

.. math:: z, h \sim p(\cdot \mid x_\text{seen}, \theta), \qquad x_\text{missing} \sim p(\cdot \mid z, h, x_\text{seen},
    \theta), \qquad \theta \sim p(\cdot \mid z, h, x)

The first line is one joint draw of all latents where messages can be passed exactly, with missing entries summed out;
else each block is drawn given the others. The last is a draw from the conjugate posterior of complete data. Nothing is
tuned, no density is bounded, and discrete latents are never summed over where that has no closed form.

References: Geman & Geman (1984); Tanner & Wong (1987) for missing entries; Frühwirth-Schnatter (2006), §11.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast, final

import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from ppgen.collapsed.base import Collapsed
from ppgen.data.arrays import exists
from ppgen.errors import DataError, FitError
from ppgen.expecting import ascended, first_factors, observed_given
from ppgen.inference.mcmc.enough import EXTRA, FIRST_LOOK, least_size
from ppgen.inference.mcmc.latent_moves import drawn_moves
from ppgen.model import Conjugate, Factor, tracked, updated
from ppgen.predictions.predictive import missing_share
from ppgen.programs.isolated import isolated
from ppgen.programs.task import Task, read
from ppgen.results.fit import Fit, fit_result
from ppgen.results.posterior import Draws
from ppgen.rng import private_stream

__all__ = ["CHAINS", "TUNE", "gibbs"]

CHAINS, TUNE = 4, 200
UPDATES = 20  # of the factors that a chain begins from
BELOW, BELOW_EACH = 8.0, 0.2  # nats below the best, and for each number, at which a start gives way
BETWEEN_LOOKS = 50  # draws between two looks, at least

Sites = dict[str, Tensor]


class Record(NamedTuple):
    """Sites after a sweep, and the log joint density of everything drawn, up to a constant."""

    sites: Sites
    log_joint: float


@final
class Chain:
    """One chain on data ``x``: parameters ``theta``, and the latents of each observed site where they are a state."""

    def __init__(self, task: Task, theta: Sites) -> None:
        self.model, self.x, self.u = cast(Conjugate, task.model), task.args[0], task.kwargs["u"]
        self.theta, self.prior = theta, self.model.natural_prior()
        self.latents: dict[str, Mapping[str, Tensor]] = {}
        self.filled: dict[str, Tensor] = {}

    def sweep(self) -> Record:
        """Draw latents, missing entries and parameters once."""
        s = {name: tracked(factor.family.statistic(self.theta)) for name, factor in self.prior.items()}
        with isolated():
            found = observed_given(self.model, s, self.x, self.u)
        joint = []
        for name, (fn, x) in found.items():
            with torch.no_grad():
                self.latents[name], self.filled[name] = self._completed(name, fn, x)
            joint.append(fn.joint(self.filled[name], self.latents[name]).sum())
        total = torch.stack(joint).sum()
        total.backward()
        before = float(total.detach() + self._log_prior(self.theta))
        if not torch.isfinite(torch.tensor(before)):
            raise FitError("mcmc: the log joint density must be finite in a Gibbs sweep, but it is not; scale the data")
        seen = Record(self.theta, before)
        self.theta = {}
        for name, factor in self.prior.items():
            posterior = updated(factor, s[name])
            self.theta |= {site: value[0] for site, value in factor.family.sample(posterior.eta, 1).items()}
        if self.model.latent_width:
            self._move()
        return seen

    def _move(self) -> None:
        """Stretch and shift the latent space, with the parameters that go with it."""
        there = torch.cat([exists(x)[:, 0] for x in self.filled.values()])
        first = torch.cat([values["h"][:, 0] for values in self.latents.values()])[there]
        self.theta, moves = drawn_moves(self.model, self.theta, first, self._log_prior)
        for name, values in self.latents.items():
            h = values["h"]
            for move in moves:
                h = move.of(h)[0]
            self.latents[name] = {**values, "h": h}

    def _completed(self, name: str, fn: Collapsed, x: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """Latents drawn given the data, or given all else, and the data with its gaps drawn given these."""
        before = self.filled.get(name)
        if fn.exact(x):
            values: Mapping[str, Tensor] = fn.draw(x)
        elif before is not None and fn.exact(before):
            values = fn.draw(before)
        else:
            values = fn.sweep(x, self.latents[name] if name in self.latents else fn.draw(x))
        return values, fn.fill(x, values)

    def _log_prior(self, theta: Mapping[str, Tensor]) -> Tensor:
        scores: list[Tensor] = []

        def replay(site: str, distribution: Any) -> Tensor:  # noqa: ANN401 (torch's or pyro's)
            scores.append(distribution.log_prob(theta[site]))
            return theta[site]

        for factor in self.prior.values():
            factor.family.draw(factor.eta, replay)
        return sum(scores, torch.zeros((), dtype=torch.float64))


def gibbs(
    model: Conjugate | Callable[..., Any],
    x: object,
    *,
    u: object,
    draws: int,
    min_ess: float | None,
    tune: int | None,
    chains: int | None,
    start: Fit | str,
    random_seed: int | None,
    progressbar: bool,
) -> Fit:
    """Sample the posterior of a conjugate model; called by ``mcmc.fit(sampler="gibbs")``, whose options these are."""
    if not isinstance(model, Conjugate):
        name = type(model).__name__ if not callable(model) or hasattr(model, "model") else "a function"
        raise DataError(f'mcmc: sampler="gibbs" needs a conjugate model, got {name}; leave sampler out')
    began, tune, chains = time.perf_counter(), TUNE if tune is None else tune, chains or CHAINS
    task = read("mcmc", model, (x,), u)
    with private_stream(random_seed) as seed, task.explained("mcmc"):
        _check_points(cast(Conjugate, task.model))
        run = Run([Chain(task, theta) for theta in _starts(task, start, chains)], draws, tune, min_ess)
        run.go(progressbar)
    attrs = {
        "engine": "mcmc",
        "sampler": "gibbs",
        "random_seed": seed,
        "interrupted": run.interrupted,
        "seconds": time.perf_counter() - began,
        "tune": tune,
        "stopped": run.why(),
        "bounded_sites": [],
        "missing_share": missing_share(task.model, task.args[0]),
    }
    observations = cast(xr.DataArray, task.observations)
    return fit_result(task.model, run.posterior(), run.table(), attrs, observations, task.inputs)


@final
class Run:
    """Chains side by side, until there are ``draws`` of each or their least effective size is ``wanted``."""

    def __init__(self, chains: Sequence[Chain], draws: int, tune: int, wanted: float | None) -> None:
        self.chains, self.draws, self.tune, self.wanted = chains, draws, tune, wanted
        self.kept: list[list[Record]] = [[] for _ in chains]
        self.history: list[float] = []
        self.interrupted, self.size, self.next = False, float("nan"), min(FIRST_LOOK, draws)

    @property
    def count(self) -> int:
        """Draws of every chain so far."""
        return len(self.kept[-1])

    def go(self, progressbar: bool) -> None:
        """Make the sweeps; on Ctrl-C keep what there is, if there is a draw."""
        try:
            for number in tqdm(range(self.tune + self.draws), desc="mcmc", disable=not progressbar, delay=0.5):
                found = [chain.sweep() for chain in self.chains]
                self.history.append(sum(record.log_joint for record in found) / len(found))
                if number >= self.tune:
                    for kept, record in zip(self.kept, found, strict=True):
                        kept.append(record)
                if self._enough():
                    break
        except KeyboardInterrupt:
            if not self.count:
                raise
            self.interrupted = True

    def posterior(self) -> Draws:
        """Draws of every site in the order in which the model draws them, with the log joint densities."""
        sites = {
            name: torch.stack([torch.stack([record.sites[name] for record in chain]) for chain in self.kept])
            for name in self.kept[0][0].sites
        }
        log_joint = [[record.log_joint for record in chain] for chain in self.kept]
        return Draws(sites, {"lp": torch.tensor(log_joint, dtype=torch.float64)})

    def _enough(self) -> bool:
        if self.wanted is None or self.count < self.next:
            return False
        self.size = least_size(self.chains[0].model, self.posterior())
        needed = int(EXTRA * self.count * self.wanted / self.size) if self.size > 0 else 2 * self.count
        self.next = min(max(needed, self.count + BETWEEN_LOOKS), 2 * self.count)
        return self.size >= self.wanted

    def why(self) -> str:
        """Why the run ended when it did."""
        if self.interrupted:
            return f"interrupted after {self.count} draws a chain"
        if self.wanted is None:
            return f"{self.count} draws a chain, as asked for"
        if self.size >= self.wanted:
            return (
                f"least effective size {self.size:,.0f} of {self.wanted:,.0f} wanted, after {self.count} draws a chain"
            )
        return f"{self.count} draws a chain, the most allowed, before the effective size of {self.wanted:,.0f}"

    def table(self) -> pd.DataFrame:
        """One row per sweep: the mean over chains of the log joint density of all that was drawn."""
        step = range(1, len(self.history) + 1)
        return pd.DataFrame({"step": step, "tuning": [n <= self.tune for n in step], "log_joint": self.history})


def _check_points(model: Conjugate) -> None:
    if model.points:
        raise DataError(
            f'mcmc: sampler="gibbs" draws the factors of {type(model).__name__} alone, got sites '
            f"{sorted(model.points)} beside them; leave sampler out"
        )


def _starts(task: Task, start: Fit | str, chains: int) -> Iterator[Sites]:
    """Parameters for each chain to begin from: draws after one update of each of the model's ways to start in turn."""
    model = cast(Conjugate, task.model)
    if isinstance(start, Fit):
        found = start.posterior.draws(chains)
        yield from ({site: value[number] for site, value in found.items()} for number in range(chains))
        return
    begun = [model.natural_prior()] * chains if start == "prior" else _climbed(task, model, chains)
    for factors in begun:
        theta: Sites = {}
        for factor in factors.values():
            theta |= {site: value[0] for site, value in factor.family.sample(factor.eta, 1).items()}
        yield theta


def _climbed(task: Task, model: Conjugate, chains: int) -> list[dict[str, Factor]]:
    """Factors to begin from, one for each chain: after some updates from the model's ways to start in turn.

    One whose bound is far below the best gives way to that, for no chain would leave its mode.
    """
    batches, inputs = [task.args[0]], [task.kwargs["u"]]
    tried: list[tuple[dict[str, Factor], float]] = []
    with isolated():
        for number in range(chains):
            way = model.starts[0 if model.ordered else number % len(model.starts)]
            first = first_factors(model, batches, inputs, way)
            tried.append((first, 0.0) if model.only_gibbs else ascended(model, batches, inputs, first, UPDATES))
    size = sum(value.numel() for factor in tried[0][0].values() for value in factor.eta.values())
    best, bound = max(tried, key=lambda found: found[1])
    return [own if reached > bound - BELOW - BELOW_EACH * size else best for own, reached in tried]
