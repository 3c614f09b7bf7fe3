"""Beliefs of a fit about the parameters: factors with closed forms, or draws."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.errors import FitError
from ppgen.families.family import Natural
from ppgen.model import Factor
from ppgen.predictions.over_draws import nothing

__all__ = ["Draws", "Factors"]


@dataclass(frozen=True, eq=False, repr=False)
class Factors:
    """Independent exponential-family factors q(theta), from variational Bayes.

    Parameters
    ----------
    factors : factor name -> family and natural parameters.
    points : sites that are estimated as points, {site: value}; every draw holds them.
    """

    factors: Mapping[str, Factor]
    points: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Factors({', '.join([*self.factors, *self.points])})"

    def draws(self, n: int) -> dict[str, Tensor]:
        """``n`` independent draws of every site, {site: (n, *event)}, from torch's global generator."""
        theta = {site: value.detach().expand(n, *value.shape) for site, value in self.points.items()}
        for factor in self.factors.values():
            theta |= factor.family.sample(factor.eta, n)
        return theta

    def chains(self, n: int) -> dict[str, Tensor]:
        """``n`` independent draws as one chain, {site: (1, n, *event)}."""
        return {site: value[None] for site, value in self.draws(n).items()}

    def statistics(self) -> dict[str, Natural]:
        """Expected sufficient statistics of every factor: what message passing takes."""
        return {name: factor.family.expected(factor.eta) for name, factor in self.factors.items()}

    def log_prob(self, theta: Mapping[str, Tensor]) -> Float[Tensor, " S"]:
        """Log q of draws {site: (S, *event)}, in the units of the sites; points have no density and add nothing."""
        scores: list[Tensor] = []

        def replay(site: str, distribution: torch.distributions.Distribution) -> Tensor:
            scores.append(distribution.log_prob(theta[site]))
            return theta[site]

        for factor in self.factors.values():
            factor.family.draw(factor.eta, replay)
        return torch.stack(scores).sum(0)

    def to(self, device: torch.device | str) -> "Factors":
        """The same factors on another device."""
        moved = {
            name: Factor(factor.family, {key: value.to(device) for key, value in factor.eta.items()})
            for name, factor in self.factors.items()
        }
        return Factors(moved, {site: value.to(device) for site, value in self.points.items()})


@dataclass(frozen=True, eq=False, repr=False)
class Draws:
    """Draws of every site from C chains of S draws, from MCMC or from a trained guide (one chain).

    Parameters
    ----------
    sites : {site: (C, S, *event)}; empty if each row owns all latents and a guide draws them for any rows.
    stats : records of the sampler, {name: (C, S)}.
    discrete : sites shared by all rows that were summed out, drawn given the data of the fit R times for each draw of
        ``sites``, {site: (C, S * R, ...)}. They are among the sites of `draws` and `chains`.
    """

    sites: Mapping[str, Tensor]
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    discrete: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape[:2]) for name, value in {**self.sites, **self.stats}.items()}
        shape = next(iter(shapes.values()), (0, 0))
        if len(shape) != 2 or 0 in shape or set(shapes.values()) != {shape}:
            raise FitError(
                "Draws: every site must have shape (chains, draws, ...), the same for all and none of them 0, "
                f"got {shapes or 'no site'}; check what the sampler returned"
            )

    def __repr__(self) -> str:
        chains, length = self.shape
        return f"Draws({chains} chains of {length}: {', '.join(self.sites)})"

    @property
    def shape(self) -> tuple[int, int]:
        """Number of chains, and of draws in each."""
        first = next(iter({**self.sites, **self.stats}.values()))
        return first.shape[0], first.shape[1]

    @property
    def size(self) -> int:
        """Number of draws of all chains together."""
        chains, length = self.shape
        return chains * length

    def draws(self, n: int) -> dict[str, Tensor]:
        """``n`` draws spread evenly over all chains, {site: (n, *event)}; some repeat when there are fewer.

        Without a site there are ``n`` of nothing, under a name that no site has.
        """
        if not self.sites:
            return nothing(n)
        index = evenly(self.size, n)
        found = {site: value.flatten(0, 1)[index] for site, value in self.sites.items()}
        fine = evenly(self.size * self._times, n)  # of the same draws of the sites
        return found | {site: value.flatten(0, 1)[fine] for site, value in self.discrete.items()}

    def chains(self, n: int) -> dict[str, Tensor]:
        """At most ``n`` draws of each chain, spread evenly, {site: (C, S, *event)}; of no site as in `draws`."""
        index = evenly(self.shape[1], min(n, self.shape[1]))
        if not self.sites:
            return {name: value.expand(self.shape[0], *value.shape) for name, value in nothing(len(index)).items()}
        found = {site: value[:, index] for site, value in self.sites.items()}
        return found | {site: value[:, index * self._times] for site, value in self.discrete.items()}

    def draw_stats(self, n: int) -> dict[str, Tensor]:
        """The records of the draws that `draws` gives, {name: (n,)}."""
        index = evenly(self.size, n)
        return {name: value.flatten(0, 1)[index] for name, value in self.stats.items()}

    def chain_stats(self, n: int) -> dict[str, Tensor]:
        """The sampler's records of the draws that `chains` gives, {name: (C, S)}."""
        index = evenly(self.shape[1], min(n, self.shape[1]))
        return {name: value[:, index] for name, value in self.stats.items()}

    def to(self, device: torch.device | str) -> "Draws":
        """The same draws on another device."""
        return Draws(
            {site: value.to(device) for site, value in self.sites.items()},
            {name: value.to(device) for name, value in self.stats.items()},
            {site: value.to(device) for site, value in self.discrete.items()},
        )

    def renumbered(self, sites: Mapping[str, Tensor]) -> "Draws":
        """The same draws with these values of the sites, whose labels have other numbers.

        Discrete draws are left out, for their values may be such labels.
        """
        return Draws(dict(sites), self.stats)

    @property
    def _times(self) -> int:
        """Draws of the discrete sites at each of the others."""
        return next((value.shape[1] // self.shape[1] for value in self.discrete.values()), 1)


def evenly(total: int, n: int) -> Tensor:
    """``n`` indices spread evenly over ``range(total)``."""
    return torch.arange(n) * total // n
