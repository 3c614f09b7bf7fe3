r"""Independent Poisson emissions.

.. math:: \lambda_{kd} \sim \mathrm{Gamma}(a, b), \qquad x_{td} \sim \mathrm{Pois}(\lambda_{z_t d})

Entries are counts per time step, or NaN; a missing entry's factor is one.
"""

from typing import Any, final

import torch
from torch import Tensor

from ppgen.emissions.emission import SEQUENCES, Emission
from ppgen.emissions.frames import Frames
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.gamma import Gamma

__all__ = ["Poisson"]


@final
class Poisson(Emission):
    """Counts. The prior of each rate is Gamma(``shape``, ``rate``), with mean ``shape / rate`` counts per step."""

    def __init__(self, features: int, *, shape: float = 1.0, rate: float = 0.1) -> None:
        if features < 1 or not (shape > 0 and rate > 0):
            raise DataError(f"Poisson: features, shape and rate must be positive, got {features}, {shape}, {rate}")
        self.features, self.shape, self.rate = features, shape, rate
        self.family = Gamma("rate")

    @property
    def config(self) -> dict[str, Any]:
        return {"features": self.features, "shape": self.shape, "rate": self.rate}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return {"rate": ("feature",)}

    def check(self, x: Tensor, axes: tuple[str, ...] = SEQUENCES) -> None:
        super().check(x, axes)
        self._refuse_values(x, ~torch.isnan(x) & ((x < 0) | (x != x.round())), "counts", axes)

    @property
    def apart(self) -> bool:
        return True

    def prior(self, states: int, **scales: Tensor) -> Natural:
        ones = torch.ones(states, self.features, dtype=torch.float64)
        return self.family.natural(shape=self.shape * ones, rate=self.rate * ones)

    def potential(self, x: Tensor, s: Natural, frames: Frames | None = None) -> Tensor:
        seen, counts = (~torch.isnan(x)).to(x), torch.nan_to_num(x)
        scores = torch.cat([counts, -seen], -1) @ torch.cat([s["log"], s["value"]], -1).mT
        return scores - torch.lgamma(counts + 1).sum(-1, keepdim=True)

    def sample(self, s: Natural, z: Tensor) -> Tensor:
        return torch.poisson(s["log"].exp()[z])

    def fill(self, x: Tensor, s: Natural, z: Tensor) -> Tensor:
        return torch.where(torch.isnan(x), self.sample(s, z), x)

    def embed(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(x).sqrt()
