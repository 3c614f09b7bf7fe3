"""The second derivative of a discrete chain's log-normaliser in one direction, in torch operations on any device.

As :mod:`ppgen.messages.discrete._tangent` says, over the blocks of :mod:`ppgen.messages.discrete._scan`: what the past
is expected to have added to f goes from one end of a block to the other by an affine map, the matrix of which is known
from the block's product. So each direction of time takes two runs over all blocks at once: from zero, then from what
the chained maps say.
"""

import math

import torch
from torch import Tensor

from ppgen.messages.discrete import _scan
from ppgen.messages.discrete._scan import Exact, Messages, Scaled, Steps, finite, normalized

__all__ = ["tangent"]


def tangent(
    log_initial: Tensor,
    log_transition: Tensor,
    log_potential: Tensor,
    lengths: Tensor,
    initial: Tensor,
    transition: Tensor,
    potential: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as :func:`ppgen.messages.discrete._dispatch.tangent`, without leaving the device."""
    for multiply in (Scaled(), Exact()):
        known = _scan.messages(multiply, log_initial, log_transition, log_potential, lengths)
        messages, backwards = _logarithms(multiply, known)
        if not multiply.failed:
            break
    direction = _scan.cut(transition, torch.where(known.exists[..., None], potential, 0.0), known.exists)
    first = torch.where(known.exists[:, :1], initial + potential[:, 0], 0.0)
    past = _past(known, direction, messages, first)
    marginals, counts, ahead = _derivatives(known, direction, messages, backwards, past)
    opening = _covariance(
        (known.opening + (backwards[:, 0, 0] if backwards.shape[1] else 0.0)).softmax(-1), first + ahead
    )
    marginals = torch.cat([opening[:, None], marginals.flatten(1, 2)], 1)[:, : log_potential.shape[1]]
    possible = (known.value != -math.inf)[:, None, None]
    marginals = torch.where(known.exists[..., None] & possible, marginals, 0.0)
    varying = log_transition.shape[1] > 1
    counts = counts.flatten(1, 2)[:, : transition.shape[1]] if varying else counts.sum((1, 2))[:, None]
    return marginals[:, 0].clone(), torch.where(possible[..., None], counts, 0.0), marginals


def _logarithms(multiply: Scaled | Exact, known: Messages) -> tuple[Tensor, Tensor]:
    """Normalised messages (B, nb, S + 1, K) from the past and from the future, before the first step and after each."""
    steps = known.steps
    size = steps.potential.shape[2] if steps.potential.shape[1] else 0
    forward, backward = [known.before], [known.after[:, : known.before.shape[1]]]
    for s in range(size):
        transition, potential, alive = steps.at(s)
        message = normalized(multiply(forward[-1][..., None, :], transition)[..., 0, :] + potential)
        forward.append(torch.where(alive[..., None], message, forward[-1]))
        transition, potential, alive = steps.at(size - 1 - s)
        message = normalized(multiply(transition, (potential + backward[-1])[..., None])[..., 0])
        backward.append(torch.where(alive[..., None], message, backward[-1]))
    return torch.stack(forward, 2), torch.stack(backward[::-1], 2)


def _past(known: Messages, direction: Steps, messages: Tensor, first: Tensor) -> Tensor:
    """Expected part of f that lies in the past, given each state, (B, nb, S + 1, K), up to constants."""
    across = _share(known.before[..., :, None] + known.products, -2)
    alone = _run_forward(known.steps, direction, messages, torch.zeros_like(known.before))[:, :, -1]
    entering = [first]
    for block in range(across.shape[1] - 1):
        entering.append(alone[:, block] + (entering[-1][:, None] @ across[:, block])[:, 0])
    start = torch.stack(entering, 1)[:, : across.shape[1]]
    return _run_forward(known.steps, direction, messages, start)


def _run_forward(steps: Steps, direction: Steps, messages: Tensor, start: Tensor) -> Tensor:
    past = [start]
    for s in range(messages.shape[2] - 1):
        transition, potential, alive = direction.at(s)
        share = _share(messages[:, :, s, :, None] + steps.at(s)[0], -2)
        added = (share * (past[-1][..., :, None] + transition)).sum(-2) + potential
        past.append(torch.where(alive[..., None], added, past[-1]))
    return torch.stack(past, 2)


def _derivatives(
    known: Messages, direction: Steps, messages: Tensor, backwards: Tensor, past: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of marginals (B, nb, S, K) and counts (B, nb, S or 1, K, K), and what is ahead of the first step."""
    across = _share(known.products + known.after[:, : known.products.shape[1], None, :], -1)
    entering = [torch.zeros_like(known.opening)]
    if not across.shape[1]:
        return past[:, :, 1:], past.new_zeros(len(past), 1, 1, *across.shape[2:]), entering[0]
    alone = _run_backward(known.steps, direction, backwards, torch.zeros_like(known.before))[:, :, 0]
    for block in range(across.shape[1] - 1, 0, -1):
        entering.append(alone[:, block] + (across[:, block] @ entering[-1][..., None])[..., 0])
    future = _run_backward(known.steps, direction, backwards, torch.stack(entering[::-1], 1))
    marginals = _covariance((messages + backwards).softmax(-1), past + future)[:, :, 1:]
    varying = known.steps.transition.shape[2] > 1
    counts = past.new_zeros(*past.shape[:2], past.shape[2] - 1 if varying else 1, *across.shape[2:])
    for s in range(past.shape[2] - 1):
        log_A, log_potential, alive = known.steps.at(s)
        V, y, _ = direction.at(s)
        pairs = messages[:, :, s, :, None] + log_A + (log_potential + backwards[:, :, s + 1])[..., None, :]
        f = past[:, :, s, :, None] + V + (y + future[:, :, s + 1])[..., None, :]
        both = _covariance(pairs.flatten(-2).softmax(-1), f.flatten(-2)).unflatten(-1, pairs.shape[-2:])
        counts[:, :, s if varying else 0] += torch.where(alive[..., None, None], both, 0.0)
    return marginals, counts, future[:, 0, 0]


def _run_backward(steps: Steps, direction: Steps, backwards: Tensor, start: Tensor) -> Tensor:
    """Expected part of f that lies in the future, given each state, (B, nb, S + 1, K)."""
    future = [start]
    for s in range(backwards.shape[2] - 2, -1, -1):
        log_A, log_potential, alive = steps.at(s)
        transition, potential, _ = direction.at(s)
        share = _share(log_A + (log_potential + backwards[:, :, s + 1])[..., None, :], -1)
        added = (share * (transition + (potential + future[-1])[..., None, :])).sum(-1)
        future.append(torch.where(alive[..., None], added, future[-1]))
    return torch.stack(future[::-1], 2)


def _share(logarithms: Tensor, dim: int) -> Tensor:
    """Shares along ``dim``; zeros where nothing is possible."""
    return (logarithms - finite(logarithms.logsumexp(dim, keepdim=True))).exp()


def _covariance(shares: Tensor, f: Tensor) -> Tensor:
    """Covariance with f of being in each place, (..., K)."""
    return shares * (f - (shares * f).sum(-1, keepdim=True))
