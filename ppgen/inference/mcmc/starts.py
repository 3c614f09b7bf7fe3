r"""Starts of the chains: multi-path Pathfinder, all paths in one tensor.

Each path climbs the log density by L-BFGS from a random point. At every point on the way the inverse Hessian that
L-BFGS believes in gives a normal approximation; the one with the largest evidence bound (ELBO), estimated with a few
draws, stays. A chain starts from a draw of its own path's approximation, so chains start where the mass is, not at the
peak; a path whose bound is hopelessly below the best gives way to the others.

Reference: Zhang, Carpenter, Gelman & Vehtari (2022).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.errors import FitError
from ppgen.inference.ascent import Ascent, Gradient, Pair, dot
from ppgen.inference.mcmc.hamiltonian import Target

__all__ = ["Start", "pathfinder", "uniform"]

MOST_STEPS, PATH_DRAWS = 100, 5
FLAT = 1e-2  # gain in nats below which a path has arrived, several times in a row
PATIENCE = 2
LATE = 0.1  # share of the paths that are not waited for
JUDGED_EVERY = 2  # steps between two approximations; each costs as many densities as it has draws
TRIES = 100  # random points tried for a finite density
HOPELESS, HOPELESS_PER_DIMENSION = 8.0, 0.2  # nats of the bound below the best path's


class Start(NamedTuple):
    """A point for each chain, and draws around points (K, C, P) from which a first metric can be guessed, or None."""

    v: Float[Tensor, "C P"]
    draws: Float[Tensor, "K C P"] | None = None


def uniform(density: Target, gradient_of: Gradient, chains: int, generator: torch.Generator) -> Tensor:
    """Uniform points of finite density, nearer and nearer to zero where there are few.

    Raises
    ------
    FitError : none was found; names the first site whose density is not finite.
    """

    def unusable(v: Tensor) -> Tensor:
        value, gradient = gradient_of(v)
        return ~torch.isfinite(value + gradient.sum(-1))

    v = density.start(chains, generator)
    bad = unusable(v)
    for number in range(TRIES):
        if not bad.any():
            return v
        again = density.start(chains, generator, radius=2.0 * 0.95**number)
        v = torch.where(bad[:, None], again, v)
        bad = unusable(v)
    if bad.all():
        raise FitError(
            f"mcmc: a starting point must have finite density and gradient, {TRIES} tries found none"
            f"{density.bad_site(v[0])}; scale the data to about unit variance, tighten the priors, or start from "
            "another fit"
        )
    good = v[~bad]
    return torch.where(bad[:, None], good[torch.arange(chains) % len(good)], v)


def pathfinder(
    density: Target,
    gradient_of: Gradient,
    chains: int,
    generator: torch.Generator,
    *,
    groups: int = 1,
    most_steps: int = MOST_STEPS,
) -> Start:
    """One path per chain; see the module.

    The chains may be of several densities, in ``groups`` of equal size one after the other: only paths of one group
    are compared with each other.
    """
    v = uniform(density, gradient_of, chains, generator)
    paths = _Paths(Ascent(v, *gradient_of(v)))
    best = paths.approximation(gradient_of, generator)
    for number in range(most_steps):
        arrived = paths.step(gradient_of)
        if arrived or number % JUDGED_EVERY == 0:
            best = best.better(paths.approximation(gradient_of, generator))
        if arrived:
            break
    return best.starts(generator, groups)


@final
@dataclass
class _Best:
    """The best bound of each path so far, the draws behind it, their log ratios, and the highest point."""

    elbo: Float[Tensor, " C"]
    draws: Float[Tensor, "K C P"]
    ratio: Float[Tensor, "K C"]
    peak: Float[Tensor, "C P"]

    def better(self, other: "_Best") -> "_Best":
        """Row by row the one with the larger bound; the peak is always the later one."""
        wins = other.elbo > self.elbo
        return _Best(
            torch.where(wins, other.elbo, self.elbo),
            torch.where(wins[:, None], other.draws, self.draws),
            torch.where(wins, other.ratio, self.ratio),
            other.peak,
        )

    def starts(self, generator: torch.Generator, groups: int = 1) -> Start:
        """One draw of each path by importance, hopeless paths replaced by others of their group."""
        known = torch.isfinite(self.elbo)
        if not known.any():
            return Start(self.peak)
        slack = HOPELESS + HOPELESS_PER_DIMENSION * self.peak.shape[-1]
        elbo = self.elbo.reshape(groups, -1)
        good = known.reshape(groups, -1) & (elbo >= elbo.amax(1, keepdim=True) - slack)
        path = _replaced(good)
        weight = torch.softmax(self.ratio.nan_to_num(nan=-math.inf), 0).nan_to_num(nan=1.0)
        pick = torch.multinomial(weight.T[path], 1, generator=generator)[:, 0]
        v = torch.where(good.any(1).repeat_interleave(elbo.shape[1])[:, None], self.draws[pick, path], self.peak)
        return Start(v, self.draws[:, good.reshape(-1)] if groups == 1 else self.draws[:, path])


@final
@dataclass
class _Paths:
    """Every row on its way up, and the normal approximations that its ascent believes in."""

    up: Ascent
    arrived: int = 0

    def step(self, gradient_of: Gradient) -> bool:
        """One step uphill; True when hardly any path gains any more."""
        flat = float((self.up.step(gradient_of) >= FLAT).double().mean()) <= LATE
        self.arrived = self.arrived + 1 if flat else 0
        return self.arrived >= PATIENCE

    def approximation(self, gradient_of: Gradient, generator: torch.Generator) -> _Best:
        """Normal approximation at the present points: draws, their log p - log q, and the bound."""
        scatter, log_q = self._sample(generator)
        centre = self.up.v + self.up.times(self.up.gradient)
        draws = centre + scatter
        ratio = torch.stack([gradient_of(draw)[0] for draw in draws]) - log_q
        elbo = torch.where(torch.isfinite(ratio).all(0), ratio.mean(0), -math.inf)
        return _Best(elbo, draws, ratio, self.up.v)

    def _sample(self, generator: torch.Generator) -> tuple[Float[Tensor, "K C P"], Float[Tensor, "K C"]]:
        """Centred draws whose covariance is the inverse Hessian, and their log density.

        If u has covariance H then (1 - rho s y') u + sqrt(rho) s e, with e standard normal, has that of its update.
        """
        shape = (PATH_DRAWS, *self.up.v.shape)
        u = self.up.diagonal.sqrt() * torch.randn(
            shape, generator=generator, dtype=self.up.v.dtype, device=self.up.v.device
        )
        noise = torch.randn(len(self.up.pairs), *shape[:2], generator=generator, dtype=u.dtype, device=u.device)
        for pair, e in zip(self.up.pairs, noise, strict=True):
            u = u + (pair.rho.sqrt() * e - pair.rho * dot(pair.y, u))[..., None] * pair.s
        quadratic, log_det = self._precision(u)
        return u, -0.5 * (quadratic + log_det + u.shape[-1] * LOG_2PI)

    def _precision(self, u: Float[Tensor, "K C P"]) -> tuple[Float[Tensor, "K C"], Float[Tensor, " C"]]:
        """Give u'Bu and log det H of the inverse Hessian H = 1 / B, by the updates of B.

        Each pair turns B into B - B s s'B / s'Bs + rho y y', and log det H into log det H + log s'Bs + log rho.
        """
        applied: list[tuple[Tensor, Tensor, Pair]] = []
        log_det = self.up.diagonal.log().sum(-1)
        for pair in self.up.pairs:
            valid = pair.rho > 0
            b = self._hessian_times(pair.s, applied)
            curvature = torch.where(valid, dot(pair.s, b), 1.0)
            log_det = log_det + torch.where(valid, curvature.log() + torch.where(valid, pair.rho, 1.0).log(), 0.0)
            applied.append((b, curvature, pair))
        return dot(u, self._hessian_times(u, applied)), log_det

    def _hessian_times(self, w: Tensor, applied: list[tuple[Tensor, Tensor, Pair]]) -> Tensor:
        """B w, from the diagonal of H and the pairs ``applied`` so far, each with b = B s and s'Bs."""
        product = w / self.up.diagonal
        for b, curvature, pair in applied:
            removed = dot(b, w) / curvature
            product = product - removed[..., None] * b + (pair.rho * dot(pair.y, w))[..., None] * pair.y
        return product


def _replaced(good: Bool[Tensor, "G C"]) -> Int[Tensor, " rows"]:
    """Index of each row, or, where it is not good, of one of its group that is; of itself in a group without any."""
    count = good.sum(1, keepdim=True)
    first = torch.argsort(~good, stable=True, dim=1)  # the good ones of each group, in order
    own = torch.arange(good.shape[1], device=good.device).expand_as(good)
    other = first.gather(1, own % count.clamp_min(1))
    chosen = torch.where(good | (count == 0), own, other)
    return (chosen + torch.arange(len(good), device=good.device)[:, None] * good.shape[1]).reshape(-1)
