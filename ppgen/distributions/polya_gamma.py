r"""Pólya-gamma numbers, which make a logistic likelihood Gaussian in its weights.

.. math:: \frac{e^{a \psi}}{1 + e^\psi} = \tfrac12 e^{(a - 1/2) \psi}
    \int e^{-\omega \psi^2 / 2}\, \mathrm{PG}(\omega \mid 1, 0)\, d\omega, \qquad
    \omega \mid \psi \sim \mathrm{PG}(1, \psi)

Draws are exact: a proposal from an inverse Gaussian and an exponential on either side of a cut is accepted by an
alternating series. References: Polson, Scott & Windle (2013), "Bayesian inference for logistic models using
Pólya-gamma latent variables", §4; Devroye (2009).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["polya_gamma"]

CUT = 0.64
TERMS = 40  # of the series; the first few decide nearly always, and after these it has converged to the last digit
LARGEST = 1e3  # tilts beyond which a draw is its mean, 1 / (2 |psi|), to a part in thirty


def polya_gamma(psi: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """One draw of PG(1, psi) for each entry, from torch's global generator, in float64."""
    tilt = psi.double().abs().flatten().clamp_max(LARGEST) / 2
    drawn, left = torch.empty_like(tilt), torch.arange(len(tilt), device=tilt.device)
    while len(left):
        value, accepted = _try(tilt[left])
        drawn[left[accepted]] = value[accepted]
        left = left[~accepted]
    return (drawn / 4).reshape(psi.shape)


def _try(z: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """One proposal each, and whether it is accepted."""
    rate = math.pi**2 / 8 + z.square() / 2
    beyond = torch.rand_like(z) < _share_beyond(z, rate)
    value = torch.where(beyond, CUT + torch.empty_like(z).exponential_() / rate, _below(z))
    return value, _accept(value)


def _share_beyond(z: Tensor, rate: Tensor) -> Tensor:
    """Probability that a proposal lies beyond the cut."""
    root = CUT**-0.5
    log_normal = torch.special.log_ndtr
    above = rate.log() + rate * CUT - z + log_normal(root * (z * CUT - 1))
    below = rate.log() + rate * CUT + z + log_normal(-root * (z * CUT + 1))
    return 1 / (1 + 4 / math.pi * (above.exp() + below.exp()))


def _below(z: Tensor) -> Tensor:
    """Inverse Gaussian of mean 1/z and shape one, below the cut."""
    found, left = torch.full_like(z, torch.nan), torch.arange(len(z), device=z.device)
    while len(left):
        own = z[left]
        value = torch.where(own * CUT < 1, _by_tail(own), _by_normal(own))
        kept = value < CUT
        found[left[kept]] = value[kept]
        left = left[~kept]
    return found


def _by_tail(z: Tensor) -> Tensor:
    """A proposal where the mean lies beyond the cut; beyond the cut itself if it is rejected."""
    one, two = torch.empty_like(z).exponential_(), torch.empty_like(z).exponential_()
    value = CUT / (1 + CUT * one).square()
    good = (one.square() <= 2 * two / CUT) & (torch.rand_like(z) < torch.exp(-z.square() * value / 2))
    return torch.where(good, value, 2 * CUT)


def _by_normal(z: Tensor) -> Tensor:
    """A draw where the mean lies below the cut, as Michael, Schucany & Haas (1976)."""
    mean, square = 1 / z.clamp_min(1e-300), torch.randn_like(z).square()
    ratio = mean * square
    value = mean + mean * ratio / 2 - mean / 2 * (4 * ratio + ratio.square()).sqrt()
    return torch.where(torch.rand_like(z) > mean / (mean + value), mean.square() / value, value)


def _accept(x: Tensor) -> Tensor:
    """Whether a uniform share of the first term lies below the alternating series."""
    n = torch.arange(TERMS + 1, device=x.device, dtype=x.dtype)[:, None]
    k = (n + 0.5) * math.pi
    outer = k.log() - k.square() * x / 2
    inner = k.log() - 1.5 * (math.pi / 2 * x).log() - 2 * (n + 0.5).square() / x
    terms = torch.where(x > CUT, outer, inner).exp()
    signs = torch.where(n % 2 == 0, 1.0, -1.0)
    partial = (signs * terms).cumsum(0)
    under = torch.rand_like(x) * terms[0]
    lower, upper = partial[1::2], partial[2::2]
    decided_in, decided_out = (under <= lower).double(), (under > upper).double()
    first_in = torch.where(decided_in.any(0), decided_in.argmax(0), TERMS)
    first_out = torch.where(decided_out.any(0), decided_out.argmax(0), TERMS)
    return first_in <= first_out
