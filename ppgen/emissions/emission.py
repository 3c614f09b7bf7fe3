"""The contract of an emission, as mixtures, hidden Markov models and any other discrete-latent model use it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.emissions.frames import Frames
from ppgen.emissions.gap import GapBlock
from ppgen.errors import DataError
from ppgen.families.family import Family, Natural
from ppgen.messages.switching.filter import Switching

__all__ = ["SEQUENCES", "Emission", "distinct_patterns", "holds_somewhere", "pattern_order"]

LARGEST_VALUE = 1e100  # squares and their sums stay finite
SEQUENCES = ("sequence", "time")  # axes of data before the features; a model of rows has ("row",)
LETTERS, WORDS = {"time": "T"}, {"time": "step"}  # what errors call an axis; others are N and their own name


class Emission(ABC):
    """Distribution of an observation given its state, linear in the natural statistics ``s`` of its parameters.

    ``s`` has batch shape (K,): ``t(theta)`` for drawn parameters, ``E_q[t(theta)]`` in variational Bayes. NaN in ``x``
    is integrated out. Where observations depend on nothing but their own state (`closed`), the axes ``*B`` before the
    features may be any, as (N,) of rows or (N, T) of sequences; else they are (N, T).
    """

    features: int
    family: Family
    prior_scales: ClassVar[tuple[str, ...]] = ()
    """Positive arguments of the prior that a model may learn."""

    @property
    @abstractmethod
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Site -> its axes behind ``state``."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this emission."""

    @abstractmethod
    def prior(self, states: int, **scales: Tensor) -> Natural:
        """Natural parameters of the prior, batch shape (K,); ``scales`` replaces arguments in ``prior_scales``."""

    @abstractmethod
    def potential(self, x: Float[Tensor, "*B D"], s: Natural, frames: Frames | None = None) -> Float[Tensor, "*B K"]:
        """Log-density of each observation under each state, NaN integrated out.

        Of latent frames it is the expectation under the moments of ``frames``, or given equal weights of the states
        where these have none.
        """

    @abstractmethod
    def sample(self, s: Natural, z: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        """Draw observations for given states."""

    @abstractmethod
    def fill(self, x: Float[Tensor, "*B D"], s: Natural, z: Int[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        """``x`` with its NaN entries drawn given the states and the observed entries; the rest bit for bit."""

    @property
    def prior_units(self) -> tuple[float, float] | None:
        """The prior's guess of the variance within a state, and how many observations its mean of zero is worth; None
        where units do not matter.
        """
        return None

    @property
    def closed(self) -> bool:
        """True if observations depend on nothing but their own state, so that all is summed out in closed form."""
        return True

    @property
    def apart(self) -> bool:
        """True if features do not depend on each other given the state; an emission that does not say so is False."""
        return False

    def frames(self, x: Tensor) -> Frames | None:
        """The data as frames, some of whose entries may be latent; None where observations need no others."""
        return None

    def given(self, latent: GapBlock, s: Natural, weights: Tensor | None = None) -> Natural:
        """Natural parameters of what is latent in `frames`, given ``weights`` (N, T, K) of the states or equal ones."""
        raise NotImplementedError(f"{type(self).__name__} has no latent frames")

    def switching(self, x: Tensor, s: Natural) -> tuple[Switching, Tensor] | None:
        """Latent frames to be summed out path by path, and log-evidence (N,) that does not depend on them or the
        states; None where nothing is uncertain once the states are known.
        """
        return None

    def log_frames(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        """Log-density that each frame adds beside :meth:`potential`, where no latent frame is left: of first frames."""
        return x.new_zeros(x.shape[:-1])

    def extend(self, past: Tensor, s: Natural, z: Int[Tensor, "N H"], lengths: Int[Tensor, " N"]) -> Tensor:
        """Draw H observations after ``past``, for given states; it has NaN before ``lengths`` only if ``closed``."""
        return self.sample(s, z)

    def embed(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B E"]:
        """Features without NaN that tell states apart at a glance: only for starting points."""
        return torch.nan_to_num(x)

    def check(self, x: Tensor, axes: tuple[str, ...] = SEQUENCES) -> None:
        """Refuse data that this emission cannot take; ``axes`` are those of ``x`` before its features."""
        name = type(self).__name__
        if not self.closed and axes != SEQUENCES:
            raise DataError(
                f"{name}: an observation must follow others in time, x of shape (N, T, D={self.features}), got axes "
                f"{axes}; use an emission that needs no time, such as Gaussian"
            )
        if x.ndim != len(axes) + 1 or x.shape[-1] != self.features:
            letters = ", ".join(LETTERS.get(axis, "N") for axis in axes)
            each = "one row per time step, " if "time" in axes else ""
            raise DataError(
                f"{name}: x must have shape ({letters}, D={self.features}), got {tuple(x.shape)}; "
                f"{each}NaN for what was not observed"
            )
        if not torch.is_floating_point(x):
            raise DataError(f"{name}: x must be floating point, got {x.dtype}; convert it to float64")
        if torch.isinf(x).any():
            where = tuple(torch.isinf(x).nonzero()[0].tolist())
            raise DataError(
                f"{name}: x must be finite or NaN, got {x[where].item()} at {where}; use NaN for what was not observed"
            )

        if (x.abs() > LARGEST_VALUE).any():
            where = tuple((x.abs() > LARGEST_VALUE).nonzero()[0].tolist())
            raise DataError(
                f"{name}: x must lie within {LARGEST_VALUE:.0e} of zero, got {x[where].item()} at {where}; "
                "scale the features to about unit variance"
            )

    def _refuse_values(self, x: Tensor, bad: Tensor, wanted: str, axes: tuple[str, ...]) -> None:
        """Raise for the first entry where ``bad`` holds."""
        if bad.any():
            where = tuple(bad.nonzero()[0].tolist())
            named = zip((*axes, "feature"), where, strict=True)
            place = ", ".join(f"{WORDS.get(axis, axis)} {index}" for axis, index in named)
            raise DataError(
                f'{type(self).__name__}: x holds {wanted}, got {x[where].item()} at {place}; use NaN for "not observed"'
            )


def distinct_patterns(missing: Bool[Tensor, "n D"]) -> tuple[Bool[Tensor, "P D"], Int[Tensor, " n"]]:
    """The distinct rows of a boolean array, and which of them each row is."""
    if missing.shape[1] > 62:
        return torch.unique(missing, dim=0, return_inverse=True)
    bits = 2 ** torch.arange(missing.shape[1], device=missing.device)
    codes, inverse = torch.unique((missing * bits).sum(-1), return_inverse=True)
    return (codes[:, None] & bits) > 0, inverse


def pattern_order(missing: Bool[np.ndarray, "n D"], *first: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """An order of rows in which those that miss the same are neighbours, within groups of equal ``first`` if given."""
    return np.lexsort((*np.packbits(missing, axis=1).T, *first))


def holds_somewhere(flags: Bool[Tensor, "..."]) -> bool | None:
    """Tell whether any is true; None where values are not known: in a traced graph, and under a map."""
    try:
        return bool(flags.any())
    except RuntimeError:  # torch's, for values that depend on the inputs of a graph or on the mapped axis
        return None
