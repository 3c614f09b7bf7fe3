"""Posterior of what a program sums out: latents of collapsed distributions, and discrete sites that were enumerated.

Summed-out latents are found by protocol alone: an observed site whose distribution has ``latents``.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from pyro import poutine
from torch import Tensor

from ppgen.collapsed.base import Latents as Posterior
from ppgen.data.parts import Inputs
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import name_of, observed_sites, run
from ppgen.predictions.data_sites import check_rows_owned
from ppgen.predictions.discrete_sites import Discrete, discrete, held
from ppgen.predictions.local_sites import PROPOSALS, Local, local
from ppgen.predictions.over_draws import Theta, at, gather, nothing, over_draws
from ppgen.programs.memory import memory
from ppgen.programs.scores import WRAPPERS

__all__ = ["Latents", "bounded_sites", "latents", "posterior_of", "summarized", "unwrap"]


@dataclass(frozen=True, eq=False)
class Latents:
    """Summed-out latents: averages and modes, ``draws`` (n, ...) of them, and the axes of both."""

    values: Mapping[str, Tensor]
    draws: Mapping[str, Tensor]
    dims: Mapping[str, tuple[str, ...]]


def latents(
    model: Model,
    draws: Mapping[str, Tensor],
    x: Tensor,
    n: int = 0,
    *,
    u: Inputs = None,
    given: Collection[str] = (),
) -> Latents:
    """Summed-out latents of ``x``, averaged over draws {site: (S, ...)}, with ``n`` draws of the latents themselves.

    Over several draws the mode of a discrete latent is the most probable value of each step under the averaged
    marginals; with one it is what the distribution says (the most probable path of a hidden Markov model). Of a
    discrete site that a sampler enumerated, modes and draws are the numbers of its values; those ``given`` were drawn
    already, and their probabilities are shares of the draws.
    """

    def posterior(theta: Theta) -> Posterior:
        return posterior_of(model, theta, x, u, given)

    count = len(next(iter(draws.values())))
    first = posterior(at(draws, 0))
    averages: dict[str, Tensor] = {}
    for part in over_draws(lambda theta: posterior(theta).marginals, draws):
        for name, value in part.items():
            averages[name] = averages.get(name, 0) + value.sum(0) / count
    modes = first.mode if count == 1 else {name: _mode(mode, averages, name) for name, mode in first.mode.items()}
    chosen = torch.arange(n) * count // max(n, 1)
    drawn = gather(lambda theta: posterior(theta).sample(), {k: v[chosen] for k, v in draws.items()}) if n else {}
    return Latents({**averages, **modes}, drawn, dict(first.dims))


def summarized(posterior: Posterior, n: int = 0) -> Latents:
    """One posterior of summed-out latents with ``n`` draws of it."""
    drawn = gather(lambda _: posterior.sample(), nothing(n)) if n else {}
    return Latents({**posterior.marginals, **posterior.mode}, drawn, dict(posterior.dims))


@final
@dataclass(frozen=True, eq=False)
class _Joint:
    """Posterior of enumerated sites, a draw of them, and the posterior of the summed-out latents given that draw."""

    sites: Discrete
    drawn: Mapping[str, Tensor]
    rest: Posterior | None

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        found = {} if self.rest is None else dict(self.rest.dims)
        for name, frames in self.sites.plates.items():
            found |= _dims_of(name, frames)
        return found

    @property
    def marginals(self) -> dict[str, Tensor]:
        return self.sites.marginals() | ({} if self.rest is None else self.rest.marginals)

    @property
    def mode(self) -> dict[str, Tensor]:
        own = {f"{name}_mode": value.argmax(-1) for name, value in self.sites.marginals().items()}
        return own | ({} if self.rest is None else self.rest.mode)

    def sample(self) -> dict[str, Tensor]:
        own = {f"{name}_draw": value for name, value in self.drawn.items()}
        return own | ({} if self.rest is None else self.rest.sample())


@final
@dataclass(frozen=True, eq=False)
class _Given:
    """Discrete sites with one value each: {name: (its plates from the left, one at the value (*plates, K))}."""

    sites: Mapping[str, tuple[list[Any], Tensor]]
    rest: Posterior | None

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        found = {} if self.rest is None else dict(self.rest.dims)
        for name, (frames, _) in self.sites.items():
            found |= _dims_of(name, frames)
        return found

    @property
    def marginals(self) -> dict[str, Tensor]:
        own = {name: value for name, (_, value) in self.sites.items()}
        return own | ({} if self.rest is None else self.rest.marginals)

    @property
    def mode(self) -> dict[str, Tensor]:
        return self._numbers("mode") | ({} if self.rest is None else self.rest.mode)

    def sample(self) -> dict[str, Tensor]:
        return self._numbers("draw") | ({} if self.rest is None else self.rest.sample())

    def _numbers(self, kind: str) -> dict[str, Tensor]:
        return {f"{name}_{kind}": value.argmax(-1) for name, (_, value) in self.sites.items()}


def _dims_of(name: str, frames: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """Axes of a discrete site's probabilities, mode and draws."""
    plates = tuple(frame.name for frame in frames)
    return {name: (*plates, f"{name}_value"), f"{name}_mode": plates, f"{name}_draw": plates}


