"""Posterior of latent frames that have no closed form given the states."""

from dataclasses import dataclass
from typing import final

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Completion"]


@final
@dataclass(frozen=True)
class Completion:
    """Posterior of the latent frames of a batch of sequences.

    ``moments`` (m, F) are the packed covariances of the windows of the frames at flat index ``rows`` (m,); ``bonus``
    (N,) is what the latent frames add to the bound whatever the states: entropy, evidence of partly observed frames,
    first frames. ``complete`` says that nothing is uncertain: no moments, and no further update is needed.
    """

    mean: Float[Tensor, "N T D"]
    rows: Int[Tensor, " m"]
    moments: Float[Tensor, "m F"]
    bonus: Float[Tensor, " N"]
    lengths: Int[Tensor, " N"]
    complete: bool
