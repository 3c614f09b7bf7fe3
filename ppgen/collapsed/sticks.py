r"""Moves of a discrete state that depend on the state before and on a continuous one, by breaking sticks.

.. math:: P(z_{t+1} = k \mid z_t, h_t) = \sigma(\psi_{tk}) \prod_{l < k} \sigma(-\psi_{tl}), \qquad
    \psi_{tk} = w_k^\top [\mathrm{onehot}(z_t); h_t]

Under expectations each logistic function has the bound of Jaakkola & Jordan (2000) at its best,

.. math:: \mathrm E \log \sigma(\pm\psi) \ge
    \pm \tfrac12 \mathrm E \psi - \log 2 \cosh\big(\tfrac12 \sqrt{\mathrm E \psi^2}\big),

which is equal where :math:`\psi` is known, and whose slope in the statistics of w and of h is a conjugate update. Given
Pólya-gamma numbers :math:`\omega` a factor is Gaussian in both:
:math:`\pm \tfrac12 \psi - \tfrac12 \omega \psi^2` (Linderman et al. 2017).
"""

import math
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad, softplus

from ppgen.distributions.polya_gamma import polya_gamma
from ppgen.families.family import Natural

__all__ = ["Sticks"]

SMALL = 1e-6  # of a square below which a series says the logarithm


@final
class Sticks:
    """Moves given statistics of the weights: ``linear`` w (K - 1, K + L) and ``quadratic`` -ww'/2."""

    def __init__(self, weights: Natural) -> None:
        self.mean, self.square = weights["linear"], -2 * weights["quadratic"]
        self.states = len(self.mean) + 1

    def log_moves(self, m: Natural) -> Float[Tensor, "N T1 K K"]:
        """Log probabilities of each move given statistics of h, or what bounds their expectations from below."""
        mean, square = self._log_odds(m)
        cost = log_two_cosh(square)
        left = pad((-mean / 2 - cost).cumsum(-1), (1, 0))
        return torch.cat([left[..., :-1] + mean / 2 - cost, left[..., -1:]], -1)

    def helped(self, m: Natural, z: Int[Tensor, "N T"], omega: Float[Tensor, "N T1 S"], there: Tensor) -> Tensor:
        """Log density of the moves along a path, of each row, given Pólya-gamma numbers; linear in all statistics."""
        mean, square = (_along(odds, z) for odds in self._log_odds(m))
        broken, reached = self._broken(z)
        score = (broken.to(mean) - 0.5) * mean - omega * square / 2
        return (score * (reached & there[:, 1:, None])).flatten(1).sum(-1)

    def numbers(self, m: Natural, z: Int[Tensor, "N T"]) -> Float[Tensor, "N T1 S"]:
        """Draw the Pólya-gamma numbers of known states."""
        return polya_gamma(_along(self._log_odds(m)[0], z))

    def log_from(self, z: Int[Tensor, " N"], h: Float[Tensor, "N L"]) -> Float[Tensor, "N K"]:
        """Log probabilities of the state that follows known ones."""
        odds = self.mean[:, z].mT + h @ self.mean[:, self.states :].mT
        left = -pad(softplus(odds).cumsum(-1), (1, 0))
        return torch.cat([left[..., :-1] - softplus(-odds), left[..., -1:]], -1)

    def _broken(self, z: Int[Tensor, "N T"]) -> tuple[Bool[Tensor, "N T1 S"], Bool[Tensor, "N T1 S"]]:
        """Whether each stick is the one that a move takes, and whether the move comes as far."""
        stick, target = torch.arange(self.states - 1, device=z.device), z[:, 1:, None]
        return target == stick, target >= stick

    def _log_odds(self, m: Natural) -> tuple[Float[Tensor, "N T1 K S"], Float[Tensor, "N T1 K S"]]:
        """Means of the log odds and of their squares, from each state."""
        K, h, outer = self.states, m["mean"][:, :-1], m["outer"][:, :-1]
        own, pull = self.mean[:, :K].mT, h @ self.mean[:, K:].mT
        own_square = self.square[:, :K, :K].diagonal(dim1=-2, dim2=-1).mT
        both = 2 * (h @ self.square[:, :K, K:].flatten(0, 1).mT).unflatten(-1, (K - 1, K)).mT
        pull_square = outer.flatten(-2) @ self.square[:, K:, K:].flatten(-2).mT
        return own + pull[..., None, :], own_square + both + pull_square[..., None, :]


def log_two_cosh(square: Tensor) -> Tensor:
    """log(2 cosh(s / 2)) of the square s², with a slope at zero."""
    small = square < SMALL
    root = torch.where(small, 1.0, square).sqrt()
    return torch.where(small, math.log(2) + square / 8, root / 2 + softplus(-root))


def _along(odds: Float[Tensor, "N T1 K S"], z: Int[Tensor, "N T"]) -> Float[Tensor, "N T1 S"]:
    """Those from the states of a path."""
    origin = z[:, :-1, None, None].expand(*odds.shape[:2], 1, odds.shape[-1])
    return odds.gather(2, origin)[:, :, 0]
