"""Gaussian chains in torch operations, one step after the other over a whole batch, on any device.

Blocks are eliminated from the first to the last. Callers hand chains over turned around, for the reason given in
:mod:`ppgen.messages.gaussian._draws`.
"""

import math

import torch
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.messages._compiled import Array

__all__ = ["eliminate", "moments", "refuse_indefinite", "statistics"]


def moments(
    J: Tensor, J_cross: Tensor, h: Tensor, keep: bool, strict: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-normalisers (B,) and, if ``keep``, covariances, cross-covariances and means; not ``strict``: NaN for some."""
    value, factors, gains, offsets = eliminate(J, J_cross, h, strict)
    if not keep:
        return value, h.new_empty(0), h.new_empty(0), h.new_empty(0)
    means, covariances, crosses = [offsets[-1]], [torch.cholesky_inverse(factors[-1])], []
    for factor, gain, offset in zip(factors[-2::-1], gains[::-1], offsets[-2::-1], strict=True):
        crosses.append(gain @ covariances[-1])
        covariances.append(torch.cholesky_inverse(factor) + crosses[-1] @ gain.mT)
        means.append(offset + (gain @ means[-1][..., None])[..., 0])
    cross = torch.stack(crosses[::-1], 1) if crosses else J_cross.new_empty(len(h), *J_cross.shape[1:])
    return value, torch.stack(covariances[::-1], 1), cross, torch.stack(means[::-1], 1)


def statistics(covariance: Tensor, cross: Tensor, mean: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the log-normaliser in J, J_cross and h, times ``weights``."""
    w = weights[:, None, None]
    second = covariance + mean[..., :, None] * mean[..., None, :]
    next_to = cross + mean[:, :-1, :, None] * mean[:, 1:, None, :]
    return -0.5 * w[..., None] * second, -w[..., None] * next_to, w * mean


def eliminate(
    J: Tensor, J_cross: Tensor, h: Tensor, strict: bool = True
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Log-normalisers (B,), and Cholesky factors, gains and offsets of each block given the next."""
    J = 0.5 * (J + J.mT)
    precision, linear = J[:, 0].expand(len(h), -1, -1), h[:, 0]
    value = h.new_full((len(h),), 0.5 * h.shape[1] * h.shape[2] * LOG_2PI)
    factors, gains, offsets = [], [], []
    failed = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
    for t in range(h.shape[1]):
        factor, info = torch.linalg.cholesky_ex(precision)
        failed[:, t] = (info != 0) | ~torch.isfinite(factor).all(-1).all(-1)
        factor = factor.masked_fill(failed[:, t, None, None], math.nan)
        factors.append(factor)
        offsets.append(torch.cholesky_solve(linear[..., None], factor)[..., 0])
        value = value + 0.5 * (linear * offsets[-1]).sum(-1) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if t + 1 < h.shape[1]:
            cross = J_cross[:, t]
            gains.append(-torch.cholesky_solve(cross.expand_as(factor), factor))
            precision = J[:, t + 1] + cross.mT @ gains[-1]
            precision = 0.5 * (precision + precision.mT)
            linear = h[:, t + 1] - (cross.mT @ offsets[-1][..., None])[..., 0]
    if strict:
        first = failed.long().argmax(1)  # the chain is turned around
        refuse_indefinite(torch.where(failed.any(1), h.shape[1] - 1 - first, -1).cpu().numpy())
    return value, factors, gains, offsets


def refuse_indefinite(bad: Array) -> None:
    """Raise for the first sequence with a ``bad`` block (B,), which is -1 for none."""
    if (bad >= 0).any():
        row = int((bad >= 0).argmax())
        raise ValueError(
            f"gaussian_chain: J must be positive definite, but it is not at block {bad[row]} of sequence {row} (of the "
            "flattened batch); add to its diagonal, or look for NaN and for directions that nothing constrains"
        )
