"""Poisson durations, counted down. Reference: Yu (2010), §2."""

from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.durations.durations import Durations, Statistics, above, whole
from ppgen.families.family import Factor
from ppgen.families.gamma import Gamma

__all__ = ["PoissonDurations"]


@final
class PoissonDurations(Durations):
    r"""A state lasts d steps with :math:`d - 1 \sim \mathrm{Poisson}(\lambda)`, :math:`\lambda \sim \mathrm{Gamma}`.

    A state counts down from the duration with which it is entered, so no duration is longer than ``longest``; what the
    Poisson says of longer ones is left out, and a fit of which that is more than a thousandth says so.

    Parameters
    ----------
    longest : steps. A chain of K states takes the time of an ordinary one of K ``longest`` states.
    expected : prior guess of a duration, in steps.
    strength : number of durations that the prior of the rate is worth.
    """

    LOST: ClassVar[float] = 1e-3

    def __init__(self, longest: int = 50, *, expected: float = 10.0, strength: float = 0.1) -> None:
        self.phases = self.longest = whole("PoissonDurations", "longest", longest, 2)
        self.expected = above("PoissonDurations", "expected", expected, 1)
        self.strength = above("PoissonDurations", "strength", strength, 0)

    @property
    def config(self) -> dict[str, Any]:
        return {"longest": self.longest, "expected": self.expected, "strength": self.strength}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {"duration_rate": ("state",)}

    def prior(self, states: int) -> dict[str, Factor]:
        family = Gamma("duration_rate")
        rate = torch.full((states,), self.strength, dtype=torch.float64)
        return {"duration_rate": Factor(family, family.natural(shape=1 + rate * (self.expected - 1), rate=rate))}

    def entry(self, s: Statistics) -> Float[Tensor, "K R"]:
        """The Poisson probability of as many steps after the first."""
        after = torch.arange(self.longest).to(s["duration_rate"]["log"])
        ways = after * s["duration_rate"]["log"][:, None] - s["duration_rate"]["value"][:, None]
        return ways - torch.lgamma(after + 1)

    def within(self, s: Statistics) -> Float[Tensor, "K R R"]:
        """One step less is left."""
        down = torch.diag(torch.ones(self.longest - 1), -1).to(s["duration_rate"]["log"]).log()
        return down.expand(len(s["duration_rate"]["log"]), -1, -1)

    def leaving(self, s: Statistics) -> Float[Tensor, "K R"]:
        """At once when no step is left, and never before."""
        none = s["duration_rate"]["log"].new_full((len(s["duration_rate"]["log"]), self.longest), -torch.inf)
        return torch.cat([torch.zeros_like(none[:, :1]), none[:, 1:]], -1)

    def mean(self, theta: Mapping[str, Tensor]) -> Float[Tensor, "*S K"]:
        return 1 + theta["duration_rate"]

    def tail(self, theta: Mapping[str, Tensor], longest: int) -> Float[Tensor, "*S K"]:
        rate = theta["duration_rate"]
        return torch.special.gammainc(torch.full_like(rate, longest), rate)
