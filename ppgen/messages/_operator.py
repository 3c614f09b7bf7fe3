"""A log-normaliser as a differentiable operator: its gradient is its expected statistics, never a trace through time.

A custom operator does the work, so that tracing and compilation see one node; an autograd function around it knows
the gradient and how to fold the batch of a ``vmap`` into its own. Statistics can be differentiated once: the second
derivative of a log-normaliser is symmetric, so their backward pass is their derivative in the direction that comes in.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["expectations", "fold_rows", "folded", "log_normalizer", "register"]

# Above this many potentials, expected statistics are not kept between the forward and the backward pass but computed
# in the latter: half again the time, and one array less at the peak.
KEEP_AT_MOST = 1 << 24

Compute = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor, Tensor, Tensor]]
Tangent = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
PullBack = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

Context = Any  # what torch hands to the methods of a function; it takes any attribute


class _Operators(NamedTuple):
    compute: Callable
    tangent: Callable
    pull_back: PullBack | None


_operators: dict[str, _Operators] = {}


def register(name: str, compute: Compute, tangent: Tangent, pull_back: PullBack | None = None) -> None:
    """Make ``compute(a, b, c, lengths, weights, keep) -> (value, *statistics)`` the operator ``ppgen::name``.

    ``c`` (B, ...) carries the batch, ``a`` and ``b`` have as many rows or one, all float64. ``weights`` (B,) or None
    multiply the statistics, which have B rows each, or are ``empty(0)`` if not ``keep``.

    ``tangent(a, b, c, lengths, u, v, w)`` is the derivative of the value's gradient in direction (u, v, w), B rows
    each. ``pull_back(u, v, w, third)`` turns gradients in the statistics, the third of which is given, into gradients
    in the value's gradient; None where these are the statistics.
    """

    def run(
        a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, weights: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return compute(a, b, c, lengths, weights, keep)

    operator = torch.library.custom_op(f"ppgen::{name}", run, mutates_args=())

    def shapes(
        a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, weights: Tensor | None, keep: bool
    ) -> tuple[Tensor, ...]:
        rows = c.shape[0]
        return c.new_empty(rows), *(c.new_empty((rows, *t.shape[1:]) if keep else (0,)) for t in (a, b, c))

    operator.register_fake(shapes)
    _operators[name] = _Operators(operator, _tangent_operator(name, tangent), pull_back)


def _tangent_operator(name: str, tangent: Tangent) -> Callable:
    def run(
        a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, u: Tensor, v: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tangent(a, b, c, lengths, u, v, w)

    operator = torch.library.custom_op(f"ppgen::{name}_tangent", run, mutates_args=())

    def shapes(a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, u: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.new_empty(t.shape) for t in (u, v, w))

    operator.register_fake(shapes)
    return operator


def folded(name: str, paths: Callable[..., Tensor], dtype: torch.dtype = torch.long) -> Callable[..., Tensor]:
    """Make ``paths(a, b, c, lengths, uniforms) -> (n, B, T)`` an operator that folds a ``vmap`` into its own batch.

    Inputs are those of `register`, and ``uniforms`` (n, B, T) or None, which is n = 1. The answer is of ``dtype``.
    """

    def run(a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, uniforms: Tensor | None) -> Tensor:
        return paths(a, b, c, lengths, uniforms)

    operator = torch.library.custom_op(f"ppgen::{name}", run, mutates_args=())

    def shapes(a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, uniforms: Tensor | None) -> Tensor:
        return c.new_empty((1 if uniforms is None else len(uniforms), *c.shape[:2]), dtype=dtype)

    def fold(
        info: Context, in_dims: tuple, a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, uniforms: Tensor | None
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        if uniforms is not None and in_dims[:4] == (None,) * 4:  # one posterior: so many more draws of it
            each = uniforms.movedim(in_dims[4], 0)
            return operator(a, b, c, lengths, each.flatten(0, 1)).unflatten(0, each.shape[:2]), 0
        rows = (c if in_dims[2] is None else c.movedim(in_dims[2], 0)[0]).shape[0]
        shared = [fold_rows(t, dim, size, rows, share=True) for t, dim in zip((a, b), in_dims, strict=False)]
        own = [fold_rows(t, dim, size, rows) for t, dim in zip((c, lengths), in_dims[2:4], strict=True)]
        if uniforms is not None:
            each = uniforms.unsqueeze(0) if in_dims[4] is None else uniforms.movedim(in_dims[4], 0)
            uniforms = each.expand(size, *each.shape[1:]).movedim(0, 1).flatten(1, 2)
        return operator(*shared, *own, uniforms).unflatten(1, (size, rows)), 1

    operator.register_fake(shapes)
    operator.register_vmap(fold)
    return operator


def log_normalizer(name: str, a: Tensor, b: Tensor, c: Tensor, lengths: Tensor) -> Tensor:
    """Log-normaliser (B,), differentiable twice in ``a``, ``b`` and ``c``."""
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (a, b, c))
    keep = differentiated and c.numel() <= KEEP_AT_MOST
    return _LogNormalizer.apply(name, a, b, c, lengths, None, keep)[0]


def expectations(
    name: str, a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value (B,), and the expected statistics of ``a``, ``b`` and ``c``, B rows each, differentiable once."""
    value, *statistics = _LogNormalizer.apply(name, a, b, c, lengths, weights, True)
    if not torch.is_grad_enabled() or _constant(a, b, c, weights):
        return value, statistics[0], statistics[1], statistics[2]
    return value, *_Statistics.apply(name, *statistics, a, b, c, lengths, weights)


