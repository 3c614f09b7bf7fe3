r"""Matrix-normal gamma over the coefficients of a linear regression y = A r + e and one precision of all its outputs.

.. math:: \lambda \sim \mathrm{Gamma}(a, b), \qquad A_d \mid \lambda \sim \mathcal N(M_d, (\lambda V_d)^{-1})

With base measure :math:`\lambda^{DR/2 - 1}` the natural parameters are
:math:`\eta = (2b + \sum_d M_d^\top V_d M_d, \; V_d M_d, \; V_d, \; 2a)`, to which an observation adds
:math:`(\sum_d y_d^2, \; y_d r, \; r r', \; D)`, sums over the outputs that are seen, and

.. math:: A(\eta) = \log\Gamma(a) - a \log b + \tfrac{DR}{2} \log 2\pi - \tfrac12 \sum_d \log|V_d|.

Reference: Tipping & Bishop (1999) for the model that it serves, probabilistic principal components.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.constraints import Constraint, independent, positive, positive_definite, real

from ppgen.constants import LOG_2PI
from ppgen.distributions.matrix_normal import PrecisionNormal
from ppgen.distributions.wishart import cholesky
from ppgen.families.family import (
    Family,
    Natural,
    Sampler,
    as_tensors,
    common_batch,
    require_positive,
    require_positive_definite,
)

__all__ = ["MatrixNormalGamma"]


@final
@dataclass(frozen=True)
class MatrixNormalGamma(Family):
    """Coefficients (D, 1, R) of D outputs on R regressors, and the precision of all."""

    coefficients: str = "coefficients"
    precision: str = "precision"

    event_dims: ClassVar[Mapping[str, int]] = {"precision": 0, "linear": 3, "quadratic": 3, "log_det": 0}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the precision first, then the coefficients given it."""
        return (self.precision, self.coefficients)

    def natural(
        self,
        *,
        location: Float[Tensor, "*#batch D 1 R"],
        column_precision: Float[Tensor, "*#batch D R R"],
        shape: Tensor | float,
        rate: Tensor | float,
    ) -> Natural:
        """Natural parameters of Gamma(shape, rate) times N(location, (λ column_precision)⁻¹) of each output."""
        m, v, a, b = as_tensors(location, column_precision, shape, rate)
        linear = m @ v
        precision = 2 * b + (linear * m).sum((-3, -2, -1))
        return common_batch(
            {"precision": precision, "linear": linear, "quadratic": v, "log_det": 2 * a}, self.event_dims
        )

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``location`` (D, 1, R), ``column_precision`` (D, R, R), ``shape`` and ``rate``, batch dims first."""
        m = self._mean(eta)
        rate = (eta["precision"] - (m * eta["linear"]).sum((-3, -2, -1))) / 2
        return {"location": m, "column_precision": eta["quadratic"], "shape": eta["log_det"] / 2, "rate": rate}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        columns = independent(positive_definite, 1)
        return {"location": independent(real, 3), "column_precision": columns, "shape": positive, "rate": positive}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log-normaliser; see the module's formula."""
        named, (D, _, R) = self.named(eta), eta["linear"].shape[-3:]
        half_log_det = cholesky(eta["quadratic"]).diagonal(dim1=-2, dim2=-1).log().sum((-2, -1))
        gamma = torch.lgamma(named["shape"]) - named["shape"] * named["rate"].log()
        return gamma + D * R / 2 * LOG_2PI - half_log_det

    def expected(self, eta: Natural) -> Natural:
        """Expectations of -λ/2, λA, -λ A_d A_d'/2 and ½ log λ."""
        named = self.named(eta)
        m, shape, rate = named["location"], named["shape"], named["rate"]
        precision = (shape / rate)[..., None, None, None]
        spread = torch.cholesky_inverse(cholesky(eta["quadratic"]))
        return {
            "precision": -shape / rate / 2,
            "linear": precision * m,
            "quadratic": -(spread + precision * m.mT @ m) / 2,
            "log_det": (torch.digamma(shape) - rate.log()) / 2,
        }

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """-λ/2, λA, -λ A_d A_d'/2 and ½ log λ."""
        precision, A = theta[self.precision], theta[self.coefficients]
        linear = precision[..., None, None, None] * A
        return {
            "precision": -precision / 2,
            "linear": linear,
            "quadratic": -linear.mT @ A / 2,
            "log_det": precision.log() / 2,
        }

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the precision, then the coefficients given it."""
        named, events = self.named(eta), self.batch_dims(eta)
        precision = sample(self.precision, dist.Gamma(named["shape"], named["rate"]).to_event(events))
        root = cholesky(eta["quadratic"]) * precision.sqrt()[..., None, None, None]
        normal = PrecisionNormal(named["location"], root[..., None, :, :])
        return {
            self.precision: precision,
            self.coefficients: sample(self.coefficients, normal.to_event(events + 2)),
        }

    def _mean(self, eta: Natural) -> Tensor:
        return torch.cholesky_solve(eta["linear"].mT, cholesky(eta["quadratic"])).mT

    def _check_proper(self, eta: Natural) -> None:
        require_positive_definite(self._name, "column_precision", eta["quadratic"])
        named = self.named(eta)
        for name in ("shape", "rate"):
            require_positive(self._name, name, named[name])
