"""The term of a discrete chain's log-normaliser that each step adds, in compiled loops: one forward pass."""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp
from ppgen.messages.discrete._exact import filter_exactly
from ppgen.messages.discrete._kernels import carry

__all__ = ["steps"]


@njit(**KERNEL)
def _added(v: Array, log_A: Array, row: Array) -> float:
    """Log of sum_ij exp(v_i + log_A_ij + row_j)."""
    S, K = log_A.shape
    top = -math.inf
    for i in range(S):
        for j in range(K):
            a = v[i] + log_A[i, j] + row[j]
            top = a if a > top else top
    if top == -math.inf:
        return top
    total = 0.0
    for i in range(S):
        for j in range(K):
            total += exp(v[i] + log_A[i, j] + row[j] - top)
    return math.log(total) + top


@njit(**KERNEL)
def _added_plainly(v: Array, A: Array, row: Array) -> float:
    """Log of sum_ij v_i A_ij exp(row_j)."""
    K = v.shape[0]
    top = row.max()
    total = 0.0
    for j in range(K):
        p = 0.0
        for i in range(K):
            p += v[i] * A[i, j]
        total += p * exp(row[j] - top)
    return math.log(total) + top


@njit(**KERNEL)
def steps(start: int, stop: int, log_initial: Array, log_A: Array, x: Array, lengths: Array, out: Array) -> None:
    """Fill ``out`` (B, T); zero at or after the length, and behind a step of probability zero."""
    T, K = x.shape[1:]
    messages = np.empty((T, K))
    edge = np.empty(K)
    A = np.empty((K, K))
    nothing = np.zeros(1)
    for b in range(start, stop):
        n = lengths[b]
        out[b] = 0.0
        if n == 0:
            continue
        chain = log_A[b if log_A.shape[0] > 1 else 0]
        first = log_initial[b if log_initial.shape[0] > 1 else 0]
        _, good = carry(first, chain, x[b], 0, n, 1, True, messages, edge)
        if not good:
            filter_exactly(first, chain, x[b], n, True, messages)
        out[b, 0] = _added(nothing, np.zeros((1, K)), first + x[b, 0])
        top = 0.0
        for t in range(1, n):
            if out[b, t - 1] == -math.inf:
                break
            step = chain[t - 1 if chain.shape[0] > 1 else 0]
            if not good:
                out[b, t] = _added(messages[t - 1], step, x[b, t])
                continue
            if t == 1 or chain.shape[0] > 1:
                top = step.max()
                for i in range(K):
                    for j in range(K):
                        A[i, j] = exp(step[i, j] - top)
            out[b, t] = _added_plainly(messages[t - 1], A, x[b, t]) + top
