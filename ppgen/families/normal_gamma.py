r"""Normal-gamma priors: Gaussian means, and one precision for each mean or for all features of one.

.. math:: \lambda \sim \mathrm{Gamma}(a, b), \qquad \mu_d \mid \lambda \sim \mathcal N(m_d, (\kappa_d\lambda)^{-1})

`NormalGamma` has one mean to a precision, `SphericalNormalGamma` a vector of D. The base measure is
:math:`\lambda^{D/2 - 1}`: an observation of the feature :math:`d` adds :math:`x_d^2` to
:math:`\eta_1 = 2b + \sum_d \kappa_d m_d^2`, :math:`x_d` to :math:`\kappa_d m_d`, one to :math:`\kappa_d` and one to
:math:`2a`; features that were not observed add nothing. With D = 1 this is the normal-inverse-Wishart of one dimension
with :math:`\Psi = 2b` and :math:`\nu = 2a`.
"""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.constraints import Constraint, independent, positive, real, real_vector

from ppgen.constants import LOG_2PI
from ppgen.families.family import Family, Natural, Sampler, as_tensors, common_batch, require_positive

__all__ = ["NormalGamma", "SphericalNormalGamma"]


@dataclass(frozen=True)
class _GaussianGamma(Family, ABC):
    """Everything that does not depend on how many means share a precision."""

    location: str = "location"
    precision: str = "precision"

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: precision first, then the mean given it."""
        return (self.precision, self.location)

    def natural(
        self, *, location: Tensor | float, strength: Tensor | float, shape: Tensor | float, rate: Tensor | float
    ) -> Natural:
        """Natural parameters of Gamma(shape, rate) times N(location, 1 / (strength precision)).

        Shape and rate are (*batch,); location and strength too, or (*batch, D) of the spherical family.
        """
        m, kappa, a, b = as_tensors(location, strength, shape, rate)
        m, kappa = torch.broadcast_tensors(m, kappa)
        precision = 2 * b + self._total(kappa * m.square())
        values = {"precision": precision, "linear": kappa * m, "quadratic": kappa, "log_det": 2 * a}
        return common_batch(values, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``location`` and ``strength`` of every mean, ``shape`` and ``rate`` of its precision."""
        kappa = eta["quadratic"]
        m = eta["linear"] / kappa
        rate = (eta["precision"] - self._total(m * eta["linear"])) / 2
        return {"location": m, "strength": kappa, "shape": eta["log_det"] / 2, "rate": rate}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log Γ(a) - a log b + ½ Σ_d log(2π / κ_d)."""
        named = self.named(eta)
        shape = named["shape"]
        gamma = torch.lgamma(shape) - shape * named["rate"].log()
        return gamma + 0.5 * self._total(LOG_2PI - named["strength"].log())

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """-λ/2, λμ, -λμ²/2 and ½ log λ; the middle two of every mean."""
        precision, location = theta[self.precision], theta[self.location]
        linear = self._each(precision) * location
        return {
            "precision": -precision / 2,
            "linear": linear,
            "quadratic": -linear * location / 2,
            "log_det": precision.log() / 2,
        }

    def expected(self, eta: Natural) -> Natural:
        """Expectations of -λ/2, λμ, -λμ²/2 and ½ log λ."""
        named = self.named(eta)
        m, shape, rate = named["location"], named["shape"], named["rate"]
        precision = shape / rate
        return {
            "precision": -precision / 2,
            "linear": self._each(precision) * m,
            "quadratic": -(1 / named["strength"] + self._square(precision, m)) / 2,
            "log_det": (torch.digamma(shape) - rate.log()) / 2,
        }

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the precision, then the mean given it."""
        named, events = self.named(eta), self.batch_dims(eta)
        precision = sample(self.precision, dist.Gamma(named["shape"], named["rate"]).to_event(events))
        spread = (named["strength"] * self._each(precision)).rsqrt()
        events += self.event_dims["linear"]
        location = sample(self.location, dist.Normal(named["location"], spread).to_event(events))
        return {self.precision: precision, self.location: location}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "strength", eta["quadratic"])
        named = self.named(eta)
        for name in ("shape", "rate"):
            require_positive(self._name, name, named[name])

    def _total(self, values: Tensor) -> Tensor:
        """Sum over the means of each precision."""
        return values.sum(-1) if self.event_dims["linear"] else values

    def _each(self, precision: Tensor) -> Tensor:
        """The precision of each mean."""
        return precision[..., None] if self.event_dims["linear"] else precision

    def _square(self, precision: Tensor, m: Tensor) -> Tensor:
        """λ m² of each mean."""
        return self._each(precision) * m * m if self.event_dims["linear"] else precision * m.square()


@final
@dataclass(frozen=True)
class NormalGamma(_GaussianGamma):
    """Mean and precision of independent scalars: ``NormalGamma("location", "precision")``."""

    event_dims: ClassVar[Mapping[str, int]] = {"precision": 0, "linear": 0, "quadratic": 0, "log_det": 0}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {"location": real, "strength": positive, "shape": positive, "rate": positive}


@final
@dataclass(frozen=True)
class SphericalNormalGamma(_GaussianGamma):
    """Mean vectors, each with one precision: ``SphericalNormalGamma("location", "precision")``."""

    event_dims: ClassVar[Mapping[str, int]] = {"precision": 0, "linear": 1, "quadratic": 1, "log_det": 0}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {
            "location": real_vector,
            "strength": independent(positive, 1),
            "shape": positive,
            "rate": positive,
        }
