r"""Normal-gamma over the mean vector and the one precision of a spherical Gaussian.

.. math:: \lambda \sim \mathrm{Gamma}(a, b), \qquad \mu_d \mid \lambda \sim \mathcal N(m_d, (\kappa_d\lambda)^{-1})

Base measure :math:`\lambda^{D/2 - 1}`: an observation of the feature :math:`d` adds :math:`x_d^2` to
:math:`\eta_1 = 2b + \sum_d \kappa_d m_d^2`, :math:`x_d` to :math:`\kappa_d m_d`, one to :math:`\kappa_d` and one to
:math:`2a`; features that were not observed add nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.constraints import Constraint, independent, positive, real_vector

from ppgen.families.family import Family, Natural, Sampler, as_tensors, common_batch, require_positive

__all__ = ["SphericalNormalGamma"]


@final
@dataclass(frozen=True)
class SphericalNormalGamma(Family):
    """Mean vectors, each with one precision: ``SphericalNormalGamma("location", "precision")``."""

    location: str = "location"
    precision: str = "precision"

    event_dims: ClassVar[Mapping[str, int]] = {"precision": 0, "linear": 1, "quadratic": 1, "log_det": 0}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: precision first, then the mean given it."""
        return (self.precision, self.location)

    def natural(
        self, *, location: Tensor, strength: Tensor | float, shape: Tensor | float, rate: Tensor | float
    ) -> Natural:
        """Natural parameters of Gamma(shape, rate) times N(location (*batch, D), 1 / (strength precision))."""
        m, kappa, a, b = as_tensors(location, strength, shape, rate)
        m, kappa = torch.broadcast_tensors(m, kappa)
        precision = 2 * b + (kappa * m.square()).sum(-1)
        values = {"precision": precision, "linear": kappa * m, "quadratic": kappa, "log_det": 2 * a}
        return common_batch(values, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``location`` and ``strength`` (*batch, D), ``shape`` and ``rate`` (*batch,)."""
        kappa = eta["quadratic"]
        m = eta["linear"] / kappa
        rate = (eta["precision"] - (m * eta["linear"]).sum(-1)) / 2
        return {"location": m, "strength": kappa, "shape": eta["log_det"] / 2, "rate": rate}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """What each of `named` is constrained to."""
        return {
            "location": real_vector,
            "strength": independent(positive, 1),
            "shape": positive,
            "rate": positive,
        }

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log-normaliser; see the module's formula."""
        named = self.named(eta)
        shape = named["shape"]
        gamma = torch.lgamma(shape) - shape * named["rate"].log()
        return gamma + 0.5 * (math.log(2 * math.pi) - named["strength"].log()).sum(-1)

    def expected(self, eta: Natural) -> Natural:
        """Expectations of -λ/2, λμ, -λμ²/2 (per feature) and ½ log λ."""
        named = self.named(eta)
        m, shape, rate = named["location"], named["shape"], named["rate"]
        precision = shape / rate
        linear = precision[..., None] * m
        return {
            "precision": -precision / 2,
            "linear": linear,
            "quadratic": -(1 / named["strength"] + linear * m) / 2,
            "log_det": (torch.digamma(shape) - rate.log()) / 2,
        }

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """-λ/2, λμ, -λμ²/2 (per feature) and ½ log λ."""
        precision, location = theta[self.precision], theta[self.location]
        linear = precision[..., None] * location
        return {
            "precision": -precision / 2,
            "linear": linear,
            "quadratic": -linear * location / 2,
            "log_det": precision.log() / 2,
        }

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the precision, then the mean given it."""
        named, events = self.named(eta), self.batch_dims(eta)
        precision = sample(self.precision, dist.Gamma(named["shape"], named["rate"]).to_event(events))
        spread = (named["strength"] * precision[..., None]).rsqrt()
        location = sample(self.location, dist.Normal(named["location"], spread).to_event(events + 1))
        return {self.precision: precision, self.location: location}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "strength", eta["quadratic"])
        named = self.named(eta)
        for name in ("shape", "rate"):
            require_positive(self._name, name, named[name])
