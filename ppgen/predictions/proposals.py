r"""Proposals with a density for the values of rows' own sites.

A guide that reads the rows proposes what it was trained to. The model itself proposes around the most probable values
of each row, where there are few of them; both together are a mixture, in which a row that the guide serves badly is
served by the other. Weights are those of the mixture (Veach & Guibas 1995, the balance heuristic).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, cast, final

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from ppgen.errors import FitError, PpgenError
from ppgen.predictions.conditioned import latent_sites, name_of, new_tensors, sampled_sites
from ppgen.predictions.row_modes import Peaks, peaks
from ppgen.predictions.row_terms import plate_axis, row_scores
from ppgen.programs.isolated import isolated
from ppgen.programs.memory import memory
from ppgen.programs.parameters import ParametersAt
from ppgen.programs.rows import called

if TYPE_CHECKING:
    from ppgen.predictions.local_sites import Local

__all__ = ["Mixture", "OfGuide", "mixture"]

STARTS, FEWER_STARTS = 8, 2  # of each row's search, and where a row owns many numbers
BESIDE, WIDEST = 16, 64  # unconstrained numbers of a row whose mode is searched beside a guide, and without one


class Proposed(NamedTuple):
    """Values of sites of all rows ``n`` times over, as the program lays them out; log densities (n * N,).

    ``axes`` say which axis of a value numbers the rows, from the right.
    """

    values: dict[str, Tensor]
    log_q: Tensor
    axes: Mapping[str, int]


class Proposals(ABC):
    """Proposals for the rows of ``local``."""

    def __init__(self, local: "Local") -> None:
        self.local = local

    @abstractmethod
    def draw(self, n: int) -> Proposed:
        """``n`` for each row."""

    @abstractmethod
    def log_density(self, values: Mapping[str, Tensor], n: int) -> Tensor:
        """Log density (n * N,) of values that were proposed."""


@final
class OfGuide(Proposals):
    """Draws of the guide for the rows, at the parameters that these share."""

    def draw(self, n: int) -> Proposed:
        trace, log_q = self._run(n, {})
        nodes: dict[str, Any] = dict(trace.nodes)
        axes = {name: axis for name in latent_sites(trace) if (axis := self._axis(nodes[name])) is not None}
        return Proposed({name: nodes[name]["value"] for name in axes}, log_q, axes)

    def log_density(self, values: Mapping[str, Tensor], n: int) -> Tensor:
        return self._run(n, values)[1]

    def covers(self) -> bool:
        """True if the guide draws what rows own and nothing beside it, so that it has a density of any values."""
        trace, _ = self._run(1, {})
        own = {name for name, site in sampled_sites(trace).items() if self._axis(site) is not None}
        return own == set(self.local.sites)

    def _run(self, n: int, values: Mapping[str, Tensor]) -> tuple[poutine.Trace, Tensor]:
        known, tiled = memory(self.local.model), self.local.tiled(n)
        args, kwargs = called(tiled.model, tiled.x, tiled.u)
        with torch.no_grad(), isolated(), new_tensors(tiled.x.dtype), ParametersAt(known.guide_params):
            guide = poutine.condition(cast(Callable[..., Any], known.guide), data={**self.local.theta, **values})
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            trace.compute_log_prob()
        scored = [site for name, site in sampled_sites(trace).items() if name not in self.local.theta]
        return trace, torch.stack(row_scores(scored, len(tiled.x), self.local.plates)).sum(0)

    def _axis(self, site: Any) -> int | None:  # noqa: ANN401 (a node of a trace)
        """Axis of a value that numbers the rows, from the right; None where rows share it."""
        axis = plate_axis(site, len(self.local.x), self.local.plates)
        return None if axis is None else axis - site["fn"].event_dim


@final
class AroundModes(Proposals):
    """T distributions of the unconstrained values around the modes of each row."""

    def draw(self, n: int) -> Proposed:
        free = self.peaks.draw(n)
        placed, jacobian = self._placed(free.flatten(0, 1))
        axes = {name: site.axis for name, site in self.local.sites.items()}
        return Proposed(placed, self.peaks.log_density(free).flatten() - jacobian, axes)

    def log_density(self, values: Mapping[str, Tensor], n: int) -> Tensor:
        free = torch.cat([site.free(values[name]) for name, site in self.local.sites.items()], -1)
        _, jacobian = self._placed(free)
        return self.peaks.log_density(free.unflatten(0, (n, -1))).flatten() - jacobian

    @cached_property
    def peaks(self) -> Peaks:
        """Modes of each row, searched from zero and from draws of its prior."""
        count = STARTS if sum(self.sizes) <= BESIDE else FEWER_STARTS
        drawn = self.local.prior(count - 1)
        free = torch.cat([site.free(drawn[name]) for name, site in self.local.sites.items()], -1)
        starts = torch.cat([torch.zeros_like(free[: len(self.local.x)]), free]).unflatten(0, (count, -1))
        tiled = self.local.tiled(count)

        def target(value: Float[Tensor, "R d"]) -> Float[Tensor, " R"]:
            placed, jacobian = self._placed(value)
            return tiled.log_rows(placed) + jacobian

        return peaks(target, starts)

    @property
    def sizes(self) -> list[int]:
        """Unconstrained numbers of each site that a row has."""
        return [site.free_shape.numel() for site in self.local.sites.values()]

    def _placed(self, free: Float[Tensor, "N d"]) -> tuple[dict[str, Tensor], Float[Tensor, " N"]]:
        """Values in their own units, and the log Jacobian of each row."""
        parts = zip(self.local.sites.items(), free.split(self.sizes, -1), strict=True)
        found = {name: site.constrained(part) for (name, site), part in parts}
        jacobian = torch.stack([jacobian for _, jacobian in found.values()]).sum(0)
        return {name: value for name, (value, _) in found.items()}, jacobian


@final
@dataclass(frozen=True, eq=False)
class Mixture:
    """Proposals of several kinds in equal parts."""

    parts: Sequence[Proposals]

    def draw(self, n: int) -> Proposed:
        """``n`` for each row, and their density under the mixture."""
        if len(self.parts) == 1:
            return self.parts[0].draw(n)
        first = n // 2
        drawn = [part.draw(count) for part, count in zip(self.parts, (first, n - first), strict=True) if count]
        axes = drawn[0].axes
        values = {name: torch.cat([one.values[name] for one in drawn], axis) for name, axis in axes.items()}
        scores = torch.stack([part.log_density(values, n) for part in self.parts])
        return Proposed(values, scores.logsumexp(0) - math.log(len(self.parts)), axes)


def mixture(local: "Local") -> Mixture:
    """The proposals that there are for the rows of ``local``.

    Raises
    ------
    FitError : no guide reads the rows, and these own too much for a search.
    """
    size = sum(site.free_shape.numel() for site in local.sites.values())
    if memory(local.model).guide is None:
        if size > WIDEST:
            raise FitError(
                f"{name_of(local.model)}: rows that own {size} numbers ({', '.join(local.sites)}) must have a guide "
                f"that reads them, found none and searches at most {WIDEST}; give the model a guide that computes "
                "their distribution from x, and use svi.fit"
            )
        return Mixture([AroundModes(local)])
    guide, modes = OfGuide(local), AroundModes(local)
    return Mixture([guide, modes] if size <= BESIDE and guide.covers() and _found(modes) else [guide])


def _found(modes: AroundModes) -> bool:
    """Tell whether the modes can be searched: the program has second derivatives."""
    try:
        return modes.peaks.mode is not None
    except PpgenError:
        raise
    except (RuntimeError, NotImplementedError):
        return False
