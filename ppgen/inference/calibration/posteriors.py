r"""Draws from the posterior of every simulated data set, by any engine: all at once where shapes allow.

- ``"mcmc"``: one density over all data sets and chains (:mod:`ppgen.inference.calibration.replications`).
- ``"svi"`` with independent normals: one program whose density is the product over data sets. Its bound is the sum of
  theirs and Adam moves each number by itself, so this is every fit at once; only when to stop is decided together.
- anything else: one fit after the other, or in processes where joblib is installed.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast, final

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from ppgen.data.parts import Inputs
from ppgen.errors import DataError, FitError, PpgenError
from ppgen.inference import mcmc, svi, vb
from ppgen.inference.calibration.replications import sample
from ppgen.inference.calibration.shared_gaps import SharedGaps
from ppgen.inference.calibration.simulation import Data, Joint
from ppgen.model import Conjugate, Model
from ppgen.programs.density import Density, private_pyro
from ppgen.results.fit import Fit
from ppgen.results.posterior import Draws, Factors
from ppgen.rng import private_stream

__all__ = ["ENGINES", "Drawn", "Engine", "draw"]

log = logging.getLogger(__name__)

ENGINES = ("mcmc", "svi", "vb")
Engine = str | Callable[..., Any]

SETS_AT_ONCE = 1000  # data sets that are sampled together
TOGETHER: dict[str, Any] = {
    "chains": 4,
    "tune": 200,
    "draws": 100,
    "sampler": "chees",
    "target_accept": None,
    "max_tree_depth": 10,
    "compile": "traced",
}
ALONE: dict[str, dict[str, Any]] = {
    "mcmc": {"chains": 4, "tune": 300, "draws": 100, "sampler": "nuts", "compile": "traced"},
    "svi": {},
    "vb": {},
}


class Drawn(NamedTuple):
    """Posterior draws {site: (R, C, S, *shape)}, NaN for replications that failed, and why those did.

    ``independent`` says that draws are not correlated; ``way`` how they were made.
    """

    theta: dict[str, Tensor]
    independent: bool
    failures: dict[int, str]
    way: str


def draw(
    joint: Joint,
    engine: Engine,
    data: Data,
    seeds: Sequence[int],
    *,
    draws: int,
    options: Mapping[str, Any],
    batched: bool | None,
    n_jobs: int,
    progressbar: bool,
) -> Drawn:
    """About ``draws`` draws from the posterior of each data set, {leaf: (R, *shape)}.

    Raises
    ------
    DataError : an engine or option that does not exist, or ``batched`` where it cannot be.
    FitError : no replication could be fitted.
    """
    if callable(engine) and batched:
        return _by_one_call(joint, engine, data, seeds)
    reason = "" if batched is False else _why_not(joint, engine, options)
    if batched is not False and not reason:
        try:
            together = _mcmc if engine == "mcmc" else _svi
            return together(joint, data, seeds, draws, dict(options))
        except (PpgenError, RuntimeError, TypeError, NotImplementedError, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
            if isinstance(error, DataError):
                raise
            if batched is None:
                log.warning("calibrate: %d fits one by one, for one batch is not possible: %s", len(seeds), reason)
    if batched:
        raise DataError(f"calibrate: these replications cannot be fitted as one batch ({reason}); pass batched=False")
    if engine == "vb" and not isinstance(joint.model, Conjugate):
        raise DataError(f"calibrate: vb needs a conjugate model, got {type(joint.model).__name__}; use svi or mcmc")
    shapes = {name: tuple(site.shape) for name, site in joint.density.sites.items()}
    task = _Task(engine, joint.model, joint.args, joint.u, draws, dict(options), shapes)
    return _one_by_one(task, data, seeds, n_jobs, reason, progressbar)


def _why_not(joint: Joint, engine: Engine, options: Mapping[str, Any]) -> str:
    """Why replications cannot be fitted together; empty where they may."""
    if engine == "mcmc":
        return ""
    if engine != "svi":
        return "there is no batch of such fits"
    own = isinstance(joint.model, Model) and type(joint.model).guide is not Model.guide
    if own or options.get("guide", "mean_field") not in (None, "mean_field"):
        return "only independent normals fit many data sets at once"
    return ""


def _mcmc(joint: Joint, data: Data, seeds: Sequence[int], draws: int, options: dict[str, Any]) -> Drawn:
    """All posteriors by MCMC in one tensor, some data sets at a time."""
    unknown = sorted(set(options) - set(TOGETHER))
    if unknown:
        raise DataError(f"calibrate: options of a batch by mcmc are {sorted(TOGETHER)}, got {unknown}")
    settings = TOGETHER | options
    mode, parts, usable = settings.pop("compile"), [], []
    for first in range(0, len(seeds), SETS_AT_ONCE):
        part = tree_map(lambda leaf, first=first: leaf[first : first + SETS_AT_ONCE], data)
        sampled = sample(joint.density, part, seeds[first], mode=mode, **settings)
        index = _evenly(sampled.v.shape[2], -(-draws // sampled.v.shape[1]))
        parts.append(joint.density.constrain(sampled.v[:, :, index]))
        usable.append(sampled.usable)
    good = torch.cat(usable)
    theta = {name: _blank(torch.cat([part[name] for part in parts]), ~good) for name in joint.density.sites}
    failed = (~good).nonzero()[:, 0].tolist()
    return Drawn(theta, False, dict.fromkeys(failed, "no chain had a finite density"), "one batch by mcmc")


def _svi(joint: Joint, data: Data, seeds: Sequence[int], draws: int, options: dict[str, Any]) -> Drawn:
    model = _Product(joint.density, data)
    size = torch.zeros(len(seeds), 1, dtype=torch.float64)
    fit = svi.fit(model, size, draws=draws, random_seed=seeds[0], progressbar=False, **options)
    v = cast(Draws, fit.posterior).sites["v"].movedim(2, 0)  # (R, 1, S, P)
    return Drawn(joint.density.constrain(v), True, {}, "one batch by svi")


@final
class _Product(Model):
    """The posteriors of many data sets as one program of one site: their vectors on the unconstrained scale."""

    data_dims: ClassVar[tuple[str, ...]] = ("replication", "nothing")
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, density: Density, data: Data) -> None:
        super().__init__()
        self.density, self.data = density, data

    def model(self, x: Tensor, *, u: Inputs = None, total: int | None = None) -> None:
        """Log density of each row under its own data set."""
        flat = dist.Normal(x.new_zeros(len(x), self.density.size), 1.0).mask(False).to_event(2)
        v = pyro.sample("v", flat)
        with poutine.block(), private_pyro(self.density.dtype):
            value = vmap(self._of_set)(self.data, v)
        pyro.factor("density", value.sum())

    def _of_set(self, data: Data, v: Tensor) -> Tensor:
        with SharedGaps():
            return self.density.with_arguments(data).one(v)


def _by_one_call(joint: Joint, engine: Callable[..., Any], data: Data, seeds: Sequence[int]) -> Drawn:
    """Draws of an engine of the user's that takes all data sets at once, with their shapes checked."""
    with private_stream(seeds[0]):
        found = engine(data, seeds[0])
    sets = len(seeds)
    theta = {}
    for name, site in joint.density.sites.items():
        value = torch.as_tensor(found[name]) if isinstance(found, Mapping) and name in found else None
        if (
            value is None
            or value.ndim != 2 + len(site.shape)
            or value.shape[0] != sets
            or value.shape[2:] != site.shape
        ):
            got = "nothing" if value is None else tuple(value.shape)
            raise DataError(
                f"calibrate: the engine must return {{site: (replications, draws, *shape)}}, for {name!r} ({sets}, "
                f"draws, *{tuple(site.shape)}), got {got}"
            )
        theta[name] = value[:, None].double()
    bad = ~torch.stack([torch.isfinite(v).flatten(1).all(1) for v in theta.values()]).all(0)
    failed = dict.fromkeys(bad.nonzero()[:, 0].tolist(), "draws that are not finite")
    return Drawn({name: _blank(value, bad) for name, value in theta.items()}, True, failed, "one call of the engine")


