"""What the kernels are held against: every path listed, every covariance written out."""

import itertools
import math

import torch


def paths(steps, states):
    return torch.tensor(list(itertools.product(range(states), repeat=steps)))


def scores(log_initial, log_transition, log_potential):
    """Log-weight of every path of one chain, (K ** T,), differentiable."""
    steps, states = log_potential.shape
    z = paths(steps, states)
    total = log_initial[z[:, 0]] + log_potential[torch.arange(steps), z].sum(-1)
    for t in range(steps - 1):
        A = log_transition[t] if log_transition.dim() == 3 else log_transition
        total = total + A[z[:, t], z[:, t + 1]]
    return total


def evidence(*chain):
    return scores(*chain).logsumexp(-1)


def random_chain(steps, states, *batch, varying=False, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    transitions = (steps - 1, states, states) if varying else (states, states)
    return normal(*batch, states), normal(*batch, *transitions), scale * normal(*batch, steps, states)


def random_gaussian(steps, width, *batch, seed=0, repeated=False):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    blocks = 1 if repeated else steps
    root = normal(*batch, blocks, width, width)
    J = root @ root.mT + 4 * width * torch.eye(width, dtype=torch.float64)
    J_cross = normal(*batch, min(blocks, steps - 1), width, width)
    if repeated:
        J, J_cross = J.expand(*batch, steps, width, width), J_cross.expand(*batch, steps - 1, width, width)
    return J, J_cross, normal(*batch, steps, width)


def dense(J, J_cross, h):
    """Log-normaliser, mean (T L,) and covariance (T L, T L) of one Gaussian chain, differentiable."""
    steps, width = h.shape
    rows = []
    for t in range(steps):
        row = [torch.zeros(width, width, dtype=torch.float64)] * steps
        row[t] = 0.5 * (J[t] + J[t].mT)
        if t > 0:
            row[t - 1] = J_cross[t - 1].mT
        if t + 1 < steps:
            row[t + 1] = J_cross[t]
        rows.append(torch.cat(row, -1))
    precision = torch.cat(rows)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ h.flatten()
    value = 0.5 * h.flatten() @ mean - 0.5 * torch.logdet(precision) + 0.5 * h.numel() * math.log(2 * math.pi)
    return value, mean, covariance
