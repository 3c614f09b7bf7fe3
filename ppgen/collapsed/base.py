"""What a distribution whose latents are summed out offers beside its density."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Collapsed", "Latents"]


@runtime_checkable
class Latents(Protocol):
    """Posterior of what was summed out: name -> tensor, with the axes of each name in ``dims``."""

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        """Name -> its axes."""

    @property
    def marginals(self) -> dict[str, Tensor]:
        """Probabilities or means."""

    @property
    def mode(self) -> dict[str, Tensor]:
        """Most probable values."""

    def sample(self) -> dict[str, Tensor]:
        """One joint draw."""


@runtime_checkable
class Collapsed(Protocol):
    """A distribution over batches of observations, its latents summed out.

    Of a time series it may also have ``log_prob_steps(x)``: the log-density of each step given those before it, (N, T),
    zero past the end of a sequence, which sum to ``log_prob(x)``.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """Log evidence of each row of ``x``, NaN integrated out."""

    def latents(self, x: Tensor) -> Latents:
        """Posterior of what was summed out."""

    def impute(self, x: Tensor) -> Tensor:
        """``x`` with NaN replaced by one draw given the rest.

        A distribution of time series may also have ``forecast(x, horizon)``, which gives one draw of the ``horizon``
        steps after each row's last observation, (N, horizon, ...).
        """

    def sample(self) -> Tensor:
        """Replicated data."""