def _one_by_one(task: "_Task", data: Data, seeds: Sequence[int], n_jobs: int, reason: str, progressbar: bool) -> Drawn:
    """One fit for each data set, in this process or others; failures are kept as words."""
    sets = [tree_map(lambda leaf, r=r: leaf[r], data) for r in range(len(seeds))]
    found = _run(task, sets, seeds, n_jobs, progressbar)
    failures = {r: result for r, result in enumerate(found) if isinstance(result, str)}
    good = [result for result in found if not isinstance(result, str)]
    way = f"one by one ({reason})" if reason else "one by one"
    if not good:
        raise FitError(f"calibrate: some replication must be fitted, all failed ({way}); the first: {failures[0]}")
    like = good[0][0]
    lengths = {tuple(next(iter(theta.values())).shape[:2]) for theta, _ in good}
    if len(lengths) > 1:
        raise DataError(f"calibrate: the engine must return equally many draws each time, got {sorted(lengths)}")
    blank = {name: torch.full_like(value, torch.nan) for name, value in like.items()}
    rows = [blank if isinstance(result, str) else result[0] for result in found]
    theta = {name: torch.stack([row[name] for row in rows]) for name in like}
    return Drawn(theta, all(independent for _, independent in good), failures, way)


def _run(task: "_Task", data: Sequence[Data], seeds: Sequence[int], n_jobs: int, progressbar: bool) -> list[Any]:
    """Every fit, in processes if asked for; results do not depend on that."""
    if n_jobs != 1:
        with contextlib.suppress(ImportError):
            from joblib import Parallel, delayed

            fits = (delayed(task.run)(one, seed) for one, seed in zip(data, seeds, strict=True))
            return list(Parallel(n_jobs=n_jobs)(fits))
    pairs = zip(data, seeds, strict=True)
    bar = tqdm(pairs, desc="calibrate", total=len(seeds), disable=not progressbar, delay=1)
    return [task.run(one, seed) for one, seed in bar]


