"""Discrete chains in torch operations, on any device: a parallel scan over blocks of time.

Every block multiplies its transitions together, all blocks at once; the few products are chained; then every block
runs its messages, again all at once. Messages are logarithms. Products are taken of rescaled exponentials; only if
one of those underflows is the whole done again with sums that lose nothing. Blocks are at least K long, so that
their products take no more memory than the potentials.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["Exact", "Messages", "Scaled", "Steps", "compute", "cut", "finite", "messages", "normalized"]

IMPOSSIBLE = 1e-250


class Steps(NamedTuple):
    """The steps after the first, cut into ``nb`` blocks of ``S``, the last one filled up with idle steps."""

    transition: Tensor  # (B or 1, nb or 1, S or 1, K, K)
    potential: Tensor  # (B, nb, S, K)
    alive: Tensor  # (B, nb, S)

    def at(self, s: int) -> tuple[Tensor, Tensor, Tensor]:
        """Step ``s`` of every block."""
        return (
            self.transition[:, :, s if self.transition.shape[2] > 1 else 0],
            self.potential[:, :, s],
            self.alive[:, :, s],
        )


def compute(
    log_initial: Tensor,
    log_transition: Tensor,
    log_potential: Tensor,
    lengths: Tensor,
    weights: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as :func:`ppgen.messages.discrete._dispatch.compute`, without leaving the device."""
    for multiply in (Scaled(), Exact()):
        result = _blocked(multiply, log_initial, log_transition, log_potential, lengths, keep)
        if not multiply.failed:
            break
    value, initial, counts, marginals = result
    if keep and weights is not None:
        initial, counts, marginals = (
            initial * weights[:, None],
            counts * weights[:, None, None, None],
            marginals * weights[:, None, None],
        )
    return value, initial, counts, marginals


class Scaled:
    """Logarithm of a product of exponentials, by one matrix product."""

    def __init__(self) -> None:
        self._underflow: Tensor | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        top_a = a.amax(-1, keepdim=True).clamp_min(torch.finfo(a.dtype).min)
        top_b = b.amax(-2, keepdim=True).clamp_min(torch.finfo(a.dtype).min)
        product = (a - top_a).exp() @ (b - top_b).exp()
        possible = (a > -math.inf).to(a.dtype) @ (b > -math.inf).to(a.dtype) > 0
        underflow = (possible & ~(product >= IMPOSSIBLE)).any()
        self._underflow = underflow if self._underflow is None else self._underflow | underflow
        return product.log() + top_a + top_b

    @property
    def failed(self) -> bool:
        return self._underflow is not None and bool(self._underflow)


class Exact:
    """The same by sums of logarithms, one column at a time."""

    failed = False

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([(a + b[..., None, :, j]).logsumexp(-1) for j in range(b.shape[-1])], -1)


class Messages(NamedTuple):
    """Messages at the borders of the blocks, in logarithms."""

    steps: Steps
    products: Tensor  # (B, nb, K, K), of each block's steps
    before: Tensor  # (B, nb, K), normalised, that enter each block from the past
    after: Tensor  # (B, nb or 1, K), normalised, that enter it from the future
    opening: Tensor  # (B, K), normalised, of the first step
    value: Tensor  # (B,)
    exists: Tensor  # (B, T)


def messages(
    multiply: Scaled | Exact,
    log_initial: Tensor,
    log_transition: Tensor,
    log_potential: Tensor,
    lengths: Tensor,
    both: bool = True,
) -> Messages:
    """Log-normalisers, and what enters each block; not ``both``: from the past only."""
    exists = torch.arange(log_potential.shape[1], device=lengths.device) < lengths[:, None]  # (B, T)
    top = torch.where(exists, finite(log_potential.amax(-1)), 0.0)
    steps = cut(log_transition, log_potential - top[..., None], exists)
    first = torch.where(
        exists[:, :1], log_initial + log_potential[:, 0] - top[:, :1], -math.log(log_potential.shape[2])
    )
    products = _products(multiply, steps)
    starts, value = [normalized(first)], top.sum(1) + first.logsumexp(-1)
    for block in products.unbind(1):
        message = multiply(starts[-1][:, None], block)[:, 0]
        value = value + message.logsumexp(-1)
        starts.append(normalized(message))
    before = torch.stack(starts[:-1], 1) if len(starts) > 1 else first[:, None, :].expand(-1, 0, -1)
    ends = [torch.zeros_like(first)]
    for block in products.unbind(1)[:0:-1] if both else ():
        ends.append(normalized(multiply(block, ends[-1][..., None])[..., 0]))
    return Messages(steps, products, before, torch.stack(ends[::-1], 1), starts[0], value, exists)


