r"""Independent Bernoulli emissions.

.. math:: p_{kd} \sim \mathrm{Beta}(a, b), \qquad x_{td} \sim \mathrm{Bern}(p_{z_t d})

Entries are 0, 1 or NaN; a missing entry's factor is one.
"""

from typing import Any, final

import torch
from torch import Tensor

from ppgen.emissions.emission import SEQUENCES, Emission
from ppgen.emissions.frames import Frames
from ppgen.errors import DataError
from ppgen.families.beta import Beta
from ppgen.families.family import Natural

__all__ = ["Bernoulli"]


@final
class Bernoulli(Emission):
    """Binary observations. ``one`` and ``zero`` are the prior counts of each outcome."""

    def __init__(self, features: int, *, one: float = 1.0, zero: float = 1.0) -> None:
        if features < 1 or not (one > 0 and zero > 0):
            raise DataError(f"Bernoulli: features, one and zero must be positive, got {features}, {one}, {zero}")
        self.features, self.one, self.zero = features, one, zero
        self.family = Beta("probability")

    @property
    def config(self) -> dict[str, Any]:
        return {"features": self.features, "one": self.one, "zero": self.zero}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return {"probability": ("feature",)}

    def check(self, x: Tensor, axes: tuple[str, ...] = SEQUENCES) -> None:
        super().check(x, axes)
        self._refuse_values(x, ~(torch.isnan(x) | (x == 0) | (x == 1)), "zeros and ones", axes)

    @property
    def apart(self) -> bool:
        return True

    def prior(self, states: int, **scales: Tensor) -> Natural:
        ones = torch.ones(states, self.features, dtype=torch.float64)
        return self.family.natural(one=self.one * ones, zero=self.zero * ones)

    def potential(self, x: Tensor, s: Natural, frames: Frames | None = None) -> Tensor:
        one, zero = torch.nan_to_num(x), torch.nan_to_num(1 - x)
        return torch.cat([one, zero], -1) @ torch.cat([s["log_one"], s["log_zero"]], -1).mT

    def sample(self, s: Natural, z: Tensor) -> Tensor:
        return torch.bernoulli(torch.sigmoid(s["log_one"] - s["log_zero"])[z])

    def fill(self, x: Tensor, s: Natural, z: Tensor) -> Tensor:
        return torch.where(torch.isnan(x), self.sample(s, z), x)
