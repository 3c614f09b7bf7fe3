"""A conjugate model's program, run with expectations in the place of the statistics of its parameters."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast, final

import pyro
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.collapsed.base import Collapsed
from ppgen.data.parts import Inputs
from ppgen.errors import DataError
from ppgen.families.family import Factor, Natural
from ppgen.model import Conjugate, tracked, updated

__all__ = ["Observed", "ascended", "best_paths", "drawn", "expecting", "first_factors", "observed_given"]


class Observed(NamedTuple):
    """A distribution that data were observed from, and the data."""

    distribution: Any
    value: Tensor


def observed_given(
    model: Conjugate, s: Mapping[str, Natural], x: Tensor, u: Inputs, points: Mapping[str, Tensor] | None = None
) -> dict[str, Observed]:
    """Run the program with statistics ``s`` and its point estimates: what it observes, by the name of its site.

    Raises
    ------
    DataError : the program draws a latent that no factor and no point stands for, or observes nothing.
    """
    points = model.points if points is None else points
    with poutine.block(), pyro.validation_enabled(False), expecting(s, points):
        trace = poutine.trace(model.model).get_trace(x, u=u)
    who, found = type(model).__name__, {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site) or name in points:
            continue
        if not site["is_observed"]:
            raise DataError(
                f"vb: every latent of {who} must be drawn by a factor of its natural_prior, or be summed out, got "
                f"site {name!r}; use svi.fit or mcmc.fit"
            )
        found[name] = Observed(_innermost(site["fn"]), cast(Tensor, site["value"]))
    if not found:
        raise DataError(f"vb: {who} must observe its data, got no observed site; write `pyro.sample(..., obs=x)`")
    return found


def first_factors(
    model: Conjugate, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str
) -> dict[str, Factor]:
    """Posterior factors to start from: one conjugate update with guessed latents, or with parameters of the prior."""
    prior = model.natural_prior()
    guessed = model.guess(batches, inputs, start)
    unguessed = any(not values for values in guessed)
    s = {name: tracked(drawn(factor) if unguessed else factor.expected()) for name, factor in prior.items()}
    for x, u, values in zip(batches, inputs, guessed, strict=True):
        for fn, value in observed_given(model, s, x, u).values():
            score = fn.joint(value, values) if values and isinstance(fn, Collapsed) else fn.log_prob(value)
            score.sum().backward()
    return {name: updated(factor, s[name]) for name, factor in prior.items()}


def ascended(
    model: Conjugate, batches: Sequence[Tensor], inputs: Sequence[Inputs], q: Mapping[str, Factor], steps: int
) -> tuple[dict[str, Factor], float]:
    """Factors after so many coordinate updates from ``q``, and the bound before the last of them; for a start."""
    prior, found, bound = model.natural_prior(), dict(q), -float("inf")
    for _ in range(steps):
        s = {name: tracked(factor.expected()) for name, factor in found.items()}
        bound = -sum(float(prior[name].family.kl(q.eta, prior[name].eta).sum()) for name, q in found.items())
        for x, u in zip(batches, inputs, strict=True):
            for fn, value in observed_given(model, s, x, u).values():
                evidence = fn.log_prob(value).sum()
                evidence.backward()
                bound += float(evidence.detach())
        found = {name: updated(factor, s[name]) for name, factor in prior.items()}
    return found, bound


def best_paths(
    model: Conjugate, batches: Sequence[Tensor], inputs: Sequence[Inputs], ways: Sequence[str], steps: int
) -> list[Tensor]:
    """Most probable states of each batch under the best of some starts of a chain, by the bound after some updates."""
    tried = [ascended(model, batches, inputs, first_factors(model, batches, inputs, way), steps) for way in ways]
    q, _ = max(tried, key=lambda found: found[1])
    s = {name: factor.expected() for name, factor in q.items()}
    settled = [
        observed_given(model, s, x, u)["x"].distribution.completed(x) for x, u in zip(batches, inputs, strict=True)
    ]
    return [found.mode["z_mode"].clamp_min(0) for found in settled]


def drawn(factor: Factor) -> Natural:
    """Statistics of parameters drawn from a factor."""
    theta = {site: value[0] for site, value in factor.family.sample(factor.eta, 1).items()}
    return factor.family.statistic(theta)


def _innermost(fn: Any) -> Any:  # noqa: ANN401 (a distribution)
    """The collapsed distribution inside wrappers, if there is one; ``fn`` itself otherwise."""
    inner = fn
    while not isinstance(inner, Collapsed) and hasattr(inner, "base_dist"):
        inner = inner.base_dist
    return inner if isinstance(inner, Collapsed) else fn


@final
class expecting(Messenger):  # noqa: N801 (a handler, called as those of Pyro's are)
    """Answers a `statistic` by its expectation, and a point-estimated site by its estimate."""

    def __init__(self, s: Mapping[str, Natural], points: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.s, self.points = s, points

    def _pyro_factor(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        msg["value"], msg["done"] = self.s[msg["name"]], True

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if msg["name"] in self.points and not msg["is_observed"]:
            msg["value"], msg["done"] = self.points[msg["name"]], True
