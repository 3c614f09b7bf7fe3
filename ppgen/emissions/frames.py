"""What data say about the frames of sequences in which an observation follows from others, whatever the parameters."""

from dataclasses import dataclass
from typing import NamedTuple, final

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.emissions.gap import GapBlock
from ppgen.families.family import Natural

__all__ = ["Frames", "RowEvidence"]


class RowEvidence(NamedTuple):
    """What rows of data say about the latent: exact values, and Gaussian potentials for some rows."""

    value: Float[Tensor, "n D"]
    known: Bool[Tensor, "n D"]
    partial: Int[Tensor, " p"]  # rows with a Gaussian potential exp(-½ h' precision h + information' h)
    precision: Float[Tensor, "p D D"]
    information: Float[Tensor, "p D"]
    constant: Float[Tensor, " n"]  # log-density that does not depend on h


@final
@dataclass(frozen=True)
class Frames:
    """The frames of a batch of sequences.

    ``value`` is zero where an entry is unknown, and ``constant`` the log-density that depends on neither the unknown
    entries nor the states. ``latent`` is the block of the unknown entries, None where there are none, and ``moments``
    its expected statistics, once they are found.
    """

    value: Float[Tensor, "N T D"]
    lengths: Int[Tensor, " N"]
    constant: Float[Tensor, " N"]
    latent: GapBlock | None
    moments: Natural | None = None
