"""Draws of Gaussian chains as a differentiable operator, which folds the batch of a ``vmap`` into its own.

All is float64: J (B or 1, T, L, L), J_cross (B or 1, T - 1, L, L), h (B, T, L), noise and draws (n, B, T, L).
"""

from typing import Any

import torch
from torch import Tensor

from ppgen.messages import _operator as _op
from ppgen.messages._compiled import run_tasks
from ppgen.messages.gaussian import _dispatch
from ppgen.messages.gaussian import _draws as kernels
from ppgen.messages.gaussian import _scan_tangent as scan

__all__ = ["rsample"]

# Sequences that share their precision and are taken together by one thread; each task writes a gradient of its size.
_AT_ONCE = 8

Context = Any  # what torch hands to the methods of a function; it takes any attribute


def rsample(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> Tensor:
    """Exact draws (n, B, T, L) from standard normal ``noise``, differentiable once in ``J``, ``J_cross`` and ``h``."""
    return _Draw.apply(J, J_cross, h, noise)[0]


@torch.library.custom_op("ppgen::gaussian_chain_draw", mutates_args=())
def _draw(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws, and the roots, gains (one row if J and J_cross have one) and offsets of every block given the next."""
    if not _dispatch.has_kernels(h):
        x, root, gain, offset = scan.draw(J, J_cross, h, noise)
        return (x, root[:1].clone(), gain[:1].clone(), offset) if _shared(J, J_cross, h) else (x, root, gain, offset)
    if not _shared(J, J_cross, h):
        _, root, gain, offset = _dispatch.eliminated(J, J_cross, h, h.shape[1] - 1, roots=True)
    else:  # factorised once for the whole batch
        _, root, gain, _ = _dispatch.eliminated(J, J_cross, h[:1], h.shape[1] - 1, roots=True)
        offset = torch.empty_like(h, memory_format=torch.contiguous_format)
        arrays = (t.detach().contiguous().numpy() for t in (h, gain, root, offset))
        run_tasks(kernels.offsets, len(h), 3 * h.numel() * h.shape[2], *arrays)
    x, noise = torch.empty_like(noise, memory_format=torch.contiguous_format), noise.detach().contiguous()
    arrays = (t.numpy() for t in (offset, gain, root, noise, x))
    run_tasks(kernels.draw, len(h), 2 * noise.numel() * h.shape[2], *arrays)
    return x, root, gain, offset


def _shared(J: Tensor, J_cross: Tensor, h: Tensor) -> bool:
    return J.shape[0] == 1 and J_cross.shape[0] == 1 and h.shape[0] > 1


@_draw.register_fake
def _(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    rows = 1 if _shared(J, J_cross, h) else len(h)
    root, gain = (h.new_empty((rows, *t.shape[1:])) for t in (J, J_cross))
    return noise.new_empty(noise.shape), root, gain, h.new_empty(h.shape)


@torch.library.custom_op("ppgen::gaussian_chain_draw_gradient", mutates_args=())
def _draw_gradient(
    g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in J, J_cross and h, with the rows of ``root``, ``gain`` and ``offset``, of what has gradient ``g``."""
    if not _dispatch.has_kernels(g):
        return scan.gradient(g, x, noise, root, gain, offset)
    share = 1 if len(root) == len(offset) else _AT_ONCE
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
def _(g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (root, gain, offset))


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        x, root, gain, offset = _Draw.apply(*shared, _op.fold_rows(h, in_dims[2], size, rows), noise)
        one = len(root) < len(offset)
        root, gain = (t if one else t.unflatten(0, (size, rows)) for t in (root, gain))
        dim = None if one else 0
        return (x.unflatten(1, (size, rows)), root, gain, offset.unflatten(0, (size, rows))), (1, dim, dim, 0)


class _Gradient(torch.autograd.Function):
    """The gradient of draws; refuses to be differentiated: it would count as a constant else."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _draw_gradient(g, x, noise, root, gain, offset)

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
