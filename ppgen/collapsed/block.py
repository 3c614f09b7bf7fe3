"""Latents of each row that are held in mean field: exponential families with a row first."""

from collections.abc import Mapping
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ppgen.families.family import Natural
from ppgen.messages.discrete.chain import DiscreteChain, discrete_chain
from ppgen.messages.gaussian.chain import GaussianChain, gaussian_chain

__all__ = ["Block", "DiscreteBlock", "GaussianBlock"]


@runtime_checkable
class Block(Protocol):
    """A family of the latents of N rows; natural parameters and statistics have the row first."""

    def start(self, rows: int) -> Natural:
        """Natural parameters to start from."""

    def solved(self, eta: Natural) -> tuple[Natural, Float[Tensor, " N"]]:
        """Expected statistics and the log-normaliser of each row, without a gradient."""

    def statistic(self, value: Tensor) -> Natural:
        """Statistics of values."""

    def sample(self, eta: Natural) -> Tensor:
        """One draw of every row."""

    def inner(self, a: Natural, b: Natural) -> Float[Tensor, " N"]:
        """Inner product of natural parameters and statistics."""


@final
class GaussianBlock:
    r"""Gaussian vectors :math:`h_1, \dots, h_T` of ``latent`` numbers in each row, coupled from step to step.

    Statistics are ``outer`` :math:`h_t h_t'` (N, T, L, L), ``cross`` :math:`h_t h_{t+1}'` (N, T-1, L, L) and ``mean``
    :math:`h_t` (N, T, L), or their expectations. Blocks of one step are factor models.
    """

    def __init__(self, steps: int, latent: int, like: Tensor) -> None:
        self.steps, self.latent, self.like = steps, latent, like

    def chain(self, eta: Natural) -> GaussianChain:
        """The chain with these natural parameters; where it is indefinite, NaN is what a sampler wants."""
        return gaussian_chain(-(eta["outer"] + eta["outer"].mT), -eta["cross"], eta["mean"], strict=False)

    def start(self, rows: int) -> Natural:
        """Independent standard normals."""
        T, L = self.steps, self.latent
        eye = torch.eye(L, dtype=torch.float64, device=self.like.device)
        return {
            "outer": -0.5 * eye.expand(rows, T, L, L).clone(),
            "cross": eye.new_zeros(rows, T - 1, L, L),
            "mean": eye.new_zeros(rows, T, L),
        }

    def solved(self, eta: Natural) -> tuple[Natural, Float[Tensor, " N"]]:
        """Expected statistics, and the log of the integral over all steps, by one pass of message passing."""
        with torch.no_grad():
            chain = self.chain(eta)
            mean = chain.mean
            expected = {
                "outer": chain.covariance + mean[..., :, None] * mean[..., None, :],
                "cross": chain.cross_covariance + mean[:, :-1, :, None] * mean[:, 1:, None, :],
                "mean": mean,
            }
            return expected, chain.log_normalizer

    def statistic(self, value: Float[Tensor, "N T L"]) -> Natural:
        """Statistics of drawn vectors."""
        outer = value[..., :, None] * value[..., None, :]
        return {"outer": outer, "cross": value[:, :-1, :, None] * value[:, 1:, None, :], "mean": value}

    def sample(self, eta: Natural) -> Float[Tensor, "N T L"]:
        """One draw of every row."""
        return self.chain(eta).rsample(1)[0]

    def inner(self, a: Natural, b: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Inner product over all entries of each row."""
        return sum((a[name] * b[name]).flatten(1).sum(-1) for name in ("outer", "cross", "mean"))  # type: ignore[return-value]


@final
class DiscreteBlock:
    r"""Paths of ``states`` states through the steps of each row, one chain in itself.

    Statistics are ``initial`` (N, K) and ``transition`` (N, K, K), counts of the first state and of moves, and
    ``state`` (N, T, K), which state each step is in, or their expectations; zero at or past the ``lengths``.
    """

    def __init__(self, steps: int, states: int, lengths: Int[Tensor, " N"]) -> None:
        self.steps, self.states, self.lengths = steps, states, lengths

    def chain(self, eta: Natural) -> DiscreteChain:
        """The chain with these natural parameters."""
        moves = eta["transition"][:, None].expand(-1, max(self.steps - 1, 1), -1, -1)
        return discrete_chain(eta["initial"], moves[:, : self.steps - 1], eta["state"], self.lengths)

    def start(self, rows: int) -> Natural:
        """All paths alike."""
        like = torch.zeros(rows, self.steps, self.states, dtype=torch.float64, device=self.lengths.device)
        return {"initial": like[:, 0], "transition": like.new_zeros(rows, self.states, self.states), "state": like}

    def solved(self, eta: Natural) -> tuple[Natural, Float[Tensor, " N"]]:
        """Expected counts, and the log of the sum over all paths, by message passing."""
        with torch.no_grad():
            chain = self.chain(eta)
            state = chain.marginals
            expected = {"initial": state[:, 0], "transition": chain.pairwise.sum(1), "state": state}
            return expected, torch.where(self.lengths > 0, chain.log_normalizer, 0.0)

    def statistic(self, value: Int[Tensor, "N T"]) -> Natural:
        """Counts of given paths."""
        there = torch.arange(self.steps, device=value.device) < self.lengths[:, None]
        state = one_hot(value.clamp_min(0), self.states).double() * there[..., None]
        return {"initial": state[:, 0], "transition": state[:, :-1].mT @ state[:, 1:], "state": state}

    def sample(self, eta: Natural) -> Int[Tensor, "N T"]:
        """One path of every row."""
        return self.chain(eta).sample(1)[0].clamp_min(0)

    def inner(self, a: Natural, b: Mapping[str, Tensor]) -> Float[Tensor, " N"]:
        """Inner product over all entries of each row."""
        return sum((a[name] * b[name]).flatten(1).sum(-1) for name in ("initial", "transition", "state"))  # type: ignore[return-value]
