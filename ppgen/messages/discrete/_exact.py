"""Forward-backward on logarithms, in compiled loops: several times slower than rescaled messages, and loses nothing."""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp

__all__ = ["exact", "filter_exactly", "normalize_log"]


@njit(**KERNEL)
def _log_multiply(log_A: Array, v: Array, out: Array, top: Array) -> None:
    """out_j = log sum_i exp(v_i + log_A_ij), losing nothing."""
    K = v.shape[0]
    for j in range(K):
        top[j] = -math.inf
        out[j] = 0.0
    for i in range(K):
        for j in range(K):
            a = v[i] + log_A[i, j]
            top[j] = top[j] if a <= top[j] else a
    for j in range(K):
        top[j] = 0.0 if top[j] == -math.inf else top[j]
    for i in range(K):
        for j in range(K):
            out[j] += exp(v[i] + log_A[i, j] - top[j])
    for j in range(K):
        out[j] = math.log(out[j]) + top[j] if out[j] != 0.0 else -math.inf


@njit(**KERNEL)
def normalize_log(v: Array) -> float:
    """Subtract log sum exp(v) from v and return it; -inf leaves v alone."""
    top = v[0]
    for k in range(1, v.shape[0]):
        top = v[k] if v[k] > top else top
    if top == -math.inf:
        return top
    total = 0.0
    for k in range(v.shape[0]):
        total += exp(v[k] - top)
    top += math.log(total)
    for k in range(v.shape[0]):
        v[k] -= top
    return top


@njit(**KERNEL)
def filter_exactly(log_initial: Array, log_A: Array, x: Array, n: int, store: bool, messages: Array) -> float:
    """Forward pass on logarithms; return the log-normaliser and store the normalised messages."""
    K = x.shape[1]
    v = np.empty(K)
    p = log_initial.copy()
    top = np.empty(K)
    value = 0.0
    for t in range(n):
        if t > 0:
            _log_multiply(log_A[t - 1 if log_A.shape[0] > 1 else 0], v, p, top)
        for k in range(K):
            v[k] = p[k] + x[t, k]
        value += normalize_log(v)
        if value == -math.inf:
            return value
        if store:
            messages[t] = v
    return value


@njit(**KERNEL)
def _smooth_exactly(log_A: Array, x: Array, n: int, weight: float, marginals: Array, counts: Array) -> None:
    """Backward pass on logarithms over what ``filter_exactly`` stored."""
    K = x.shape[1]
    v = np.empty(K)
    p = np.zeros(K)
    top = np.empty(K)
    turned = log_A[0].T.copy()
    for t in range(n - 1, -1, -1):
        step = t if log_A.shape[0] > 1 else 0
        if t < n - 1:
            if log_A.shape[0] > 1:
                turned[:] = log_A[step].T
            _log_multiply(turned, v, p, top)
        alpha = marginals[t].copy()
        gamma = alpha + p
        together = normalize_log(gamma)
        if t < n - 1:
            for i in range(K):
                for j in range(K):
                    counts[step, i, j] += weight * exp(alpha[i] + log_A[step, i, j] + v[j] - together)
        for k in range(K):
            marginals[t, k] = weight * exp(gamma[k])
            v[k] = p[k] + x[t, k]
        normalize_log(v)


@njit(**KERNEL)
def exact(
    start: int,
    stop: int,
    log_initial: Array,
    log_A: Array,
    x: Array,
    lengths: Array,
    store: bool,
    weights: Array,
    trusted: Array,
    value: Array,
    marginals: Array,
    initial: Array,
    counts: Array,
) -> None:
    """Do the sequences that the scaled kernels could not be trusted with; those of probability zero get zeros."""
    for b in range(start, stop):
        if trusted[2 * b] and trusted[2 * b + 1]:
            continue
        n = lengths[b]
        A = log_A[b if log_A.shape[0] > 1 else 0]
        first = log_initial[b if log_initial.shape[0] > 1 else 0]
        value[b] = filter_exactly(first, A, x[b], n, store, marginals[b])
        if not store:
            continue
        counts[b] = 0.0
        if value[b] == -math.inf:
            marginals[b] = 0.0
        else:
            _smooth_exactly(A, x[b], n, weights[b], marginals[b], counts[b])
        marginals[b, n:] = 0.0
        initial[b] = marginals[b, 0]
