"""Gaussian chains on flat batches: J (B or 1, T, L, L), J_cross (B or 1, T - 1, L, L), h (B, T, L), all float64."""

import functools

import numpy as np
import torch
from torch import Tensor

from ppgen.messages import _operator as _op
from ppgen.messages._compiled import has_kernels, run_tasks
from ppgen.messages.gaussian import _draws as draws
from ppgen.messages.gaussian import _kernels as kernels
from ppgen.messages.gaussian import _scan as scan
from ppgen.messages.gaussian import _scan_tangent as scan_tangent
from ppgen.messages.gaussian import _tangent

__all__ = ["MOMENTS", "NAME", "OR_NAN", "eliminated", "sample"]

NAME = "gaussian_chain"
MOMENTS = "gaussian_chain_moments"
OR_NAN = "_or_nan"  # ends the names of the same operators for which an indefinite row is NaN, not an error for all


def moments(
    J: Tensor, J_cross: Tensor, h: Tensor, lengths: Tensor, weights: Tensor | None, keep: bool, strict: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-normalisers (B,) and, if ``keep``, covariances, cross-covariances and means."""
    if not has_kernels(h):
        return scan.moments(J, J_cross, h, keep, strict)
    return eliminated(J, J_cross, h, h.shape[1] // 2, keep, keep, strict)


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
        return scan_tangent.tangent(J, J_cross, h, dJ, dJ_cross, dh, strict)
    rows, steps, width = h.shape
    middle = steps // 2
    _, spread, gain, offset = eliminated(J, J_cross, h, middle, strict=strict)
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


def sample(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> Tensor:
    """Exact draws (n, B, T, L) from standard normal ``noise`` of that shape, which they overwrite on the CPU."""
    if not has_kernels(h):
        return scan.sample(J, J_cross, h, noise)
    _, root, gain, offset = eliminated(J, J_cross, h, h.shape[1] - 1, roots=True)
    arrays = (t.numpy() for t in (offset, gain, root, noise, noise))
    run_tasks(draws.draw, len(h), noise.numel() * h.shape[2], *arrays)
    return noise


def eliminated(
    J: Tensor,
    J_cross: Tensor,
    h: Tensor,
    middle: int,
    store: bool = True,
    smooth: bool = False,
    strict: bool = True,
    roots: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eliminate towards block ``middle``; with ``smooth``, go back out. (value, spread, gain, offset), or moments.

    With ``roots``, upper triangular roots of the spreads are in their place.
    """
    rows, steps, width = h.shape
    J, J_cross, h = (t.detach().contiguous() for t in (J, J_cross, h))
    kept = rows if store else 0
    offset, gain = h.new_empty(kept, steps, width), h.new_empty(kept, steps - 1, width, width)
    spread = h.new_empty(kept, steps, width, width)
    incoming, incoming_h = np.zeros((2 * rows, width, width)), np.zeros((2 * rows, width))
    value, bad = np.zeros(2 * rows), np.full(2 * rows, -1)
    precision, cross, linear, o, g, s = (t.numpy() for t in (J, J_cross, h, offset, gain, spread))
    work = rows * steps * width**3
    run_tasks(
        kernels.eliminate,
        2 * rows,
        work,
        precision,
        cross,
        linear,
        middle,
        store,
        roots,
        o,
        g,
        s,
        incoming,
        incoming_h,
        value,
        bad,
    )
    kernels.join(precision, linear, middle, store, roots, incoming, incoming_h, o, s, value, bad)
    if strict:
        _refuse_indefinite(bad)
    if smooth:
        run_tasks(kernels.spread_out, 2 * rows, work, middle, o, g, s)
    lost = (bad.reshape(rows, 2) >= 0).any(1)
    if lost.any():
        for array in (value[::2], *((o, g, s) if store else ())):
            array[lost] = np.nan
    if not store:
        return torch.from_numpy(value[::2].copy()), h.new_empty(0), h.new_empty(0), h.new_empty(0)
    return torch.from_numpy(value[::2].copy()), spread, gain, offset


def _refuse_indefinite(bad: np.ndarray) -> None:
    if (bad >= 0).any():
        task = int((bad >= 0).argmax())
        raise ValueError(
            f"gaussian_chain: J must be positive definite, is not at block {bad[task]} of sequence {task // 2} (of the "
            "flattened batch); add to its diagonal, or look for NaN and for directions that nothing constrains"
        )
