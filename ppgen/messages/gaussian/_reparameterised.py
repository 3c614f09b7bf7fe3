"""Draws of Gaussian chains as a differentiable operator, which folds the batch of a ``vmap`` into its own.

All is float64: J (B or 1, T, L, L), J_cross (B or 1, T - 1, L, L), h (B, T, L), noise and draws (n, B, T, L).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.messages import _operator as _op
from ppgen.messages._compiled import Array, run_tasks
from ppgen.messages.gaussian import _dispatch
from ppgen.messages.gaussian import _draws as kernels
from ppgen.messages.gaussian import _scan_tangent as scan
from ppgen.messages.gaussian._scan import refuse_indefinite

__all__ = ["rsample"]

# Sequences that share their precision and are taken together by one thread; each task writes a gradient of its size.
AT_ONCE = 8

Context = Any  # what torch hands to the methods of a function; it takes any attribute


def rsample(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> Tensor:
    """Exact draws (n, B, T, L) from standard normal ``noise``, differentiable once in ``J``, ``J_cross`` and ``h``."""
    return _Draw.apply(J, J_cross, h, noise)[0]


@torch.library.custom_op("ppgen::gaussian_chain_draw", mutates_args=())
def _draw(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draws; roots, gains and offsets of every block given the next; which rows (B or 1,) are of chains turned around.

    These are chains whose last block lost digits when the others were eliminated, as of a system that grows while
    nobody looks. If all rows share J and J_cross, they share roots and gains, of one row.
    """
    shared = _shared(J, J_cross, h)
    if not _dispatch.has_kernels(h):
        x, root, gain, offset = scan.draw(*_dispatch.turned(J, J_cross, h), noise.flip(2))
        count = 1 if shared else len(h)
        return x.flip(2), root[:count].clone(), gain[:count].clone(), offset, J.new_ones(count, dtype=torch.bool)
    draw = _draw_shared if shared else _draw_each
    bad, least, x, root, gain, offset = draw(J, J_cross, h, noise)
    inexact = ~(least > _dispatch.SMALL_PIVOT)
    turned = torch.from_numpy(inexact)
    if inexact.any():
        rows = _rows(turned)
        chain = [t if len(t) == 1 else t[rows] for t in (J, J_cross, h)]
        found = draw(*_dispatch.turned(*chain), noise[:, rows].flip(2))
        x[:, rows] = found[2].flip(2)
        for whole, part in zip((root, gain, offset), found[3:], strict=True):
            whole[rows] = part
        bad[inexact] = np.where(found[0] < 0, -1, h.shape[1] - 1 - found[0])
    refuse_indefinite(bad)
    return x, root, gain, offset, turned


def _shared(J: Tensor, J_cross: Tensor, h: Tensor) -> bool:
    return J.shape[0] == 1 and J_cross.shape[0] == 1 and h.shape[0] > 1


def _rows(turned: Tensor) -> Tensor | slice:
    return slice(None) if bool(turned.all()) else turned


def _draw_each(
    J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor
) -> tuple[Array, Array, Tensor, Tensor, Tensor, Tensor]:
    """Bad blocks and least pivots (B,) of the last block; draws, roots, gains and offsets."""
    inputs = [t.detach().contiguous() for t in (J, J_cross, h, noise)]
    rows, steps, width = h.shape
    root, gain = h.new_empty(rows, steps, width, width), h.new_empty(rows, steps - 1, width, width)
    offset, x = torch.empty_like(inputs[2]), torch.empty_like(inputs[3])
    bad, least = np.full(2 * rows, -1), np.zeros(rows)
    arrays = (t.numpy() for t in (*inputs, root, gain, offset, x))
    work = rows * steps * width**3 + 2 * noise.numel() * width
    run_tasks(kernels.eliminate_and_draw, rows, work, np.arange(rows), *arrays, bad, least)
    return bad[::2], least, x, root, gain, offset


def _draw_shared(
    J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor
) -> tuple[Array, Array, Tensor, Tensor, Tensor, Tensor]:
    """The same, factorised once for all rows."""
    bad, least, _, root, gain, _ = _draw_each(J, J_cross, h[:1], noise[:1, :1])
    h, noise = h.detach().contiguous(), noise.detach().contiguous()
    offset, x = torch.empty_like(h), torch.empty_like(noise)
    arrays = [t.numpy() for t in (gain, root, offset, noise, x)]
    run_tasks(kernels.offsets, len(h), 3 * h.numel() * h.shape[2], h.numpy(), *arrays[:3])
    run_tasks(kernels.draw, len(h), 2 * noise.numel() * h.shape[2], arrays[2], *arrays[:2], *arrays[3:])
    return bad, least, x, root, gain, offset


