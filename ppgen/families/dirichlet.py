r"""Dirichlet over probabilities.

.. math:: p \sim \mathrm{Dir}(\alpha), \qquad
    A(\alpha) = \textstyle\sum_k \log\Gamma(\alpha_k) - \log\Gamma(\sum_k \alpha_k)

The natural parameter is the concentration itself (base measure :math:`\prod_k p_k^{-1}`), so counts are added to it.
Every quantity keeps its digits when one concentration is huge, as that of a state that is almost never left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.constraints import Constraint, independent, positive

from ppgen.families.family import Family, Natural, Sampler, require_positive
from ppgen.families.gamma_functions import digamma_increment, log_gamma_divergence, log_gamma_increment

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

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {"concentration": independent(positive, 1)}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log of the multivariate beta function."""
        largest, where, rest = _largest(eta["log_probability"])
        others = torch.lgamma(eta["log_probability"]).scatter(-1, where, 0.0).sum(-1)
        return others - log_gamma_increment(largest, rest)[..., 0]

    def expected(self, eta: Natural) -> Natural:
        """E[log p]."""
        concentration = eta["log_probability"]
        largest, where, rest = _largest(concentration)
        value = torch.digamma(concentration) - torch.digamma(largest + rest)
        return {"log_probability": value.scatter(-1, where, -digamma_increment(largest, rest))}

    def kl(self, eta_q: Natural, eta_p: Natural) -> Float[Tensor, "*batch"]:
        """Kullback-Leibler divergence KL(q || p) in nats: a sum of divergences of log gamma, without large terms."""
        q, p = torch.broadcast_tensors(eta_q["log_probability"], eta_p["log_probability"])
        each = log_gamma_divergence(p, q, p - q).sum(-1)
        return each - log_gamma_divergence(p.sum(-1), q.sum(-1), (p - q).sum(-1))

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """Log p."""
        return {"log_probability": theta[self.site].log()}

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the probabilities."""
        prior = dist.Dirichlet(eta["log_probability"]).to_event(self.batch_dims(eta))
        return {self.site: sample(self.site, prior)}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "concentration", eta["log_probability"])


def _largest(concentration: Float[Tensor, "*batch K"]) -> tuple[Tensor, Tensor, Tensor]:
    """The largest concentration, its index, and the sum of the others, each (*batch, 1)."""
    where = concentration.argmax(-1, keepdim=True)
    rest = concentration.scatter(-1, where, 0.0).sum(-1, keepdim=True)
    return concentration.gather(-1, where), where, rest
