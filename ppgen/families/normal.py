r"""Normal vectors.

.. math:: w \sim \mathcal N(m, P^{-1}), \qquad
    A(\eta) = \tfrac12 m^\top P m - \tfrac12 \log|P| + \tfrac R2 \log 2\pi, \qquad \eta = (P m, P)

with statistics :math:`w` and :math:`-w w^\top / 2`. Reference: Bishop (2006), §2.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions.constraints import Constraint, positive_definite, real_vector

from ppgen.constants import LOG_2PI
from ppgen.distributions.matrix_normal import PrecisionNormal
from ppgen.distributions.wishart import cholesky
from ppgen.families.family import Family, Natural, Sampler, common_batch, require_positive_definite

__all__ = ["Normal"]


@final
@dataclass(frozen=True)
class Normal(Family):
    """Vectors of R numbers: ``Normal("weights")``."""

    site: str

    event_dims: ClassVar[Mapping[str, int]] = {"linear": 1, "quadratic": 2}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the vector."""
        return (self.site,)

    def natural(self, *, location: Float[Tensor, "*#batch R"], precision: Float[Tensor, "*#batch R R"]) -> Natural:
        """Natural parameters of N(location, precision⁻¹)."""
        linear = (precision @ location[..., None])[..., 0]
        return common_batch({"linear": linear, "quadratic": precision}, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``location`` (*batch, R) and ``precision`` (*batch, R, R)."""
        return {"location": self._mean(eta), "precision": eta["quadratic"]}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {"location": real_vector, "precision": positive_definite}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log-normaliser; see the module's formula."""
        root, size = cholesky(eta["quadratic"]), eta["linear"].shape[-1]
        whitened = torch.linalg.solve_triangular(root, eta["linear"][..., None], upper=False)[..., 0]
        half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return whitened.square().sum(-1) / 2 - half_log_det + size / 2 * LOG_2PI

    def expected(self, eta: Natural) -> Natural:
        """Expectations of w and -ww'/2."""
        mean, covariance = self._mean(eta), torch.cholesky_inverse(cholesky(eta["quadratic"]))
        return {"linear": mean, "quadratic": -(covariance + mean[..., :, None] * mean[..., None, :]) / 2}

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """The vector w and -ww'/2."""
        w = theta[self.site]
        return {"linear": w, "quadratic": -w[..., :, None] * w[..., None, :] / 2}

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the vector."""
        normal = PrecisionNormal(self._mean(eta), cholesky(eta["quadratic"]))
        return {self.site: sample(self.site, normal.to_event(self.batch_dims(eta)))}

    def _mean(self, eta: Natural) -> Tensor:
        return torch.cholesky_solve(eta["linear"][..., None], cholesky(eta["quadratic"]))[..., 0]

    def _check_proper(self, eta: Natural) -> None:
        require_positive_definite(self._name, "precision", eta["quadratic"])
