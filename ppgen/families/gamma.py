r"""Gamma over a positive number, a Poisson rate for one.

.. math:: x \sim \mathrm{Gamma}(a, b), \qquad A = \log\Gamma(a) - a \log b

The natural parameters are :math:`(a, -b)` (base measure :math:`x^{-1}`): a Poisson count :math:`y` adds
:math:`(y, -1)`.
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

__all__ = ["Gamma"]


@final
@dataclass(frozen=True)
class Gamma(Family):
    """Positive numbers, each on its own: ``Gamma("rate")``."""

    site: str

    event_dims: ClassVar[Mapping[str, int]] = {"log": 0, "value": 0}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the positive number."""
        return (self.site,)

    def natural(self, *, shape: Tensor | float, rate: Tensor | float) -> Natural:
        """Natural parameters of Gamma(shape, rate), whose mean is shape / rate."""
        shapes, rates = as_tensors(shape, rate)
        return common_batch({"log": shapes, "value": -rates}, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``shape`` and ``rate`` (*batch,)."""
        return {"shape": eta["log"], "rate": -eta["value"]}

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {"shape": positive, "rate": positive}

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log Gamma(shape) - shape log(rate)."""
        return torch.lgamma(eta["log"]) - eta["log"] * (-eta["value"]).log()

    def expected(self, eta: Natural) -> Natural:
        """E[log x] and E[x]."""
        shape, rate = eta["log"], -eta["value"]
        return {"log": torch.digamma(shape) - rate.log(), "value": shape / rate}

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """Log x and x."""
        return {"log": theta[self.site].log(), "value": theta[self.site]}

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the positive number."""
        prior = dist.Gamma(eta["log"], -eta["value"]).to_event(self.batch_dims(eta))
        return {self.site: sample(self.site, prior)}

    def _check_proper(self, eta: Natural) -> None:
        require_positive(self._name, "shape", eta["log"])
        require_positive(self._name, "rate", -eta["value"])
