r"""Integrals over the hidden features of Gaussian rows, each row hiding its own.

For a quadratic form over :math:`w = (x, 1)` and a row that hides the features H,

.. math:: \log \int e^{w^\top N w} dx_H = w_0^\top N w_0 + \tfrac12 b^\top P^{-1} b - \tfrac12 \log |P|
    + \tfrac{|H|}2 \log 2\pi, \qquad P = -2 N_{HH}, \quad b = 2 N_{H \cdot} w_0,

with zeros for what is hidden in :math:`w_0`. The last three terms are an operator, with a gradient written by hand:
conditional means and covariances, which are what EM for Gaussians with missing entries sums (Little & Rubin 2019,
§11.2). Operators find what is hidden when they run, by the NaN, so a graph that holds them is right for any data. Rows
that hide everything count as complete; callers that use such rows know them.

On the CPU, compiled kernels factorise what a row hides and no more. Elsewhere, seen features are pinned (rows and
columns of the identity) and factorised in batches.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.emissions import _hidden_kernels as kernels
from ppgen.emissions import _pinned as pinned
from ppgen.emissions.emission import pattern_order
from ppgen.messages._compiled import run_tasks

__all__ = ["hidden_draw", "hidden_normalizer"]

TASKS, LEAST_ROWS = 16, 1024  # shares of the rows whose gradients are summed apart, and what is too few for one

Context = Any  # what torch hands to the methods of a function; it takes any attribute


def hidden_normalizer(x: Float[Tensor, "n D"], form: Float[Tensor, "K W W"]) -> Float[Tensor, "n K"]:
    """Log of the integral of ``exp(w' form w)`` over the NaN of each row, less ``w' form w`` with zeros for NaN.

    Zero for rows that hide nothing or everything, NaN where the hidden precision is not positive definite. ``form`` is
    symmetric, and its gradient is that of the full matrix, without factors of two.
    """
    return _Normalizer.apply(x[None], form[None])[0]


def hidden_draw(x: Float[Tensor, "n D"], form: Float[Tensor, "K W W"], z: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
    """``x`` with its NaN drawn from the Gaussian ``exp(w' form w)`` of each row's state, given the rest of the row."""
    noise = torch.randn(x.shape, dtype=form.dtype, device=x.device)
    return _draw(x.detach(), form.detach(), z, noise)


@torch.library.custom_op("ppgen::hidden_normalizer", mutates_args=())
def _normalizer(x: Tensor, form: Tensor) -> Tensor:
    """(S, n, K) from x (S, n, D) and form (S, K, W, W)."""
    if x.device.type != "cpu":
        return torch.stack([pinned.normalizer(*one) for one in zip(x, form, strict=True)])
    S, n, D = x.shape
    out = np.zeros((S * n, form.shape[1]))
    tasks, order, hides, rows = _layout(x)
    work = len(order) * form.shape[1] * D * D
    run_tasks(kernels.normalizers, len(tasks), work, tasks, order, hides, rows, _blocks(form), out)
    return torch.from_numpy(out).to(form.dtype).reshape(S, n, form.shape[1])


@torch.library.custom_op("ppgen::hidden_moments", mutates_args=())
def _moments(x: Tensor, form: Tensor, weights: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    """Gradients of ``weights`` (S, n, K) times `_normalizer`: (S, K, W, W), and (S, n, D) if ``slopes``."""
    if x.device.type != "cpu":
        each = [pinned.moments(*one) for one in zip(x, form, weights, strict=True)]
        in_rows = [one for _, one in each] if slopes else [x.new_empty(0)]
        return torch.stack([one for one, _ in each]), torch.stack(in_rows)
    (S, n, D), K, W = x.shape, form.shape[1], form.shape[-1]
    tasks, order, hides, rows = _layout(x)
    blocks = _blocks(form)
    sums, slope = np.zeros((len(tasks), *blocks.shape[1:])), np.zeros((S * n if slopes else 0, D))
    given = np.ascontiguousarray(weights.detach().to(torch.float64).numpy().reshape(S * n, K))
    work = 2 * len(order) * K * D * D
    run_tasks(kernels.moments, len(tasks), work, tasks, order, hides, rows, blocks, given, sums, slope)
    together = np.zeros((S, *blocks.shape[1:]))
    np.add.at(together, tasks[:, 2], sums)
    total = torch.from_numpy(together).movedim(-1, 2).reshape(S, -1, W, W)[:, :K].to(form.dtype)
    total = total + total.mT - torch.diag_embed(total.diagonal(dim1=-2, dim2=-1))
    return total, torch.from_numpy(slope).to(x.dtype).reshape(S, n, D) if slopes else x.new_empty(1, 0)


@torch.library.custom_op("ppgen::hidden_draw", mutates_args=())
def _draw(x: Tensor, form: Tensor, z: Tensor, noise: Tensor) -> Tensor:
    """``x`` (n, D) filled under form (K, W, W), z (n) and standard normal noise (n, D)."""
    if x.device.type != "cpu":
        return pinned.draw(x, form, z, noise)
    hides = np.isnan(x.detach().numpy())
    arrays = (_array(torch.nan_to_num(x)), _array(form), np.ascontiguousarray(z.numpy()), _array(noise))
    out = np.empty(x.shape)
    run_tasks(kernels.draws, len(x), int(hides.sum()) * x.shape[-1] ** 2, hides, *arrays, out)
    return torch.where(torch.isnan(x), torch.from_numpy(out).to(x), x)


@_normalizer.register_fake
def _(x: Tensor, form: Tensor) -> Tensor:
    return form.new_empty(*x.shape[:2], form.shape[1])


@_moments.register_fake
def _(x: Tensor, form: Tensor, weights: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(form), x.new_empty(x.shape if slopes else (1, 0))


@_draw.register_fake
def _(x: Tensor, form: Tensor, z: Tensor, noise: Tensor) -> Tensor:
    return torch.empty_like(x)


@_normalizer.register_vmap
def _(info: Context, in_dims: tuple[int | None, ...], x: Tensor, form: Tensor) -> tuple[Tensor, int]:
    size = info.batch_size
    if in_dims[0] is None:  # the same rows: so many more states
        out = _normalizer(x, _repeat(form, in_dims[1], size).movedim(0, 1).flatten(1, 2))
        return out.unflatten(-1, (size, -1)), 2
    folded = [_fold(t, dim, size) for t, dim in zip((x, form), in_dims, strict=True)]
    return _normalizer(*folded).unflatten(0, (size, -1)), 0


@_moments.register_vmap
def _(
    info: Context, in_dims: tuple[int | None, ...], x: Tensor, form: Tensor, weights: Tensor, slopes: bool
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    size = info.batch_size
    if in_dims[0] is None and not slopes:
        many = [_repeat(t, dim, size) for t, dim in zip((form, weights), in_dims[1:3], strict=True)]
        total, none = _moments(x, many[0].movedim(0, 1).flatten(1, 2), many[1].movedim(0, 2).flatten(2, 3), False)
        return (total.unflatten(1, (size, -1)), none.expand(size, -1, -1)), (1, 0)
    folded = [_fold(t, dim, size) for t, dim in zip((x, form, weights), in_dims[:3], strict=True)]
    total, slope = _moments(*folded, slopes)
    slope = slope.unflatten(0, (size, -1)) if slopes else slope.expand(size, 1, 0)
    return (total.unflatten(0, (size, -1)), slope), (0, 0)


@_draw.register_vmap
def _(
    info: Context, in_dims: tuple[int | None, ...], x: Tensor, form: Tensor, z: Tensor, noise: Tensor
) -> tuple[Tensor, int]:
    size = info.batch_size
    x, form, z, noise = (_repeat(t, dim, size) for t, dim in zip((x, form, z, noise), in_dims, strict=True))
    z = z + form.shape[1] * torch.arange(size, device=z.device)[:, None]
    return _draw(*(t.flatten(0, 1) for t in (x, form, z, noise))).unflatten(0, (size, -1)), 0


class _Normalizer(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, form: Tensor) -> Tensor:
        return _normalizer(x, form)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        wanted = ctx.needs_input_grad[0]
        form, x = _Moments.apply(*ctx.saved_tensors, gradient, wanted)
        return x if wanted else None, form


class _Moments(torch.autograd.Function):
    """The gradient as a function of its own, which may be differentiated again: slowly, through pinned matrices."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, form: Tensor, weights: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
        return _moments(x, form, weights, slopes)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.slopes = inputs[3]

    @staticmethod
    def backward(ctx: Context, gradient: Tensor, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, form, weights = ctx.saved_tensors
        hides = torch.isnan(x)

        def first(x: Tensor, form: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
            moments, slopes = torch.func.vjp(pinned.value, x, form)[1](weights)[::-1]
            return (moments + moments.mT) / 2, torch.where(hides, 0.0, slopes)

        second = torch.func.vjp(first, torch.where(hides, torch.nan, x), form, weights)[1]
        to_x, to_form, to_weights = second((gradient, slope if ctx.slopes else torch.zeros_like(x)))
        return torch.where(hides, 0.0, to_x), (to_form + to_form.mT) / 2, to_weights, None


def _fold(t: Tensor, dim: int | None, size: int) -> Tensor:
    return _repeat(t, dim, size).flatten(0, 1)


def _repeat(t: Tensor, dim: int | None, size: int) -> Tensor:
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _array(t: Tensor) -> np.ndarray:
    return np.ascontiguousarray(t.detach().to(torch.float64).numpy())


def _blocks(form: Tensor) -> np.ndarray:
    """Forms (S, K, W, W) with states innermost, ``LANES`` to a block; the last block repeats its last state."""
    S, K, W, _ = form.shape
    padded = form[:, torch.arange(-(-K // kernels.LANES) * kernels.LANES).clamp_max(K - 1)]
    return _array(padded.reshape(S, -1, kernels.LANES, W, W).movedim(2, -1))


def _layout(x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tasks (first, last, set) into an order in which rows that hide the same are neighbours; what is hidden; rows."""
    S, n, D = x.shape
    rows = _array(x).reshape(S * n, D)
    hides = np.isnan(rows)
    some = hides.any(1) & ~hides.all(1)
    incomplete = np.flatnonzero(some)
    order = incomplete[pattern_order(hides[incomplete], incomplete // max(n, 1))]
    ends = np.append(0, np.cumsum(some.reshape(S, n).sum(1)))
    tasks = []
    for s in range(S):
        first, last = int(ends[s]), int(ends[s + 1])
        share = max(LEAST_ROWS, -(-(last - first) // TASKS))
        tasks += [(at, min(at + share, last), s) for at in range(first, last, share)]
    return np.array(tasks, dtype=np.int64).reshape(-1, 3), order, hides, np.where(hides, 0.0, rows)
