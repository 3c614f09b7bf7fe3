r"""Independent categorical emissions.

.. math:: p_{kd} \sim \mathrm{Dir}(a), \qquad x_{td} \sim \mathrm{Cat}(p_{z_t d})

Entries are whole numbers 0, ..., V-1, or NaN; a missing entry's factor is one.
"""

from typing import Any, final

import torch
from torch import Tensor

from ppgen.emissions.emission import SEQUENCES, Emission
from ppgen.emissions.frames import Frames
from ppgen.errors import DataError
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Natural

__all__ = ["Categorical"]


@final
class Categorical(Emission):
    """Symbols from a vocabulary of V. ``concentration`` is the prior count of each symbol."""

    def __init__(self, vocabulary: int, *, features: int = 1, concentration: float = 1.0) -> None:
        if vocabulary < 1 or features < 1 or not concentration > 0:
            raise DataError(
                "Categorical: vocabulary, features and concentration must be positive, "
                f"got {vocabulary}, {features}, {concentration}"
            )
        self.vocabulary, self.features, self.concentration = vocabulary, features, concentration
        self.family = Dirichlet("probability")

    @property
    def config(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary, "features": self.features, "concentration": self.concentration}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return {"probability": ("feature", "symbol")}

    def check(self, x: Tensor, axes: tuple[str, ...] = SEQUENCES) -> None:
        super().check(x, axes)
        bad = ~torch.isnan(x) & ((x < 0) | (x >= self.vocabulary) | (x != x.round()))
        self._refuse_values(x, bad, f"symbols 0 to {self.vocabulary - 1}", axes)

    @property
    def apart(self) -> bool:
        return True

    def prior(self, states: int, **scales: Tensor) -> Natural:
        shape = (states, self.features, self.vocabulary)
        return self.family.natural(concentration=torch.full(shape, self.concentration, dtype=torch.float64))

    def potential(self, x: Tensor, s: Natural, frames: Frames | None = None) -> Tensor:
        table = s["log_probability"].movedim(-3, -1)  # (D, V, K)
        scores = table[torch.arange(self.features, device=x.device), torch.nan_to_num(x).long()]  # (*B, D, K)
        return torch.where(torch.isnan(x)[..., None], 0.0, scores).sum(-2)

    def sample(self, s: Natural, z: Tensor) -> Tensor:
        probability = s["log_probability"].exp()[z]
        symbols = torch.multinomial(probability.reshape(-1, self.vocabulary), 1)
        return symbols.reshape(*z.shape, self.features).to(probability)

    def fill(self, x: Tensor, s: Natural, z: Tensor) -> Tensor:
        return torch.where(torch.isnan(x), self.sample(s, z), x)

    def embed(self, x: Tensor) -> Tensor:
        symbols = torch.nan_to_num(x).long()
        one_hot = torch.nn.functional.one_hot(symbols, self.vocabulary).to(x)
        return (one_hot * (~torch.isnan(x))[..., None].to(x)).flatten(-2)
