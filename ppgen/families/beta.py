r"""Beta over a probability.

.. math:: p \sim \mathrm{Beta}(a, b), \qquad A = \log\Gamma(a) + \log\Gamma(b) - \log\Gamma(a + b)

The natural parameters are :math:`(a, b)` themselves (base measure :math:`p^{-1}(1-p)^{-1}`): numbers of ones and zeros
are added to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro import distributions as dist
from torch import Tensor
from torch.distributions.constraints import Constraint, positive

from ppgen.families.family import Family, Natural, Sampler, as_tensors, common_batch, require_positive

__all__ = ["Beta"]


@final
@dataclass(frozen=True)
class Beta(Family):
    """Probabilities of a one, each on its own: ``Beta("probability")``."""

    site: str

    event_dims: ClassVar[Mapping[str, int]] = {"log_one": 0, "log_zero": 0}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the probability of a one."""
        return (self.site,)

    def natural(self, *, one: Tensor | float, zero: Tensor | float) -> Natural:
        """Natural parameters of Beta(one, zero), prior counts of ones and zeros."""
        ones, zeros = as_tensors(one, zero)
        return common_batch({"log_one": ones, "log_zero": zeros}, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``one`` and ``zero`` (*batch,)."""
        return {"one": eta["log_one"], "zero": eta["log_zero"]}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {"one": positive, "zero": positive}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log of the beta function."""
        one, zero = eta["log_one"], eta["log_zero"]
        return torch.lgamma(one) + torch.lgamma(zero) - torch.lgamma(one + zero)

    def expected(self, eta: Natural) -> Natural:
        """E[log p] and E[log(1 - p)]."""
        one, zero = eta["log_one"], eta["log_zero"]
        total = torch.digamma(one + zero)
        return {"log_one": torch.digamma(one) - total, "log_zero": torch.digamma(zero) - total}

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """Log p and log(1 - p)."""
        probability = theta[self.site]
        return {"log_one": probability.log(), "log_zero": torch.log1p(-probability)}

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the probability."""
        prior = dist.Beta(eta["log_one"], eta["log_zero"]).to_event(self.batch_dims(eta))
        return {self.site: sample(self.site, prior)}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "one", eta["log_one"])
        require_positive(self._name, "zero", eta["log_zero"])
