"""Gaussian chains on flat batches: J (B or 1, T, L, L), J_cross (B or 1, T - 1, L, L), h (B, T, L), all float64."""

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.messages import _operator as _op
from ppgen.messages._compiled import Array, has_kernels, run_tasks
from ppgen.messages.gaussian import _kernels as kernels
from ppgen.messages.gaussian import _scan as scan
from ppgen.messages.gaussian import _scan_tangent as scan_tangent
from ppgen.messages.gaussian import _tangent

__all__ = ["SMALL_PIVOT", "MOMENTS", "NAME", "OR_NAN", "Eliminated", "eliminated", "turned"]

NAME = "gaussian_chain"
MOMENTS = "gaussian_chain_moments"
OR_NAN = "_or_nan"  # ends the names of the same operators for which an indefinite row is NaN, not an error for all
SMALL_PIVOT = 1e-6  # a pivot this small beside its diagonal entry has lost six digits


class Eliminated(NamedTuple):
    """Each block given its neighbour towards block ``middle`` (B,), x ~ N(offset + gain x_neighbour, spread).

    ``value`` (B,) is the log-normaliser. With ``smooth``, the rest are covariances, cross-covariances and means.
    """

    value: Tensor
    spread: Tensor
    gain: Tensor
    offset: Tensor
    middle: Array


def moments(
    J: Tensor, J_cross: Tensor, h: Tensor, lengths: Tensor, weights: Tensor | None, keep: bool, strict: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-normalisers (B,) and, if ``keep``, covariances, cross-covariances and means."""
    if has_kernels(h):
        return eliminated(J, J_cross, h, store=keep, smooth=keep, strict=strict)[:4]
    value, *found = scan.moments(*turned(J, J_cross, h), keep, strict)
    return value, *(turned(*found) if keep else found)


def turned(J: Tensor, J_cross: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks, links and vectors of the chain read from its end."""
    return J.flip(1), J_cross.flip(1).mT, h.flip(1)


def compute(
    J: Tensor, J_cross: Tensor, h: Tensor, lengths: Tensor, weights: Tensor | None, keep: bool, strict: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-normalisers (B,) and, if ``keep``, their gradients in J, J_cross and h times ``weights``."""
    value, covariance, cross, mean = moments(J, J_cross, h, lengths, None, keep, strict)
    if not keep:
        return value, covariance, cross, mean
    weights = h.new_ones(len(h)) if weights is None else weights.detach().contiguous()
    if not has_kernels(h):
        return value, *scan.statistics(covariance, cross, mean, weights)
    arrays = (t.numpy() for t in (weights, mean, cross, covariance))
    run_tasks(kernels.statistics, len(h), 4 * covariance.numel(), *arrays)
    return value, covariance, cross, mean


def tangent(
    J: Tensor,
    J_cross: Tensor,
    h: Tensor,
    lengths: Tensor,
    dJ: Tensor,
    dJ_cross: Tensor,
    dh: Tensor,
    strict: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the gradient of the log-normaliser in a direction, B rows of each input."""
    if not has_kernels(h):
        found = scan_tangent.tangent(*turned(J, J_cross, h), *turned(dJ, dJ_cross, dh), strict)
        return turned(*found)
    rows, steps, width = h.shape
    _, spread, gain, offset, middle = eliminated(J, J_cross, h, strict=strict)
    direction = [t.detach().contiguous() for t in (dJ, dJ_cross, dh)]
    out = [torch.empty_like(t) for t in direction]
    incoming = h.new_zeros(2 * rows, width, width), h.new_zeros(2 * rows, width)
    into, o, g, s, ends = ([t.numpy() for t in part] for part in (direction, [offset], [gain], [spread], incoming))
    results, work = [t.numpy() for t in out], 5 * rows * steps * width**3
    run_tasks(_tangent.inwards, 2 * rows, work, middle, *into, *o, *g, *ends, results[0], results[2])
    run_tasks(_tangent.outwards, 2 * rows, work, middle, *into, *o, *g, *s, *ends, *results)
    return out[0], out[1], out[2]


_loose = functools.partial(tangent, strict=False)
_op.register(NAME, compute, tangent)
_op.register(MOMENTS, moments, tangent, scan_tangent.pull_back)
_op.register(NAME + OR_NAN, functools.partial(compute, strict=False), _loose)
_op.register(MOMENTS + OR_NAN, functools.partial(moments, strict=False), _loose, scan_tangent.pull_back)


def eliminated(
    J: Tensor,
    J_cross: Tensor,
    h: Tensor,
    store: bool = True,
    smooth: bool = False,
    strict: bool = True,
) -> Eliminated:
    """Eliminate all blocks towards one in the middle, so that two threads share a chain; with ``smooth``, go back out.

    A chain of which that block lost digits, as of a system that grows while nobody looks, takes the first or the last.
    """
    J, J_cross, h = (t.detach().contiguous() for t in (J, J_cross, h))
    rows, steps, width = h.shape
    kept, work = rows if store else 0, rows * steps * width**3
    spread, gain = h.new_empty(kept, steps, width, width), h.new_empty(kept, steps - 1, width, width)
    offset = h.new_empty(kept, steps, width)
    precision, cross, linear, o, g, s = (t.numpy() for t in (J, J_cross, h, offset, gain, spread))
    ends = np.zeros((2 * rows, width, width)), np.zeros((2 * rows, width))
    value, bad, least = np.zeros(2 * rows), np.full(2 * rows, -1), np.zeros(rows)
    middle, which = np.zeros(rows, dtype=np.int64), np.arange(rows)
    for towards in (steps // 2, 0, steps - 1):
        middle[which] = towards
        run_tasks(
            kernels.eliminate, 2 * len(which), work, which, precision, cross, linear, towards, store, False, o, g, s,
            *ends, value, bad,
        )  # fmt: skip
        kernels.join(0, len(which), which, precision, linear, towards, store, False, *ends, o, s, value, bad, least)
        which = which[~(least[which] > SMALL_PIVOT)]
        if not len(which):
            break
    bad = bad.reshape(rows, 2).max(1)
    if strict:
        scan.refuse_indefinite(bad)
    if smooth:
        run_tasks(kernels.spread_out, 2 * rows, work, middle, o, g, s)
    for array in (value[::2], *((o, g, s) if store else ())) if (bad >= 0).any() else ():
        array[bad >= 0] = np.nan
    if not store:
        spread, gain, offset = h.new_empty(0), h.new_empty(0), h.new_empty(0)
    return Eliminated(torch.from_numpy(value[::2].copy()), spread, gain, offset, middle)