@_draw.register_fake
def _(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    rows = 1 if _shared(J, J_cross, h) else len(h)
    root, gain = (h.new_empty((rows, *t.shape[1:])) for t in (J, J_cross))
    return noise.new_empty(noise.shape), root, gain, h.new_empty(h.shape), h.new_empty(rows, dtype=torch.bool)


@torch.library.custom_op("ppgen::gaussian_chain_draw_gradient", mutates_args=())
def _draw_gradient(
    g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor, turned: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in J, J_cross and h, with the rows of ``root``, ``gain`` and ``offset``, of what has gradient ``g``."""
    rows = _rows(turned)
    if some := bool(turned.any()):
        g, x, noise = g.clone(), x.clone(), noise.clone()
        for t in (g, x, noise):
            t[:, rows] = t[:, rows].flip(2)
    run = _gradient_kernels if _dispatch.has_kernels(g) else scan.gradient
    J, J_cross, linear = run(g, x, noise, root, gain, offset)
    if some:
        J[rows], J_cross[rows], linear[rows] = _dispatch.turned(J[rows], J_cross[rows], linear[rows])
    return J, J_cross, linear


def _gradient_kernels(
    g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    share = 1 if len(root) == len(offset) else AT_ONCE
    tasks = -(-len(offset) // share)
    carried = g.detach().clone(memory_format=torch.contiguous_format)
    inputs = [t.detach().contiguous() for t in (x, noise, root, gain, offset)]
    out = [t.new_empty((tasks, *t.shape[1:])) for t in inputs[2:4]]
    linear = torch.empty_like(inputs[4])
    work = (3 * root.numel() + 8 * g.numel()) * g.shape[3]
    run_tasks(kernels.gradient, tasks, work, share, *(t.numpy() for t in (carried, *inputs, *out, linear)))
    J, J_cross = (t.sum(0, keepdim=True) if share > 1 else t for t in out)
    return J, J_cross, linear


@_draw_gradient.register_fake
def _(
    g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor, turned: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return root.new_empty(root.shape), gain.new_empty(gain.shape), offset.new_empty(offset.shape)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return _draw(J, J_cross, h, noise)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple, output: tuple) -> None:
        ctx.shared = [t.shape[0] == 1 for t in inputs[:3]]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        x, *factors = output
        ctx.save_for_backward(x, inputs[3], *factors)

    @staticmethod
    def backward(ctx: Context, g: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None, None
        gradients = _Gradient.apply(g, *ctx.saved_tensors)
        summed = (
            t.sum(0, keepdim=True) if one and len(t) > 1 else t for t, one in zip(gradients, ctx.shared, strict=True)
        )
        return *summed, None

    @staticmethod
    def vmap(
        info: Context, in_dims: tuple, J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor
    ) -> tuple[tuple, tuple]:
        size, rows = info.batch_size, (h if in_dims[2] is None else h.movedim(in_dims[2], 0)[0]).shape[0]
        shared = [_op.fold_rows(t, dim, size, rows, True) for t, dim in zip((J, J_cross), in_dims[:2], strict=True)]
        noise = _fold_draws(noise, in_dims[3], size)
        x, *factors = _Draw.apply(*shared, _op.fold_rows(h, in_dims[2], size, rows), noise)
        owned = [len(t) == size * rows for t in factors]
        factors = [t.unflatten(0, (size, rows)) if own else t for t, own in zip(factors, owned, strict=True)]
        return (x.unflatten(1, (size, rows)), *factors), (1, *(0 if own else None for own in owned))


class _Gradient(torch.autograd.Function):
    """The gradient of draws; refuses to be differentiated: it would count as a constant else."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor, turned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _draw_gradient(g, x, noise, root, gain, offset, turned)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Context, *_: Tensor | None) -> None:
        message = "gaussian_chain: draws of rsample have no second derivative"
        raise NotImplementedError(f"{message}; detach their gradient, or use finite differences of it")

    @staticmethod
    def vmap(info: Context, in_dims: tuple, *inputs: Tensor) -> tuple[tuple, tuple]:
        size, offset = info.batch_size, inputs[5]
        rows = (offset if in_dims[5] is None else offset.movedim(in_dims[5], 0)[0]).shape[0]
        draws = [_fold_draws(t, dim, size) for t, dim in zip(inputs[:3], in_dims[:3], strict=True)]
        factors = [_op.fold_rows(t, dim, size, rows) for t, dim in zip(inputs[3:], in_dims[3:], strict=True)]
        J, J_cross, h = (t.unflatten(0, (size, rows)) for t in _Gradient.apply(*draws, *factors))
        root = inputs[3] if in_dims[3] is None else inputs[3].movedim(in_dims[3], 0)[0]
        if len(root) < rows:
            J, J_cross = J.sum(1, keepdim=True), J_cross.sum(1, keepdim=True)
        return (J, J_cross, h), (0, 0, 0)


def _fold_draws(t: Tensor, dim: int | None, size: int) -> Tensor:
    """One batch dim, the second one, out of two."""
    t = t.unsqueeze(1).expand(-1, size, *t.shape[1:]) if dim is None else t.movedim(dim, 1)
    return t.flatten(1, 2)
