"""States that emit alike: each of S states of a chain emits as one of K owners does."""

from collections.abc import Mapping
from typing import Any, final

from jaxtyping import Float, Int
from torch import Tensor

from ppgen.emissions.emission import SEQUENCES, Emission
from ppgen.emissions.frames import Frames
from ppgen.emissions.gap import GapBlock
from ppgen.families.family import Natural
from ppgen.messages.switching.filter import Switching

__all__ = ["Tied"]


@final
class Tied(Emission):
    """The emission of ``owner[s]`` for each state s; statistics keep the batch shape (K,) of the owners.

    Parameters
    ----------
    emission : that of the owners.
    owner : (S,) whole numbers below K.
    """

    def __init__(self, emission: Emission, owner: Int[Tensor, " S"]) -> None:
        self.emission, self.owner = emission, owner
        self.features, self.family = emission.features, emission.family

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return self.emission.dims

    @property
    def config(self) -> dict[str, Any]:
        return {"emission": self.emission, "owner": self.owner}

    def prior(self, states: int, **scales: Tensor) -> Natural:
        return self.emission.prior(states, **scales)

    @property
    def closed(self) -> bool:
        return self.emission.closed

    @property
    def apart(self) -> bool:
        return self.emission.apart

    def potential(self, x: Float[Tensor, "*B D"], s: Natural, frames: Frames | None = None) -> Float[Tensor, "*B S"]:
        return self.emission.potential(x, s, frames)[..., self.owner]

    def sample(self, s: Natural, z: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        return self.emission.sample(s, self.owner[z])

    def fill(self, x: Float[Tensor, "*B D"], s: Natural, z: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        return self.emission.fill(x, s, self.owner[z])

    def frames(self, x: Tensor) -> Frames | None:
        return self.emission.frames(x)

    def given(self, latent: GapBlock, s: Natural, weights: Tensor | None = None) -> Natural:
        if weights is not None:
            owners = len(next(iter(s.values())))
            weights = weights.new_zeros(*weights.shape[:-1], owners).index_add(-1, self.owner, weights)
        return self.emission.given(latent, s, weights)

    def switching(self, x: Tensor, s: Natural) -> tuple[Switching, Tensor] | None:
        return self.emission.switching(x, {name: value[self.owner] for name, value in s.items()})

    def log_frames(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        return self.emission.log_frames(x)

    def extend(self, past: Tensor, s: Natural, z: Int[Tensor, "N H"], lengths: Int[Tensor, " N"]) -> Tensor:
        return self.emission.extend(past, s, self.owner[z], lengths)

    def check(self, x: Tensor, axes: tuple[str, ...] = SEQUENCES) -> None:
        self.emission.check(x, axes)
