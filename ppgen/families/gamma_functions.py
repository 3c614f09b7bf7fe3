r"""Differences of the logarithm of the gamma function that keep their digits where its values are huge.

:math:`\log\Gamma(10^{12})` is :math:`2.7 \cdot 10^{13}`, so a difference of two such values is wrong by 0.01. From
Stirling's series :math:`\log\Gamma(x) = (x - \tfrac12) \log x - x + \tfrac12 \log 2\pi + S(x)` the large terms are
subtracted by hand. References: Abramowitz & Stegun (1964), 6.1.41 and 6.3.18.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["digamma_increment", "log_gamma_divergence", "log_gamma_increment"]

LARGE = 16.0  # from here on five terms of Stirling's series are exact in double precision
SMALL_STEP = 0.01


def log_gamma_increment(a: Float[Tensor, "*n"], r: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """``lgamma(a + r) - lgamma(a)`` for ``a > 0`` and ``r >= 0``."""
    big = a.clamp_min(LARGE)
    stirling = (big - 0.5) * torch.log1p(r / big) + r * (big + r).log() - r + _tail(big + r) - _tail(big)
    return torch.where(a < LARGE, torch.lgamma(a + r) - torch.lgamma(a), stirling)


def digamma_increment(a: Float[Tensor, "*n"], r: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """``digamma(a + r) - digamma(a)`` for ``a > 0`` and ``r >= 0``."""
    big = a.clamp_min(LARGE)
    stirling = torch.log1p(r / big) + r / (2 * big * (big + r)) + _tail_slope(big + r) - _tail_slope(big)
    return torch.where(a < LARGE, torch.digamma(a + r) - torch.digamma(a), stirling)


def log_gamma_divergence(
    b: Float[Tensor, "*n"], a: Float[Tensor, "*n"], difference: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """``lgamma(b) - lgamma(a) - digamma(a) (b - a)``, never negative; ``difference`` is ``b - a``."""
    large = (a >= LARGE) & (b >= LARGE)
    plain = torch.lgamma(b) - torch.lgamma(a) - torch.digamma(a) * difference
    big = a.clamp_min(LARGE)
    step = torch.where(large, difference / big, 0.0)
    tails = _tail(b.clamp_min(LARGE)) - _tail(big) - _tail_slope(big) * difference
    return torch.where(large, big * _entropy(step) - 0.5 * (torch.log1p(step) - step) + tails, plain)


def _entropy(t: Tensor) -> Tensor:
    """``(1 + t) log(1 + t) - t``: by its series where the two nearly cancel."""
    series = torch.zeros_like(t)
    for n in range(10, 1, -1):
        series = t * series + (-1) ** n / (n * (n - 1))
    return torch.where(t.abs() < SMALL_STEP, t**2 * series, (1 + t) * torch.log1p(t) - t)


def _tail(x: Tensor) -> Tensor:
    """S(x)."""
    y = x**-2
    return (1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y / 1188)))) / x


def _tail_slope(x: Tensor) -> Tensor:
    """The derivative of S(x)."""
    y = x**-2
    return -y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
