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

Context = Any  # what torch hands to the methods of a function; it takes any attribute


def rsample(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> Tensor:
    """Exact draws (n, B, T, L) from standard normal ``noise``, differentiable once in ``J``, ``J_cross`` and ``h``."""
    return _Draw.apply(J, J_cross, h, noise)[0]


@torch.library.custom_op("ppgen::gaussian_chain_draw", mutates_args=())
def _draw(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws, and the roots, gains and offsets of every block given the next, B rows each."""
    if not _dispatch.has_kernels(h):
        return scan.draw(J, J_cross, h, noise)
    _, root, gain, offset = _dispatch.eliminated(J, J_cross, h, h.shape[1] - 1, True, False)
    x, noise = torch.empty_like(noise, memory_format=torch.contiguous_format), noise.detach().contiguous()
    arrays = (t.numpy() for t in (offset, gain, root, noise, x))
    run_tasks(kernels.draw, len(h), noise.numel() * h.shape[2] + root.numel() * h.shape[2], *arrays)
    return x, root, gain, offset


@_draw.register_fake
def _(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    return noise.new_empty(noise.shape), *(h.new_empty((len(h), *t.shape[1:])) for t in (J, J_cross, h))


@torch.library.custom_op("ppgen::gaussian_chain_draw_gradient", mutates_args=())
def _draw_gradient(
    g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in J, J_cross and h, B rows each, of what has gradient ``g`` in the draws."""
    if not _dispatch.has_kernels(g):
        return scan.gradient(g, x, noise, root, gain, offset)
    carried = g.detach().clone(memory_format=torch.contiguous_format)
    inputs = [t.detach().contiguous() for t in (x, noise, root, gain, offset)]
    out = [torch.empty_like(t) for t in inputs[2:]]
    work = (3 * root.numel() + 4 * g.numel()) * g.shape[3]
    run_tasks(kernels.gradient, g.shape[1], work, *(t.numpy() for t in (carried, *inputs, *out)))
    return out[0], out[1], out[2]


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
        x, *factors = output
        ctx.save_for_backward(x, inputs[3], *factors)

    @staticmethod
    def backward(ctx: Context, g: Tensor, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
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
        return (x.unflatten(1, (size, rows)), *(t.unflatten(0, (size, rows)) for t in factors)), (1, 0, 0, 0)


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
        output = _Gradient.apply(*draws, *factors)
        return tuple(t.unflatten(0, (size, rows)) for t in output), (0, 0, 0)


def _fold_draws(t: Tensor, dim: int | None, size: int) -> Tensor:
    """One batch dim, the second one, out of two."""
    t = t.unsqueeze(1).expand(-1, size, *t.shape[1:]) if dim is None else t.movedim(dim, 1)
    return t.flatten(1, 2)