def _constant(*inputs: Tensor | None) -> bool:
    """Tell whether nothing is differentiated here; False under ``torch.func`` and compilation, where nobody knows."""
    if torch.compiler.is_compiling() or any(t is not None and t.requires_grad for t in inputs):
        return False
    return torch._C._functorch.maybe_current_level() is None


class _LogNormalizer(torch.autograd.Function):
    @staticmethod
    def forward(
        name: str, a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, weights: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _operators[name].compute(a, b, c, lengths, weights, keep)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple, output: tuple) -> None:
        name, a, b, c, lengths, _, kept = inputs
        ctx.name, ctx.kept = name, kept
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # statistics have no gradient here; zeros for it would be as large as they are
        ctx.save_for_backward(a, b, c, lengths, *output[1:])

    @staticmethod
    def backward(ctx: Context, gradient: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 7
        a, b, c, lengths, *statistics = ctx.saved_tensors
        if ctx.kept:
            if torch.is_grad_enabled():
                statistics = _Statistics.apply(ctx.name, *statistics, a, b, c, lengths, None)
            statistics = [_rows(gradient, s) * s for s in statistics]
        else:
            statistics = expectations(ctx.name, a, b, c, lengths, gradient.contiguous())[1:]
        return None, *_summed(statistics, (a, b, c)), None, None, None

    @staticmethod
    def vmap(
        info: Context,
        in_dims: tuple,
        name: str,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        lengths: Tensor,
        weights: Tensor | None,
        keep: bool,
    ) -> tuple[tuple, tuple]:
        rows = c.shape[0] if in_dims[3] is None else c.movedim(in_dims[3], 0).shape[1]
        size = info.batch_size
        shared = [fold_rows(t, dim, size, rows, share=True) for t, dim in zip((a, b), in_dims[1:3], strict=True)]
        own = [fold_rows(t, dim, size, rows) for t, dim in zip((c, lengths, weights), in_dims[3:6], strict=True)]
        output = _LogNormalizer.apply(name, *shared, *own, keep)
        unfolded = tuple(t.unflatten(0, (size, rows)) if t.dim() > 1 or i == 0 else t for i, t in enumerate(output))
        return unfolded, (0, 0, 0, 0) if keep else (0, None, None, None)


class _Statistics(torch.autograd.Function):
    """Passes expected statistics through, and knows their derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str,
        first: Tensor,
        second: Tensor,
        third: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        lengths: Tensor,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return first.view_as(first), second.view_as(second), third.view_as(third)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple, output: tuple) -> None:
        ctx.name, _, _, third, *others, weights = inputs
        ctx.weighted = weights is not None
        ctx.save_for_backward(third, *others, *(() if weights is None else (weights,)))

    @staticmethod
    def backward(ctx: Context, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        third, a, b, c, lengths, *weights = ctx.saved_tensors
        pull_back, of_weights = _operators[ctx.name].pull_back, None
        u, v, w = gradients
        direction = (u, v, w) if pull_back is None else pull_back(u, v, w, third)
        if ctx.weighted:
            if ctx.needs_input_grad[8]:
                plain = expectations(ctx.name, a, b, c, lengths)[1:]
                each = [(g * s).flatten(1).sum(1) for g, s in zip(direction, plain, strict=True)]
                of_weights = each[0] + each[1] + each[2]
            u, v, w = (_rows(weights[0], g) * g for g in direction)
            direction = (u, v, w)
        derivatives = _Tangent.apply(ctx.name, a, b, c, lengths, *direction)
        return None, None, None, None, *_summed(derivatives, (a, b, c)), None, of_weights


class _Tangent(torch.autograd.Function):
    """The derivative of a log-normaliser's gradient in a direction; refuses to be differentiated once more."""

    @staticmethod
    def forward(
        name: str, a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, u: Tensor, v: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _operators[name].tangent(a, b, c, lengths, u, v, w)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple, output: tuple) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Context, *_: Tensor | None) -> None:
        message = f"{ctx.name}: log_normalizer has no third derivative, its expected statistics have no second"
        raise NotImplementedError(f"{message}; detach what you have, or use finite differences of it")

    @staticmethod
    def vmap(info: Context, in_dims: tuple, name: str, *inputs: Tensor) -> tuple[tuple, tuple]:
        c = inputs[2]
        size, rows = info.batch_size, (c if in_dims[3] is None else c.movedim(in_dims[3], 0)[0]).shape[0]
        flat = [
            fold_rows(t, dim, size, rows, i < 2) for i, (t, dim) in enumerate(zip(inputs, in_dims[1:], strict=True))
        ]
        output = _Tangent.apply(name, *flat)
        return tuple(t.unflatten(0, (size, rows)) for t in output), (0, 0, 0)


def _summed(statistics: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """One row again where an input has one."""
    return [s.sum(0, keepdim=True) if t.shape[0] < s.shape[0] else s for s, t in zip(statistics, inputs, strict=True)]


def _rows(weights: Tensor, like: Tensor) -> Tensor:
    return weights.reshape(-1, *(1,) * (like.dim() - 1))


def fold_rows(t: Tensor | None, dim: int | None, size: int, rows: int, share: bool = False) -> Tensor | None:
    """One batch dim out of two; with ``share``, a single row that all have in common stays single."""
    if t is None or (share and dim is None and t.shape[0] == 1):
        return t
    t = t.unsqueeze(0) if dim is None else t.movedim(dim, 0)
    return t.expand(size, rows, *t.shape[2:]).flatten(0, 1)
