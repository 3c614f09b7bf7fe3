"""Negative binomial durations, as rows of phases. Reference: Johnson & Willsky (2013), §4."""

from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.durations.durations import Durations, Statistics, above, whole
from ppgen.families.beta import Beta
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Factor

__all__ = ["NegativeBinomialDurations"]


@final
class NegativeBinomialDurations(Durations):
    r"""A state lasts d steps with :math:`d - 1 \sim \mathrm{NB}(r, p)`, and r is unknown too.

    .. math:: P(d) = \sum_{r=1}^R \rho_r \binom{d + r - 2}{d - 1} p^{d-1} (1 - p)^r, \qquad
        p \sim \mathrm{Beta}, \quad \rho \sim \mathrm{Dir}(1)

    r = 1 is the geometric duration of an ordinary hidden Markov model; the larger r, the more regular. A state is a
    row of ``most`` phases: each step it continues with probability p or else advances, and it is entered r phases
    before the end.

    Parameters
    ----------
    most : largest number of phases, R. A chain of K states takes the time of an ordinary one of K R states.
    expected : prior guess of a duration, in steps.
    strength : number of durations that the prior of p is worth.
    """

    def __init__(self, most: int = 5, *, expected: float = 10.0, strength: float = 0.5) -> None:
        self.phases = self.most = whole("NegativeBinomialDurations", "most", most, 1)
        self.expected = above("NegativeBinomialDurations", "expected", expected, 1)
        self.strength = above("NegativeBinomialDurations", "strength", strength, 0)

    @property
    def config(self) -> dict[str, Any]:
        return {"most": self.most, "expected": self.expected, "strength": self.strength}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {"duration_continuing": ("state",), "duration_phases": ("state", "phases")}

    @property
    def coords(self) -> Mapping[str, range]:
        return {"phases": range(1, self.most + 1)}

    def prior(self, states: int) -> dict[str, Factor]:
        family = Beta("duration_continuing")
        stops = self.strength * (1 + self.most) / 2
        goes = torch.full((states,), self.strength * (self.expected - 1), dtype=torch.float64)
        even = torch.ones(states, self.most, dtype=torch.float64)
        return {
            "duration_continuing": Factor(family, family.natural(one=goes, zero=torch.full_like(goes, stops))),
            "duration_phases": Factor(Dirichlet("duration_phases"), {"log_probability": even}),
        }

    def entry(self, s: Statistics) -> Float[Tensor, "K R"]:
        """With r phases left a state is entered in phase R - r."""
        return s["duration_phases"]["log_probability"].flip(-1)

    def within(self, s: Statistics) -> Float[Tensor, "K R R"]:
        """Some advances, and then a step."""
        p, phase = (
            s["duration_continuing"],
            torch.arange(self.most, device=s["duration_phases"]["log_probability"].device),
        )
        advances = phase - phase[:, None]
        weight = advances * p["log_zero"][:, None, None] + p["log_one"][:, None, None]
        return torch.where(advances >= 0, weight, -torch.inf)

    def leaving(self, s: Statistics) -> Float[Tensor, "K R"]:
        """As many advances as there are phases left."""
        left = torch.arange(self.most, 0, -1, device=s["duration_phases"]["log_probability"].device)
        return left * s["duration_continuing"]["log_zero"][:, None]

    def mean(self, theta: Mapping[str, Tensor]) -> Float[Tensor, "*S K"]:
        p, weights = theta["duration_continuing"], theta["duration_phases"]
        r = torch.arange(1, self.most + 1).to(weights)
        return 1 + (weights @ r) * p / (1 - p)

    def tail(self, theta: Mapping[str, Tensor], longest: int) -> Float[Tensor, "*S K"]:
        p, weights = theta["duration_continuing"][..., None], theta["duration_phases"]
        r, d = torch.arange(1, self.most + 1).to(weights), torch.arange(longest).to(weights)
        ways = torch.lgamma(d + r[:, None]) - torch.lgamma(d + 1) - torch.lgamma(r[:, None])
        each = ways + d * p[..., None].log() + r[:, None] * torch.log1p(-p[..., None])
        return (1 - (weights * each.logsumexp(-1).exp()).sum(-1)).clamp_min(0)
