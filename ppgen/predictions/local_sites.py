r"""Latent sites that each row of the data owns, for any rows: proposed by a guide, weighed by the model.

Let :math:`q` propose values :math:`h` of a row's own sites. With the weights
:math:`w_r = p(x, h_r \mid \theta) / q(h_r)` of its draws,

.. math::
    \log p(x \mid \theta) \approx \log \tfrac 1 R \textstyle\sum_r w_r, \qquad
    p(h \mid x, \theta) \approx \textstyle\sum_r w_r \delta_{h_r} / \sum_r w_r,

the first without bias before its logarithm. See :mod:`ppgen.predictions.proposals` for what proposes. Such sites are no
parameters: other data get values of their own.

References: Burda, Grosse & Salakhutdinov (2016); Mattei & Frellsen (2019), for entries that are missing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import pyro.distributions as dist
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppgen.collapsed import estimated
from ppgen.data.parts import Inputs
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import latent_sites, name_of, observed_sites, run
from ppgen.predictions.discrete_sites import discrete
from ppgen.predictions.over_draws import Theta, gather, nothing
from ppgen.predictions.proposals import Mixture, OfGuide, mixture
from ppgen.predictions.row_terms import row_scores
from ppgen.predictions.weights import noted
from ppgen.programs.isolated import isolated
from ppgen.programs.memory import memory, remember
from ppgen.programs.rows import RowSite, at_rows, remember_row_plates, row_sites

__all__ = [
    "PROPOSALS",
    "Local",
    "Weighed",
    "completed",
    "for_rows",
    "local",
    "pool_of",
    "proposals_of",
    "remember_rows",
    "with_local",
    "with_prior",
]

PROPOSALS = 64  # values proposed for each row at one draw of the parameters
LEAST_POOL = 1024  # where rows share nothing, so that all draws come from the same proposals
ENOUGH = 5000  # there, whatever the number of draws, unless there are more of these
MOST_NUMBERS = 1 << 22  # of the data of all proposals that are weighed at once


def remember_rows(model: Model, x: Tensor, u: Inputs) -> None:
    """Store in a model its plates over rows and which sites rows own, before questions about ``x``, outside of vmap."""
    remember_row_plates(model, x, u)
    known = memory(model)
    if known.of_rows and known.row_sites is None:
        remember(model, row_sites=row_sites(model, x, u))


def local(model: Model, theta: Theta, x: Tensor, u: Inputs) -> "Local | None":
    """Values that each row of ``x`` owns, at the shared parameters in ``theta``; None where rows own nothing."""
    return _local(model, theta, x, u) if memory(model).row_sites else None


def _local(model: Model, theta: Theta, x: Tensor, u: Inputs) -> "Local":
    sites = memory(model).row_sites or {}
    return Local(model, {name: value for name, value in theta.items() if name not in sites}, x, u, sites)


def for_rows(model: Model, draws: Mapping[str, Tensor], x: Tensor, u: Inputs) -> dict[str, Tensor]:
    """A fit's draws {site: (S, ...)} for questions about ``x``: values of what rows own only where these are its rows.

    Whatever then is in a draw belongs to the rows of ``x``.
    """
    known = memory(model)
    sites = known.row_sites or {}
    if known.guide is not None or not any(name in sites for name in draws):  # by a guide a fit keeps none
        return dict(draws)
    if known.is_of(x, u):
        return dict(draws)
    count = len(next(iter(draws.values())))
    return {name: value for name, value in draws.items() if name not in sites} or nothing(count)


def with_local(model: Model, theta: Theta, x: Tensor, u: Inputs) -> Theta:
    """``theta`` with a value for each row: those it holds, else one draw from the posterior given ``x``."""
    own = local(model, theta, x, u)
    return theta if own is None or own.is_held_by(theta) else own.draw()


def with_prior(model: Model, theta: Theta, x: Tensor, u: Inputs) -> Theta:
    """``theta`` with a value for each row: those it holds, else one draw from the prior."""
    own = local(model, theta, x, u)
    return theta if own is None or own.is_held_by(theta) else {**own.theta, **own.prior(1)}


class Weighed(NamedTuple):
    """Proposals of a row's own sites, rows first: ``values`` {site: (n, N, ...)}, and their log weights (n, N).

    ``axes`` say where the program has the rows of a value, from the right.
    """

    values: Mapping[str, Tensor]
    log_weight: Float[Tensor, "n N"]
    axes: Mapping[str, int]

    def resampled(self) -> dict[str, Tensor]:
        """One value for each row, drawn by weight, as the program lays it out."""
        pick = dist.Categorical(logits=self.log_weight.mT).sample()
        rows = torch.arange(len(pick), device=pick.device)
        return {name: value[pick, rows].movedim(0, self.axes[name]) for name, value in self.values.items()}

    def draws(self, n: int) -> dict[str, Tensor]:
        """``n`` such values {site: (n, ...)}."""
        drawn = [self.resampled() for _ in range(n)]
        return {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}

    def means(self) -> dict[str, Tensor]:
        """The posterior mean of each row, as the program lays it out."""
        weight = self.log_weight.softmax(0)
        found = {}
        for name, value in self.values.items():
            shaped = weight.reshape(*weight.shape, *(1,) * (value.ndim - 2))
            found[name] = (shaped * value).sum(0).movedim(0, self.axes[name])
        return found


def completed(
    model: Model, draws: Mapping[str, Tensor], x: Tensor, u: Inputs
) -> tuple[dict[str, Tensor], Float[Tensor, "S N"]]:
    """Draws {site: (S, ...)} of what rows share, with one proposal of the guide for each row: and its log densities."""

    def proposed(theta: Theta) -> tuple[Theta, Tensor]:
        own = _local(model, theta, x, u)
        found = OfGuide(own).draw(1)
        return {**own.theta, **found.values}, found.log_q

    found: tuple[dict[str, Tensor], Tensor] = gather(proposed, draws)
    return found


def proposals_of(draws: int) -> int:
    """How many values are proposed for each row in all, for so many draws, where rows share nothing."""
    return max(draws, min(draws * PROPOSALS, ENOUGH))


def pool_of(model: Model, x: Tensor, u: Inputs, n: int) -> Weighed:
    """One pool of proposals of what rows own, for ``n`` draws, where they share nothing."""
    with torch.no_grad():
        return _local(model, {}, x, u).weighed(max(n, LEAST_POOL))


@final
@dataclass(frozen=True, eq=False)
class Local:
    """The ``sites`` of the rows of ``x``, given the parameters ``theta`` that rows share."""

    model: Model
    theta: Theta
    x: Tensor
    u: Inputs
    sites: Mapping[str, RowSite]

    def is_held_by(self, theta: Theta) -> bool:
        """Tell whether ``theta`` has a value of every site."""
        return all(name in theta for name in self.sites)

    def log_likelihood(self, n: int = PROPOSALS) -> Float[Tensor, " N"]:
        """Log p(x | theta) of each row, estimated from ``n`` proposals."""
        note = estimated.wanted()
        if note is not None:
            note.words = "estimated from weighted proposals of each row's own latents"
        found = self.weighed(n).log_weight.logsumexp(0) - math.log(n)
        return torch.where(self._unobserved(), 0.0, found)

    def draw(self, n: int = PROPOSALS) -> Theta:
        """The parameters, and one value for each row, resampled from ``n`` proposals."""
        return {**self.theta, **self.weighed(n).resampled()}

    def weighed(self, n: int) -> Weighed:
        """``n`` proposals of every site of each row, and their weights."""
        size = max(1, MOST_NUMBERS // max(1, self.x.numel()))
        mixed = mixture(self)
        with torch.no_grad():
            parts = [self._weighed(mixed, min(size, n - start)) for start in range(0, n, size)]
        values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
        log_weight = torch.cat([part.log_weight for part in parts])
        noted(log_weight)
        return Weighed(values, log_weight, parts[0].axes)

    @property
    def plates(self) -> frozenset[str]:
        """Names of the plates over the rows."""
        return frozenset(site.plate for site in self.sites.values())

    def tiled(self, n: int) -> "Local":
        """All rows ``n`` times over, one after the other."""
        rows = torch.arange(len(self.x), device=self.x.device).repeat(n)
        model, x, u = at_rows(self.model, self.x, self.u, rows)
        return replace(self, model=model, x=x, u=u)

    def prior(self, n: int) -> dict[str, Tensor]:
        """``n`` draws of the sites from their prior, as the program lays out all rows so many times over."""
        tiled = self.tiled(n)
        sites = latent_sites(run(tiled.model, self.theta, tiled.x, tiled.u))
        return {name: sites[name]["value"] for name in self.sites}

    def log_rows(self, values: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Log p(h, x | theta) of each row at ``values`` of its own sites; a gradient is recorded."""
        theta = {**self.theta, **values}
        trace = run(self.model, theta, self.x, self.u, tracked=True)
        sites = discrete(self.model, theta, self.x, self.u, trace)
        if shared := [name for name, frames in sites.plates.items() if self.plates.isdisjoint(f.name for f in frames)]:
            raise FitError(
                f"{name_of(self.model)}: a program whose rows own {sorted(self.sites)} must have no discrete site that "
                f"rows share, got {shared[0]!r}; put it into the plate over rows, or make it continuous"
            )
        if sites.plates:
            return sites.log_rows(self.plates)
        with isolated():
            trace.compute_log_prob()
        own = [*observed_sites(trace, theta).values(), *(trace.nodes[name] for name in values)]
        return torch.stack(row_scores(own, len(self.x), self.plates)).sum(0)

    def _unobserved(self) -> Bool[Tensor, " N"]:
        """Rows of which nothing was observed, whose density is one: no entry of the data, nor anything else."""
        empty = torch.isnan(self.x).reshape(len(self.x), -1).all(-1)
        if not bool(empty.any()):
            return empty
        theta = {**self.theta, **self.prior(1)}
        trace = run(self.model, theta, self.x, self.u)
        with isolated():
            trace.compute_log_prob()
        scores = row_scores(observed_sites(trace, theta).values(), len(self.x), self.plates)
        return empty & (torch.stack(scores) == 0).all(0) if scores else empty

    def _weighed(self, mixed: Mixture, n: int) -> Weighed:
        found = mixed.draw(n)
        log_weight = self.tiled(n).log_rows(found.values) - found.log_q
        values = {name: value.movedim(found.axes[name], 0) for name, value in found.values.items()}
        shaped = {name: value.unflatten(0, (n, -1)) for name, value in values.items()}
        return Weighed(shaped, log_weight.unflatten(0, (n, -1)), found.axes)
