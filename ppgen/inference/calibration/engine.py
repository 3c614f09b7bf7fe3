r"""Simulation-based calibration: whether the posteriors of an engine are those of the model.

Parameters and data are drawn together from the model, :math:`(\theta_0, x) \sim p(\theta)\, p(x \mid \theta)`, each
data set is fitted, and :math:`\theta_0` is ranked among the posterior draws (see ``ranks``). If the
engine draws from the posterior, every rank is uniform. Ranked are the parameters, the log-likelihood, imputed entries,
and any function of parameters and data that is asked for (see ``quantities``).

References: Cook, Gelman & Rubin (2006); Talts et al. (2018); Modrak et al. (2023); Säilynoja et al. (2022), the plot.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ppgen.arguments import require_at_least, require_within
from ppgen.diagnostics.checks import Report
from ppgen.errors import DataError
from ppgen.inference.calibration.posteriors import ENGINES, Drawn, Engine, draw
from ppgen.inference.calibration.quantities import Quantity, evaluated, imputed, log_likelihoods, parameters
from ppgen.inference.calibration.ranks import effective_sizes, pit, verdict
from ppgen.inference.calibration.simulation import Data, Joint, Simulated, joint, stacked
from ppgen.keywords import known_keywords
from ppgen.model import Model
from ppgen.rng import private_stream

__all__ = ["Calibration", "calibrate"]

OWN = ("log_likelihood", "imputed")  # names of quantities that are always there


@final
@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """Results of a calibration: ``report`` (ok, verdict, table), ``pit`` {quantity: (replications, *shape)} in (0, 1).

    ``failures`` has a row per replication that could not be fitted, with its seed; ``attrs`` says what was run.
    """

    report: Report
    pit: Mapping[str, np.ndarray]
    failures: pd.DataFrame
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Calibration({self.report.verdict})"

    def __str__(self) -> str:
        return str(self.report)

    @property
    def ok(self) -> bool:
        """True if nothing was found against the engine, and enough was run to find it."""
        return self.report.ok

    def to_arviz(self) -> xr.DataTree:
        """Tree with the group ``prior_sbc`` that ``arviz_plots.plot_ecdf_pit`` draws; without failed replications."""
        import arviz_base  # slow to import

        values = {name: value.reshape(len(value), -1) for name, value in self.pit.items()}
        whole = ~np.any([np.isnan(value).any(1) for value in values.values()], axis=0)
        group = {name: value[whole][None] for name, value in self.pit.items()}
        coords = {"draw": np.flatnonzero(whole)}
        return arviz_base.from_dict(
            {"prior_sbc": group}, coords=coords, check_conventions=False, attrs={"prior_sbc": _plain(self.attrs)}
        )

    def save(self, path: str | Path) -> None:
        """Write the tree to a netCDF file."""
        self.to_arviz().to_netcdf(Path(path), engine="h5netcdf")


@known_keywords("calibrate")
def calibrate(
    model: Model | Callable[..., Any],
    *args: Any,  # noqa: ANN401 (the program's own)
    u: object = None,
    engine: Engine = "mcmc",
    replications: int = 1000,
    draws: int = 100,
    sites: Sequence[str] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    imputations: int = 20,
    options: Mapping[str, Any] | None = None,
    level: float = 1e-3,
    batched: bool | None = None,
    n_jobs: int = 1,
    random_seed: int | None = None,
    progressbar: bool = True,
) -> Calibration:
    """Fit data simulated from ``model`` many times, and rank the truth among the posterior draws.

    Parameters
    ----------
    model : a `Model`, or any function with ``pyro.sample`` sites. Its priors must be proper.
    args : for a `Model` template data ``x``, for a function its arguments. Only shape and gaps of the data matter, not
        their numbers: entries that are NaN in the template are hidden from every fit.
    u : inputs of a `Model`.
    engine : ``"mcmc"``, ``"svi"``, ``"vb"``, or a function ``(data, seed)`` that returns a `Fit` or independent draws
        {site: (draws, *shape)}. ``data`` is ``x``, or for a plain function {observed site: value}.
    replications : number of simulated data sets. 1000 show a posterior that is 10 % too narrow; 100 prove nothing.
    draws : number of draws of each posterior; fewer are kept if those of a chain depend on each other.
    sites : continuous sites to rank; None ranks all of them.
    quantities : name -> function ``(theta, data)`` of one draw {site: value} and one data set, gaps and all. It may
        draw: a prediction is an unknown like any other.
    imputations : draws at which hidden entries of a `Model` are imputed; 0 for none.
    options : options of the engine. Those of mcmc in one batch are chains, tune, draws (of a chain), sampler,
        target_accept, max_tree_depth and compile.
    level : probability of a false alarm, over all tests together.
    batched : run all fits at once: True always, False never, None if the engine can. A function as engine then gets all
        data sets (replications, ...) in one call and returns {site: (replications, draws, *shape)}.
    n_jobs : number of processes, for fits one by one. Results do not depend on it.
    random_seed : the same seed gives the same ranks on the same machine.

    Raises
    ------
    DataError : options, a prior that cannot be drawn from, a quantity without one shape.
    FitError : every replication failed.
    """
    began = time.perf_counter()
    counts = {"replications": replications, "draws": draws}
    _check(counts, engine, level, imputations, n_jobs, quantities or {})
    prepared = joint(model, args, u)
    with private_stream(random_seed) as seed:
        seeds = np.array([np.random.SeedSequence(seed, spawn_key=(r,)).generate_state(3) for r in range(replications)])
        bar = tqdm(seeds[:, 0].tolist(), desc="simulate", disable=not progressbar, delay=1)
        simulations = [prepared.simulate(simulated) for simulated in bar]
        data = _together([simulation.data for simulation in simulations])
        fitted = seeds[:, 1].tolist()
        drawn = draw(
            prepared, engine, data, fitted, draws=draws, options=options or {}, batched=batched, n_jobs=n_jobs,
            progressbar=progressbar,
        )  # fmt: skip
        torch.manual_seed(int(seeds[0, 2]))
        ranked = _Ranked(prepared, simulations, data, drawn, np.random.default_rng(seeds[:, 2]))
        values, sizes = ranked.all(sites, quantities or {}, imputations)
    failed = [(r, fitted[r], message) for r, message in sorted(drawn.failures.items())]
    attrs = {
        "engine": engine if isinstance(engine, str) else getattr(engine, "__name__", "function"),
        "way": drawn.way,
        **counts,
        "level": level,
        "random_seed": seed,
        "failed": len(failed),
        "independent_draws": float(np.median(sizes)),
        "seconds": time.perf_counter() - began,
    }
    failures = pd.DataFrame(failed, columns=["replication", "seed", "error"])
    return Calibration(verdict(values, sizes, level, _said(failures)), values, failures, attrs)


@final
class _Ranked:
    """Ranks of true values among draws that are thinned to as many as are independent."""

    def __init__(
        self, joint: Joint, simulations: list[Simulated], data: Data, drawn: Drawn, random: np.random.Generator
    ) -> None:
        self.joint, self.simulations, self.data, self.drawn, self.random = joint, simulations, data, drawn, random
        names = list(joint.density.sites)
        truth = stacked([{name: simulation.theta[name] for name in names} for simulation in simulations])
        self.chains, self.draws = next(iter(drawn.theta.values())).shape[1:3]
        flat = {name: drawn.theta[name].flatten(1, 2) for name in names}
        self.theta = {name: torch.cat([truth[name][:, None].double(), flat[name]], 1) for name in names}

    def all(
        self, sites: Sequence[str] | None, quantities: Mapping[str, Quantity], imputations: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """PIT values of every quantity, and how many draws of each replication were kept."""
        values = parameters(self.joint, self.theta, sites)
        values["log_likelihood"] = log_likelihoods(self.joint, self.data, self.theta)
        sizes = self._sizes(list(values.values()))
        values |= {name: evaluated(name, f, self.data, self.theta) for name, f in quantities.items()}
        kept = _spread(sizes, self.chains * self.draws)
        found = {name: pit(value[:, 0], value[:, 1:], kept, self.random) for name, value in values.items()}
        hidden = self._imputed(kept, imputations)
        found |= {} if hidden is None else {"imputed": hidden}
        varied = {name: _varied(values.get(name), value) for name, value in found.items()}
        return {name: value for name, value in varied.items() if value.size}, sizes

    def _sizes(self, values: list[np.ndarray]) -> Float[np.ndarray, " R"]:
        """Effective draws of the worst number of each replication; none of one that failed."""
        sets = len(self.simulations)
        sizes = np.full(sets, float(self.chains * self.draws))
        if not self.drawn.independent:
            for value in values:
                entries = value[:, 1:].reshape(sets, self.chains, self.draws, -1)
                rows = np.moveaxis(entries, -1, 1).reshape(-1, self.chains, self.draws)
                sizes = np.minimum(sizes, effective_sizes(rows).reshape(sets, -1).min(1))
        failed = list(self.drawn.failures)
        sizes = np.floor(np.maximum(sizes, 1.0))
        sizes[failed] = 0
        return sizes

    def _imputed(self, kept: np.ndarray, draws: int) -> np.ndarray | None:
        """PIT values of hidden entries, imputed at some of the kept draws."""
        whole = self.simulations[0].whole
        if not isinstance(whole, Tensor) or not isinstance(self.data, Tensor) or draws < 1:
            return None
        count = min(draws, kept.shape[1])
        index = torch.as_tensor(np.array([_first(row, count) for row in kept])) + 1
        index = torch.cat([torch.zeros(len(index), 1, dtype=torch.long), index], 1)
        rows = torch.arange(len(index))[:, None]
        theta = {name: value[rows, index] for name, value in self.theta.items()}
        truth = torch.stack([s.whole for s in self.simulations if isinstance(s.whole, Tensor)])
        values = imputed(self.joint, truth, self.data, theta, count)
        if values is None:
            return None
        distinct = np.minimum(kept.sum(1), count)
        return pit(values[:, 0], values[:, 1:], np.arange(count) < distinct[:, None], self.random)


def _check(
    counts: Mapping[str, int],
    engine: Engine,
    level: float,
    imputations: int,
    n_jobs: int,
    quantities: Mapping[str, Quantity],
) -> None:
    """Refuse options that no calibration can have."""
    for name, value in counts.items():
        require_at_least(f"calibrate: {name}", value, 1)
    require_at_least("calibrate: imputations", imputations, 0)
    require_at_least("calibrate: n_jobs", n_jobs, -1)
    if n_jobs == 0:
        raise DataError(
            "calibrate: n_jobs must be a number of processes, or -1 for one per core, got 0; 1 uses no others"
        )
    if isinstance(engine, str) and engine not in ENGINES:
        raise DataError(f"calibrate: engine must be one of {ENGINES} or a function, got {engine!r}")
    require_within("calibrate: level", level, 0, 1, "0.001 is usual")
    for name, quantity in quantities.items():
        if name in OWN or not callable(quantity):
            raise DataError(f"calibrate: quantities must be functions with names other than {OWN}, got {name!r}")


def _together(data: list[Data]) -> Data:
    first = data[0]
    if isinstance(first, Tensor):
        return torch.stack([value for value in data if isinstance(value, Tensor)])
    return stacked([value for value in data if isinstance(value, dict)])


def _spread(sizes: np.ndarray, total: int) -> np.ndarray:
    """Choose which of ``total`` draws are kept, (R, total): ``sizes`` of them, evenly over all chains."""
    kept = np.zeros((len(sizes), total), dtype=bool)
    for row, size in zip(kept, sizes.astype(int), strict=True):
        row[np.arange(size) * total // max(size, 1)] = True
    return kept


def _first(kept: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the kept draws, evenly; repeated where there are fewer, the first where there is none."""
    index = np.flatnonzero(kept) if kept.any() else np.zeros(1, dtype=int)
    return index[np.arange(count) * len(index) // count] if len(index) >= count else np.resize(index, count)


def _varied(value: np.ndarray | None, ranks: np.ndarray) -> np.ndarray:
    """Ranks without the entries that are constant by construction, flattened if there are such."""
    if value is None or value.ndim == 2:
        return ranks
    flat = value.reshape(-1, int(np.prod(value.shape[2:])))
    constant = np.nanmax(flat, 0) == np.nanmin(flat, 0)
    return ranks.reshape(len(ranks), -1)[:, ~constant] if constant.any() else ranks


def _said(failures: pd.DataFrame) -> str:
    """The first failures, for the report."""
    rows = [f"replication {row.replication} (seed {row.seed}): {row.error}" for row in failures.head(3).itertuples()]
    return "; ".join(rows)


def _plain(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that a netCDF file can hold."""
    return {name: value if isinstance(value, str | int | float) else str(value) for name, value in attrs.items()}
