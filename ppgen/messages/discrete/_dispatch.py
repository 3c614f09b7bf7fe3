"""Discrete chains on flat batches: which kernel runs, and on what memory.

All tensors are float64: log_initial (B or 1, K), log_transition (B or 1, T - 1 or 1, K, K), log_potential (B, T, K);
lengths (B,) are int64.
"""

import torch
from torch import Tensor

from ppgen.messages import _operator as _op
from ppgen.messages._compiled import has_kernels, run_tasks
from ppgen.messages.discrete import _draws as draws
from ppgen.messages.discrete import _kernels as kernels
from ppgen.messages.discrete import _scan, _scan_tangent, _tangent
from ppgen.messages.discrete import _steps as _discrete_steps
from ppgen.messages.discrete._cross import cross, finish
from ppgen.messages.discrete._exact import exact

__all__ = ["NAME", "compute", "mode", "sample", "steps", "tangent"]

NAME = "discrete_chain"


def compute(
    log_initial: Tensor,
    log_transition: Tensor,
    log_potential: Tensor,
    lengths: Tensor,
    weights: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-normalisers (B,) and, if ``keep``, the expected first states, transitions and states times ``weights``."""
    if not has_kernels(log_potential):
        return _scan.compute(log_initial, log_transition, log_potential, lengths, weights, keep)
    rows, steps, states = log_potential.shape
    log_initial, log_transition, log_potential, lengths = (
        t.detach().contiguous() for t in (log_initial, log_transition, log_potential, lengths)
    )
    value = log_potential.new_empty(rows)
    shapes = [(rows, *t.shape[1:]) if keep else (1, 1, 1, 1)[: t.dim()] for t in (log_initial, log_transition)]
    initial, counts = (log_potential.new_zeros(shape) for shape in shapes)
    marginals = torch.empty_like(log_potential) if keep else log_potential.new_empty(rows, 0, states)
    weights = log_potential.new_ones(rows) if weights is None else weights.detach().contiguous()
    edge, scale = log_potential.new_zeros(2 * rows, states), log_potential.new_empty(2 * rows)
    trusted = torch.empty(2 * rows, dtype=torch.bool)
    a, A, x, n, w, out, edges, scales, ok, values, first, pairs = (
        t.numpy()
        for t in (log_initial, log_transition, log_potential, lengths, weights, marginals, edge, scale, trusted, value,
                  initial, counts)
    )  # fmt: skip
    work = rows * steps * states**2
    run_tasks(kernels.sweep, 2 * rows, work, a, A, x, n, keep, out, edges, scales, ok)
    kernels.join(A, n, edges, scales, ok, values)
    if keep:
        shares = log_potential.new_empty(2 * rows, states, states).numpy()
        run_tasks(cross, 2 * rows, work, A, x, n, w, edges, ok, out, shares, pairs)
        run_tasks(finish, rows, work, A, n, shares, out, first, pairs)
    if not trusted.all():
        run_tasks(exact, rows, work, a, A, x, n, keep, w, ok, values, out, first, pairs)
    if not keep:
        return value, value.new_empty(0), value.new_empty(0), value.new_empty(0)
    return value, initial, counts, marginals


def tangent(
    log_initial: Tensor, log_transition: Tensor, log_potential: Tensor, lengths: Tensor, *direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the expected first states, transitions and states in ``direction``, B rows of each input."""
    if not has_kernels(log_potential):
        return _scan_tangent.tangent(log_initial, log_transition, log_potential, lengths, *direction)
    inputs = [t.detach().contiguous() for t in (log_initial, log_transition, log_potential, lengths, *direction)]
    out = [torch.zeros_like(t) for t in inputs[4:]]
    work = 4 * log_potential.numel() * log_potential.shape[2]
    run_tasks(_tangent.tangent, len(log_potential), work, *(t.numpy() for t in (*inputs, *out)))
    return out[0], out[1], out[2]


_op.register(NAME, compute, tangent)


def sample(
    log_initial: Tensor, log_transition: Tensor, log_potential: Tensor, lengths: Tensor, uniforms: Tensor
) -> Tensor:
    """Exact draws (n, B, T) by backward sampling, one of ``uniforms`` (n, B, T) for each state drawn."""
    return _draw(*_detached(log_initial, log_transition, log_potential, lengths), uniforms)


def mode(log_initial: Tensor, log_transition: Tensor, log_potential: Tensor, lengths: Tensor) -> Tensor:
    """Most probable path (B, T) by the Viterbi algorithm; of equal ones, that with the lowest states from the end."""
    return _best(*_detached(log_initial, log_transition, log_potential, lengths), None)[0]


def steps(log_initial: Tensor, log_transition: Tensor, log_potential: Tensor, lengths: Tensor) -> Tensor:
    """The term of the log-normaliser that each step adds (B, T), in one forward pass; without a gradient."""
    return _each(*_detached(log_initial, log_transition, log_potential, lengths), None)[0]


def _sample(a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, uniforms: Tensor) -> Tensor:
    arrays = [t.cpu().contiguous().numpy() for t in (a, b, c, lengths, uniforms)]
    states = torch.empty(uniforms.shape, dtype=torch.long)
    possible = torch.ones(len(c), dtype=torch.bool)
    run_tasks(draws.sample, len(c), c.numel() * c.shape[2], *arrays, states.numpy(), possible.numpy())
    _refuse_impossible(possible)
    return states.to(c.device)


def _mode(a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, _: Tensor | None) -> Tensor:
    arrays = [t.cpu().contiguous().numpy() for t in (a, b, c, lengths)]
    states = torch.empty((1, *c.shape[:2]), dtype=torch.long)
    possible = torch.ones(len(c), dtype=torch.bool)
    run_tasks(draws.mode, len(c), c.numel() * c.shape[2], *arrays, states[0].numpy(), possible.numpy())
    _refuse_impossible(possible)
    return states.to(c.device)


def _steps(a: Tensor, b: Tensor, c: Tensor, lengths: Tensor, _: Tensor | None) -> Tensor:
    arrays = [t.cpu().contiguous().numpy() for t in (a, b, c, lengths)]
    added = torch.empty((1, *c.shape[:2]), dtype=torch.float64)
    run_tasks(_discrete_steps.steps, len(c), c.numel() * c.shape[2], *arrays, added[0].numpy())
    return added.to(c.device)


_draw = _op.folded(f"{NAME}_sample", _sample)
_each = _op.folded(f"{NAME}_steps", _steps, torch.float64)
_best = _op.folded(f"{NAME}_mode", _mode)


def _detached(*inputs: Tensor) -> list[Tensor]:
    return [t.detach() for t in inputs]


def _refuse_impossible(possible: Tensor) -> None:
    if not possible.all():
        row = int((~possible).nonzero()[0])
        raise ValueError(
            f"discrete_chain: to draw a path some path must have positive probability, sequence {row} (of the "
            "flattened batch) has none or holds NaN; check its potentials for rows of -inf"
        )
