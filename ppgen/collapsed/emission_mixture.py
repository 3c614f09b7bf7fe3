"""A mixture as one distribution over rows of data, the component of each row summed out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from pyro.distributions import constraints
from torch import Tensor

from ppgen.collapsed.base import Collapsed
from ppgen.distributions.shape import Shape
from ppgen.emissions.emission import Emission
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.messages import Mixture, mixture

__all__ = ["EmissionMixture", "MixtureLatents"]


@final
@dataclass(frozen=True)
class MixtureLatents:
    """Posterior of the component of each row, along an ``axis`` of that name."""

    posterior: Mixture
    axis: str = "component"

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Name -> its axes."""
        return {"z": ("row", self.axis), "z_mode": ("row",), "z_draw": ("row",)}

    @property
    def marginals(self) -> dict[str, Tensor]:
        """``z``: probability of each component."""
        return {"z": self.posterior.responsibilities}

    @property
    def mode(self) -> dict[str, Tensor]:
        """``z_mode``: the most probable component."""
        return {"z_mode": self.posterior.mode()}

    def sample(self) -> dict[str, Tensor]:
        """``z_draw``: one draw of every row's component."""
        return {"z_draw": self.posterior.sample(1)[0]}


@final
class EmissionMixture(Collapsed):
    """Distribution over ``x`` (N, D) for log-weights of the components and statistics of their emission.

    Parameters
    ----------
    log_weights : (K,), need not be normalised (variational Bayes passes expected logarithms).
    emission : the :class:`~ppgen.emissions.emission.Emission`.
    statistics : its natural statistics, batch shape (K,).
    rows : N of what :meth:`sample` draws.
    """

    support = constraints.independent(constraints.real, 1)

    def __init__(
        self, log_weights: Float[Tensor, " K"], emission: Emission, statistics: Natural, rows: int = 1
    ) -> None:
        self.log_weights, self.emission, self.statistics = log_weights, emission, statistics
        super().__init__(torch.Size([rows]), torch.Size([emission.features]), validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "EmissionMixture":
        if len(batch_shape) != 1:
            raise DataError(
                f"EmissionMixture: must have one batch dimension (rows), got batch shape {tuple(batch_shape)}"
            )
        return EmissionMixture(self.log_weights, self.emission, self.statistics, batch_shape[0])

    @property
    def apart(self) -> bool:
        return self.emission.apart

    def summed(self, x: Float[Tensor, "N D"], m: Mapping[str, Natural]) -> Mixture:
        return mixture(self.log_weights, self.emission.potential(x, self.statistics))

    def energy(self, x: Float[Tensor, "N D"], m: Mapping[str, Natural]) -> Float[Tensor, " N"]:
        """Log density of each row; a row without observations has the density one."""
        return torch.where(torch.isnan(x).all(-1), 0.0, self.summed(x, m).log_normalizer)

    def latents(self, x: Float[Tensor, "N D"]) -> MixtureLatents:
        """Posterior of the components given ``x``."""
        return MixtureLatents(self.summed(x, {}))

    def fill(self, x: Float[Tensor, "N D"], values: Mapping[str, Int[Tensor, " N"]]) -> Float[Tensor, "N D"]:
        """``x`` with its NaN entries drawn given the components ``z``."""
        return self.emission.fill(x, self.statistics, values["z"])

    def sample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S N D"]:
        """Replicated data: fresh components, and their observations."""
        (N,), count = self.batch_shape, torch.Size(sample_shape).numel()
        potential = self.log_weights.new_zeros(count * N, len(self.log_weights))
        z = mixture(self.log_weights, potential).sample(1)[0]
        return self.emission.sample(self.statistics, z).reshape(*sample_shape, N, -1)
