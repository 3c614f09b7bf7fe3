r"""Dirichlet over probabilities.

.. math:: p \sim \mathrm{Dir}(\alpha), \qquad
    A(\alpha) = \textstyle\sum_k \log\Gamma(\alpha_k) - \log\Gamma(\sum_k \alpha_k)

The natural parameter is the concentration itself (base measure :math:`\prod_k p_k^{-1}`), so counts are added to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor

from ppgen.families.family import Family, Natural, Sampler, require_positive

__all__ = ["Dirichlet"]


@final
@dataclass(frozen=True)
class Dirichlet(Family):
    """Probabilities over the last dimension: ``Dirichlet("initial")``."""

    site: str

    event_dims: ClassVar[Mapping[str, int]] = {"log_probability": 1}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the probabilities."""
        return (self.site,)

    def natural(self, *, concentration: Float[Tensor, "*batch K"]) -> Natural:
        """Natural parameters of Dir(concentration)."""
        return {"log_probability": concentration}

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``concentration`` (*batch, K)."""
        return {"concentration": eta["log_probability"]}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log of the multivariate beta function."""
        concentration = eta["log_probability"]
        return torch.lgamma(concentration).sum(-1) - torch.lgamma(concentration.sum(-1))

    def expected(self, eta: Natural) -> Natural:
        """E[log p]."""
        concentration = eta["log_probability"]
        total = concentration.sum(-1, keepdim=True)
        return {"log_probability": torch.digamma(concentration) - torch.digamma(total)}

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """Log p."""
        return {"log_probability": theta[self.site].log()}

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the probabilities."""
        prior = dist.Dirichlet(eta["log_probability"]).to_event(self.batch_dims(eta))
        return {self.site: sample(self.site, prior)}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "concentration", eta["log_probability"])
