r"""Explicit durations of the states of a semi-Markov chain, as an ordinary chain on (state, phase).

A state is entered in one of R phases, moves among its phases without leaving, and leaves from any of them. Log-weights
of all moves are linear in the statistics of the durations' parameters, so these keep their conjugate priors, and every
answer about a hidden Markov model holds. The last duration of a sequence is cut off by its end and counts as at least
what was seen of it.

References: Yu (2010), "Hidden semi-Markov models"; Johnson & Willsky (2013), §4, for negative binomial durations as
chains of phases.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ppgen.errors import DataError
from ppgen.families.family import Factor, Natural

__all__ = ["Durations", "Statistics", "above", "whole"]

Statistics = Mapping[str, Natural]
"""Statistics of every factor of a model, by the name of the factor."""


class Durations(ABC):
    """Distribution of how many steps a state lasts, at least one, for each of K states."""

    phases: int

    @property
    @abstractmethod
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Site -> its axes."""

    @property
    def coords(self) -> Mapping[str, range]:
        """Axis -> its labels."""
        return {}

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Arguments that rebuild these durations."""

    @abstractmethod
    def prior(self, states: int) -> dict[str, Factor]:
        """Factor name -> prior of its parameters, batch shape (K,)."""

    @abstractmethod
    def entry(self, s: Statistics) -> Float[Tensor, "K R"]:
        """Log-weight of entering each state in each of its phases."""

    @abstractmethod
    def within(self, s: Statistics) -> Float[Tensor, "K R R"]:
        """Log-weight of another step in the same state, from phase to phase."""

    @abstractmethod
    def leaving(self, s: Statistics) -> Float[Tensor, "K R"]:
        """Log-weight of leaving each state from each of its phases."""

    @abstractmethod
    def mean(self, theta: Mapping[str, Tensor]) -> Float[Tensor, "*S K"]:
        """Expected duration of each state, in steps, for drawn parameters."""

    @abstractmethod
    def tail(self, theta: Mapping[str, Tensor], longest: int) -> Float[Tensor, "*S K"]:
        """Probability that a state lasts more than ``longest`` steps, for drawn parameters."""


def whole(who: str, what: str, value: int, least: int) -> int:
    """``value``, or an error unless it is a whole number of at least ``least``."""
    if not isinstance(value, int) or value < least:
        raise DataError(f"{who}: {what} must be a whole number of at least {least}, got {value!r}")
    return value


def above(who: str, what: str, value: float, bound: float) -> float:
    """``value``, or an error unless it is finite and more than ``bound``."""
    if not bound < value < float("inf"):
        raise DataError(f"{who}: {what} must be more than {bound:g}, got {value!r}")
    return float(value)