@final
@dataclass(frozen=True, eq=False)
class _Rows:
    """Posterior means of the rows' own latents, a draw of them, and the posterior of the summed-out ones given it."""

    own: Local
    means: Mapping[str, Tensor]
    drawn: Mapping[str, Tensor]
    rest: Posterior | None

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        found = {} if self.rest is None else dict(self.rest.dims)
        for name, value in self.drawn.items():
            axes = tuple(self.own.model.dims.get(name, self._numbered(name, value.ndim)))
            found |= {name: axes, f"{name}_draw": axes}
        return found

    @property
    def marginals(self) -> dict[str, Tensor]:
        return {**self.means, **({} if self.rest is None else self.rest.marginals)}

    @property
    def mode(self) -> dict[str, Tensor]:
        return {} if self.rest is None else self.rest.mode

    def sample(self) -> dict[str, Tensor]:
        drawn = {f"{name}_draw": value for name, value in self.drawn.items()}
        return drawn | ({} if self.rest is None else self.rest.sample())

    def _numbered(self, name: str, count: int) -> tuple[str, ...]:
        axes = [f"{name}_dim_{axis}" for axis in range(count)]
        if name in self.own.sites:
            axes[self.own.sites[name].axis] = self.own.model.data_dims[0]
        return tuple(axes)


def posterior_of(model: Model, theta: Theta, x: Tensor, u: Inputs, given: Collection[str] = ()) -> Posterior:
    """Posterior of everything that is summed out, and of what each row owns, at one draw of the parameters.

    Discrete sites ``given`` have the value that the draw holds.

    Raises
    ------
    FitError : there is nothing of the kind.
    """
    own = local(model, theta, x, u)
    found = _summed(model, theta, x, u) if own is None else _of_rows(own, theta)
    if given:
        return _Given(held(run(model, theta, x, u), given), found)
    if found is None:
        raise FitError(
            f"{name_of(model)}: has no summed-out latents; sample the data from a distribution of ppgen.distributions, "
            "whose `latents(x)` gives them"
        )
    return found


def _of_rows(own: Local, theta: Theta) -> "_Rows":
    if own.is_held_by(theta):
        values = {name: theta[name] for name in own.sites}
        return _Rows(own, values, values, _summed(own.model, theta, own.x, own.u))
    weighed = own.weighed(PROPOSALS)
    drawn = weighed.resampled()
    return _Rows(own, weighed.means(), drawn, _summed(own.model, {**own.theta, **drawn}, own.x, own.u))


def _summed(model: Model, theta: Theta, x: Tensor, u: Inputs) -> Posterior | None:
    """Posterior of discrete sites and of what distributions sum out; None where there is nothing of the kind."""
    trace = run(model, theta, x, u)
    if not memory(model).row_sites:
        check_rows_owned(model, trace, theta, x)
    sites = discrete(model, theta, x, u, trace)
    sites.check_shared()
    if sites.plates:
        rest, drawn = sites.draw(list(sites.plates))
        return _Joint(sites, drawn, _collapsed(run(model, rest.theta, x, u), rest.theta, x))
    return _collapsed(trace, theta, x)


def _collapsed(trace: poutine.Trace, theta: Theta, x: Tensor) -> Posterior | None:
    """Posterior of what the distribution of an observed site sums out; None where none does."""
    for site in observed_sites(trace, theta).values():
        if hasattr(fn := unwrap(site["fn"]), "latents"):
            whole = site["value"].numel() == x.numel()
            with torch.no_grad():
                return fn.latents(x if whole else site["value"])
    return None


def bounded_sites(model: Model, theta: Theta, x: Tensor, u: Inputs) -> list[str]:
    """Observed sites whose log density is a lower bound, for some of their latents can only be held, not summed out."""
    sites = observed_sites(run(model, theta, x, u), theta)
    fns = {name: unwrap(site["fn"]) for name, site in sites.items()}
    return [name for name, fn in fns.items() if hasattr(fn, "exact") and not fn.exact(sites[name]["value"])]


def unwrap(fn: Any) -> Any:  # noqa: ANN401
    """The distribution inside Pyro's wrappers that speaks a protocol of ours; ``fn`` itself when none does."""
    inner = fn
    while isinstance(inner, WRAPPERS) and not _speaks(inner):
        inner = inner.base_dist
    return inner if _speaks(inner) else fn


def _speaks(fn: Any) -> bool:  # noqa: ANN401
    return any(hasattr(fn, method) for method in ("latents", "impute", "forecast"))


def _mode(mode: Tensor, averages: Mapping[str, Tensor], name: str) -> Tensor:
    """Mode under averaged marginals; negative where ``mode`` says that a step does not exist."""
    average = averages[name.removesuffix("_mode")]
    return average if mode.is_floating_point() else torch.where(mode < 0, mode, average.argmax(-1))
