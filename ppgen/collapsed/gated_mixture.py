r"""Mixture whose weights are gated by inputs, as one distribution over rows, the component of each row summed out.

.. math:: p(x_n \mid u_n) = \sum_k g_k(u_n)\, p(x_n \mid z_n = k, u_n)

Reference: Jacobs, Jordan, Nowlan & Hinton (1991).
"""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from pyro.distributions import constraints
from torch import Tensor

from ppgen.collapsed.base import Collapsed
from ppgen.collapsed.emission_mixture import MixtureLatents
from ppgen.distributions.shape import Shape
from ppgen.emissions.generalized_linear import GeneralizedLinear
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.messages import Mixture, mixture

__all__ = ["GatedMixture"]


@final
class GatedMixture(Collapsed):
    """Distribution over ``x`` (N, D) given inputs.

    Parameters
    ----------
    log_gates : (N, K) log probabilities of the experts.
    experts : the likelihood, and its parameters ``theta``.
    inputs : (N, R) regressors of the likelihood.
    """

    support = constraints.independent(constraints.real, 1)

    def __init__(
        self,
        log_gates: Float[Tensor, "N K"],
        experts: GeneralizedLinear,
        theta: Mapping[str, Tensor],
        inputs: Float[Tensor, "N R"],
    ) -> None:
        self.log_gates, self.experts, self.theta, self.inputs = log_gates, experts, dict(theta), inputs
        super().__init__(torch.Size([len(inputs)]), torch.Size([experts.features]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "GatedMixture":
        if tuple(batch_shape) != tuple(self.batch_shape):
            own, came = tuple(self.batch_shape), tuple(batch_shape)
            raise DataError(f"GatedMixture: must have one batch dimension of {own} rows, got {came}")
        return self

    def summed(self, x: Float[Tensor, "N D"], m: Mapping[str, Natural]) -> Mixture:
        return self._mixture(self.experts.potential(x, self.theta, self.inputs))

    def energy(self, x: Float[Tensor, "N D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Log density of each row; a row without observations has the density one."""
        return torch.where(torch.isnan(x).all(-1), 0.0, self.summed(x, m).log_normalizer)

    def latents(self, x: Float[Tensor, "N D"]) -> MixtureLatents:
        """Posterior of the experts given ``x``; given the inputs alone for a row without observations."""
        return MixtureLatents(self.summed(x, {}), "expert")

    def fill(self, x: Float[Tensor, "N D"], values: Mapping[str, Int[Tensor, " N"]]) -> Float[Tensor, "N D"]:
        """``x`` with its NaN entries drawn given the experts ``z``."""
        return torch.where(torch.isnan(x), self.experts.sample(self.theta, self.inputs, values["z"]), x)

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N D"]:
        """Replicated data: fresh experts, and their observations."""
        count = torch.Size(sample_shape).numel()
        z = self._mixture(torch.zeros_like(self.log_gates)).sample(count)
        drawn = torch.stack([self.experts.sample(self.theta, self.inputs, own) for own in z])
        return drawn.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def _mixture(self, potential: Float[Tensor, "N K"]) -> Mixture:
        return mixture(potential.new_zeros(potential.shape[-1]), self.log_gates + potential)