@final
@dataclass(frozen=True, eq=False)
class _Task:
    """The posterior of one data set, to be found in another process."""

    engine: Engine
    model: Model | Callable[..., Any]
    args: tuple[Any, ...]
    u: Inputs
    draws: int
    options: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def run(self, data: Data, seed: int) -> tuple[dict[str, Tensor], bool] | str:
        """Draws {site: (C, S, *shape)} of one posterior and whether they are independent; or what went wrong."""
        try:
            with private_stream(seed):
                result = self.engine(data, seed) if callable(self.engine) else self._fit(self.engine, data, seed)
                theta, independent = _draws_of(result, self.draws)
            return {name: _checked(name, theta, shape) for name, shape in self.shapes.items()}, independent
        except Exception as error:  # noqa: BLE001 (whatever an engine raises, it counts against it)
            return f"{type(error).__name__}: {error}"

    def _fit(self, engine: str, data: Data, seed: int) -> Fit:
        settings = ALONE[engine] | {"random_seed": seed, "progressbar": False} | dict(self.options)
        if engine == "vb":
            return vb.fit(cast(Conjugate, self.model), data, **settings)
        fit = svi.fit if engine == "svi" else mcmc.fit
        if isinstance(self.model, Model):
            return fit(self.model, data, u=self.u, **settings)
        return fit(poutine.condition(self.model, data=cast(dict[str, Tensor], data)), *self.args, **settings)


def _draws_of(result: Any, draws: int) -> tuple[dict[str, Tensor], bool]:  # noqa: ANN401 (what an engine returned)
    if isinstance(result, Fit):
        posterior = result.posterior
        if isinstance(posterior, Factors) or "log_q" in posterior.stats:
            return {name: value[None] for name, value in posterior.draws(draws).items()}, True
        return posterior.chains(-(-draws // posterior.shape[0])), False
    if not isinstance(result, Mapping):
        raise DataError(
            f"calibrate: an engine must return a Fit or {{site: (draws, *shape)}}, got {type(result).__name__}"
        )
    return {name: torch.as_tensor(value).double()[None] for name, value in result.items()}, True


def _checked(name: str, theta: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    if name not in theta or tuple(theta[name].shape[2:]) != shape:
        got = tuple(theta[name].shape[2:]) if name in theta else "nothing"
        raise FitError(f"calibrate: draws of {name!r} must have shape (draws, *{shape}), got {got} for the last")
    if not bool(torch.isfinite(theta[name]).all()):
        raise FitError(f"calibrate: draws must be finite, those of {name!r} are not")
    return theta[name].detach()


def _blank(value: Tensor, bad: Tensor) -> Tensor:
    return value.masked_fill(bad.reshape(-1, *(1,) * (value.ndim - 1)), torch.nan)


def _evenly(total: int, n: int) -> Tensor:
    n = min(n, total)
    return torch.arange(n) * total // n
