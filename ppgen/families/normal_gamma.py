r"""Normal-gamma over the mean and precision of a scalar Gaussian, batched over features.

.. math:: \lambda \sim \mathrm{Gamma}(a, b), \qquad \mu \mid \lambda \sim \mathcal N(m, (\kappa\lambda)^{-1})

It is the normal-inverse-Wishart of one dimension with :math:`\Psi = 2b` and :math:`\nu = 2a` (base measure
:math:`\lambda^{-1/2}`): an observation :math:`x` adds :math:`(x^2, x, 1, 1)` to
:math:`\eta = (2b + \kappa m^2, \kappa m, \kappa, 2a)`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.constraints import Constraint, positive, real

from ppgen.families.family import Family, Natural, Sampler, as_tensors, common_batch, require_positive

__all__ = ["NormalGamma"]


@final
@dataclass(frozen=True)
class NormalGamma(Family):
    """Mean and precision of independent scalars: ``NormalGamma("location", "precision")``."""

    location: str = "location"
    precision: str = "precision"

    event_dims: ClassVar[Mapping[str, int]] = {"precision": 0, "linear": 0, "quadratic": 0, "log_det": 0}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: precision first, then the mean given it."""
        return (self.precision, self.location)

    def natural(
        self, *, location: Tensor | float, strength: Tensor | float, shape: Tensor | float, rate: Tensor | float
    ) -> Natural:
        """Natural parameters of Gamma(shape, rate) times N(location, 1 / (strength precision))."""
        m, kappa, a, b = as_tensors(location, strength, shape, rate)
        precision = 2 * b + kappa * m.square()
        values = {"precision": precision, "linear": kappa * m, "quadratic": kappa, "log_det": 2 * a}
        return common_batch(values, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``location``, ``strength``, ``shape`` and ``rate`` (*batch,)."""
        kappa = eta["quadratic"]
        m = eta["linear"] / kappa
        rate = (eta["precision"] - m * eta["linear"]) / 2
        return {"location": m, "strength": kappa, "shape": eta["log_det"] / 2, "rate": rate}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """What each of `named` is constrained to."""
        return {"location": real, "strength": positive, "shape": positive, "rate": positive}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log-normaliser; see the module's formula."""
        named = self.named(eta)
        shape = named["shape"]
        gamma = torch.lgamma(shape) - shape * named["rate"].log()
        return gamma + 0.5 * (math.log(2 * math.pi) - named["strength"].log())

    def expected(self, eta: Natural) -> Natural:
        """Expectations of -λ/2, λμ, -λμ²/2 and ½ log λ."""
        named = self.named(eta)
        m, shape, rate = named["location"], named["shape"], named["rate"]
        precision = shape / rate
        return {
            "precision": -precision / 2,
            "linear": precision * m,
            "quadratic": -(1 / named["strength"] + precision * m.square()) / 2,
            "log_det": (torch.digamma(shape) - rate.log()) / 2,
        }

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """-λ/2, λμ, -λμ²/2 and ½ log λ."""
        precision, location = theta[self.precision], theta[self.location]
        linear = precision * location
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
        spread = (named["strength"] * precision).rsqrt()
        location = sample(self.location, dist.Normal(named["location"], spread).to_event(events))
        return {self.precision: precision, self.location: location}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "strength", eta["quadratic"])
        named = self.named(eta)
        for name in ("shape", "rate"):
            require_positive(self._name, name, named[name])
