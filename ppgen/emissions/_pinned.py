"""Integrals over hidden features in plain torch: seen features are pinned, so that all rows have matrices of one size.

For devices without compiled kernels, and for second derivatives. Nothing looks at a value. See
:mod:`ppgen.emissions.hidden`.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.constants import LOG_2PI

__all__ = ["draw", "moments", "normalizer", "value"]

NUMBERS_AT_ONCE = 1 << 24  # entries of pinned matrices that are in memory together


def normalizer(x: Float[Tensor, "n D"], form: Float[Tensor, "K W W"]) -> Float[Tensor, "n K"]:
    """`value` in parts of bounded memory."""
    return torch.cat([value(part, form) for part, _ in _parts(x, x, len(form))])


def value(x: Float[Tensor, "*S n D"], form: Float[Tensor, "*S K W W"]) -> Float[Tensor, "*S n K"]:
    """Log of the integral over the NaN of each row beside the row with zeros there; zero if it hides nothing or all."""
    root, information, _ = _factorise(x, form.unsqueeze(-4))
    y = torch.linalg.solve_triangular(root, information[..., None], upper=False)[..., 0]
    hidden = torch.isnan(x).sum(-1, keepdim=True).to(form)  # a whole number times a float would be single precision
    each = y.square().sum(-1) / 2 - root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + hidden * (LOG_2PI / 2)
    return torch.where((hidden > 0) & (hidden < x.shape[-1]), each, 0.0)


def moments(
    x: Float[Tensor, "n D"], form: Float[Tensor, "K W W"], weights: Float[Tensor, "n K"]
) -> tuple[Float[Tensor, "K W W"], Float[Tensor, "n D"]]:
    """Gradient of ``weights`` times `value`, in parts of bounded memory."""
    total, slopes = torch.zeros_like(form), []
    for part, weight in _parts(x, weights, len(form)):
        hides = torch.isnan(part)
        weight = torch.where(hides.any(-1, keepdim=True) & ~hides.all(-1, keepdim=True), weight, 0.0)
        root, information, w = _factorise(part, form[None])
        both = hides[:, None, :, None] & hides[:, None, None, :]
        covariance = torch.where(both, torch.cholesky_inverse(root), 0.0)
        mean = (covariance @ information[..., None])[..., 0]
        spread = torch.einsum("nk,nkij->kij", weight, covariance)
        mean = torch.nn.functional.pad(mean, (0, 1))
        cross = torch.einsum("nk,nki,nj->kij", weight, mean, w)
        square = torch.einsum("nk,nki,nkj->kij", weight, mean, mean)
        total += torch.nn.functional.pad(spread, (0, 1, 0, 1)) + square + cross + cross.mT
        slope = 2 * torch.einsum("nk,nki,kij->nj", weight, mean, form)[:, :-1]
        slopes.append(torch.where(hides, 0.0, slope))
    return total, torch.cat(slopes)


def draw(
    x: Float[Tensor, "n D"], form: Float[Tensor, "K W W"], z: Int[Tensor, " n"], noise: Float[Tensor, "n D"]
) -> Float[Tensor, "n D"]:
    """``x`` with its NaN drawn given the rest of each row and its state, from standard normal noise."""
    filled = []
    for (part, e), (states, _) in zip(_parts(x, noise, 1), _parts(z, z, 1, x.shape[-1]), strict=True):
        root, information, _ = _factorise(part, form[states][:, None])
        y = torch.linalg.solve_triangular(root, information[..., None], upper=False) + e[:, None, :, None]
        drawn = torch.linalg.solve_triangular(root.mT, y, upper=True)[:, 0, :, 0]
        filled.append(torch.where(torch.isnan(part), drawn.to(x), part))
    return torch.cat(filled)


def _factorise(x: Tensor, form: Float[Tensor, "*S #n K W W"]) -> tuple[Tensor, Tensor, Tensor]:
    """Factor (n, K, D, D) of the hidden precision with seen features pinned; information (n, K, D); (x, 1) (n, W)."""
    hides, D = torch.isnan(x), x.shape[-1]
    w = torch.nn.functional.pad(torch.where(hides, 0.0, x), (0, 1), value=1.0).to(form)
    information = 2 * (form[..., :D, :] * w[..., None, None, :]).sum(-1)
    both = hides[..., None, :, None] & hides[..., None, None, :]
    pinned = torch.where(both, -2 * form[..., :D, :D], torch.eye(D, dtype=form.dtype, device=form.device))
    root, info = torch.linalg.cholesky_ex(pinned)
    root = root.masked_fill((info != 0)[..., None, None], math.nan)
    return root, torch.where(hides[..., None, :], information, 0.0), w


def _parts(x: Tensor, other: Tensor, states: int, width: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, NUMBERS_AT_ONCE // (states * (x.shape[-1] if width is None else width) ** 2))
    return zip(x.split(rows), other.split(rows), strict=True)