def _blocked(
    multiply: Scaled | Exact,
    log_initial: Tensor,
    log_transition: Tensor,
    log_potential: Tensor,
    lengths: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Marginals of the first step, expected counts and all marginals, from the messages at the borders of blocks."""
    steps, products, before, after, opening, value, exists = messages(
        multiply, log_initial, log_transition, log_potential, lengths, keep
    )
    del products  # as large as the potentials
    if not keep:
        return value, value.new_empty(0), value.new_empty(0), value.new_empty(0)
    marginals, counts, backward = _smooth(multiply, steps, before, after)
    opening = (opening + backward).softmax(-1)
    marginals = torch.cat([opening[:, None], marginals.flatten(1, 2)], 1)[:, : len(exists[0])]
    possible = (value != -math.inf)[:, None, None]
    marginals = torch.where(exists[..., None] & possible, marginals, 0.0)
    varying = log_transition.shape[1] > 1
    counts = counts.flatten(1, 2)[:, : log_transition.shape[1]] if varying else counts.sum((1, 2))[:, None]
    return value, marginals[:, 0].clone(), torch.where(possible[..., None], counts, 0.0), marginals


def cut(log_transition: Tensor, log_potential: Tensor, exists: Tensor) -> Steps:
    rows, length, states = log_potential.shape
    size = max(states, math.isqrt(length))
    blocks = -(-(length - 1) // size)
    fill = blocks * size - (length - 1)
    if log_transition.shape[1] > 1:
        transition = pad(log_transition, (0, 0, 0, 0, 0, fill)).unflatten(1, (blocks, size))
    else:
        transition = log_transition[:, None]
    potential = pad(log_potential[:, 1:], (0, 0, 0, fill)).reshape(rows, blocks, size, states)
    return Steps(transition, potential, pad(exists[:, 1:], (0, fill)).reshape(rows, blocks, size))


def _products(multiply: Scaled | Exact, steps: Steps) -> Tensor:
    """Log of the product of each block's steps, (B, nb, K, K)."""
    rows, blocks, size, states = steps.potential.shape
    identity = torch.eye(states, dtype=steps.potential.dtype, device=steps.potential.device).log()
    product = identity.expand(rows, blocks, states, states)
    for s in range(size if blocks else 0):
        transition, potential, alive = steps.at(s)
        longer = multiply(product, transition) + potential[..., None, :]
        product = torch.where(alive[..., None, None], longer, product)
    return product


def _smooth(multiply: Scaled | Exact, steps: Steps, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Marginals (B, nb, S, K), counts (B, nb, S or 1, K, K) and the message (B, K) that leaves the first block."""
    rows, blocks, size, states = steps.potential.shape
    messages = torch.empty_like(steps.potential)
    counts = messages.new_zeros(rows, blocks, steps.transition.shape[2], states, states)
    forward, backward = before, after
    for s in range(size if blocks else 0):
        transition, potential, alive = steps.at(s)
        message = normalized(multiply(forward[..., None, :], transition)[..., 0, :] + potential)
        forward = messages[:, :, s] = torch.where(alive[..., None], message, forward)
    for s in range(size - 1 if blocks else -1, -1, -1):
        transition, potential, alive = steps.at(s)
        forward = messages[:, :, s - 1] if s else before
        incoming = potential + backward
        message = multiply(transition, incoming[..., None])[..., 0]
        total = finite((forward + message).logsumexp(-1))[..., None, None]
        pairs = (forward[..., :, None] + transition + incoming[..., None, :] - total).exp()
        counts[:, :, s if counts.shape[2] > 1 else 0] += torch.where(alive[..., None, None], pairs, 0.0)
        messages[:, :, s] = (messages[:, :, s] + backward).softmax(-1)
        backward = torch.where(alive[..., None], normalized(message), backward)
    return messages, counts, backward[:, 0]


def normalized(message: Tensor) -> Tensor:
    return message - finite(message.logsumexp(-1, keepdim=True))


def finite(t: Tensor) -> Tensor:
    """No infinity, so that it can be subtracted: infinity less infinity is NaN."""
    return t.clamp_min(torch.finfo(t.dtype).min)
