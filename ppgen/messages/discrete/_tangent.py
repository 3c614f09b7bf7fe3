r"""The second derivative of a discrete chain's log-normaliser in one direction, in compiled loops.

The direction gives every path a score f. The derivative of an expected count is then the count's covariance with f:
of state k at step t, :math:`\gamma_{tk} (E[f \mid z_t = k] - E[f])`. The conditional expectation is a part from the
past and one from the future, each carried from step to step by the chain's own conditional probabilities. All on
logarithms, so that nothing is lost; expectations are kept small by taking off constants that cancel.
"""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp
from ppgen.messages.discrete._exact import normalize_log

__all__ = ["tangent"]


@njit(**KERNEL)
def _expect(log_w: Array, f: Array, w: Array) -> tuple[float, float]:
    """Log of the sum of exp(log_w), and the mean of f under its shares, which go to ``w``; zeros where all are -inf."""
    n = log_w.shape[0]
    top = log_w[0]
    for k in range(1, n):
        top = top if log_w[k] <= top else log_w[k]
    if top == -math.inf:
        w[:] = 0.0
        return top, 0.0
    total = 0.0
    for k in range(n):
        w[k] = exp(log_w[k] - top)
    for k in range(n):
        total += w[k]
    mean = 0.0
    for k in range(n):
        w[k] /= total
        mean += w[k] * f[k] if w[k] > 0.0 else 0.0
    return top + math.log(total), mean


@njit(**KERNEL)
def _forward(
    log_initial: Array, log_A: Array, x: Array, u: Array, V: Array, y: Array, n: int, a: Array, F: Array
) -> bool:
    """Messages ``a`` (n, K), and ``F``, what the past is expected to have added to f; False if no path is possible."""
    K = x.shape[1]
    log_w = np.empty(K)
    f = np.empty(K)
    w = np.empty(K)
    for t in range(n):
        for j in range(K):
            a[t, j] = log_initial[j]
            F[t, j] = u[j]
            if t > 0:
                step = t - 1 if log_A.shape[0] > 1 else 0
                for i in range(K):
                    log_w[i] = a[t - 1, i] + log_A[step, i, j]
                    f[i] = F[t - 1, i] + V[step, i, j]
                a[t, j], F[t, j] = _expect(log_w, f, w)
            a[t, j] += x[t, j]
            F[t, j] += y[t, j]
        if normalize_log(a[t]) == -math.inf:
            return False
        _, mean = _expect(a[t], F[t], w)
        for j in range(K):
            F[t, j] -= mean
    return True


@njit(**KERNEL)
def _backward(
    log_A: Array, x: Array, V: Array, y: Array, n: int, a: Array, F: Array, marginals: Array, counts: Array
) -> None:
    """Carry what the future is expected to add back over ``a`` and ``F``, and write the derivatives."""
    K = x.shape[1]
    ahead = np.empty(K)
    f = np.empty(K)
    b = np.zeros(K)
    G = np.zeros(K)
    w = np.zeros((K, K))
    log_w = np.empty(K)
    both = np.empty(K)
    gamma = np.empty(K)
    for t in range(n - 1, -1, -1):
        step = t if log_A.shape[0] > 1 else 0
        if t < n - 1:
            for j in range(K):
                ahead[j] = x[t + 1, j] + b[j]
            normalize_log(ahead)
            for j in range(K):
                both[j] = y[t + 1, j] + G[j]
            for i in range(K):
                for j in range(K):
                    log_w[j] = log_A[step, i, j] + ahead[j]
                    f[j] = V[step, i, j] + both[j]
                b[i], G[i] = _expect(log_w, f, w[i])
        for k in range(K):
            log_w[k] = a[t, k] + b[k]
            f[k] = F[t, k] + G[k]
        _, mean = _expect(log_w, f, gamma)
        for k in range(K):
            marginals[t, k] = gamma[k] * (f[k] - mean)
        if t < n - 1:
            for i in range(K):
                for j in range(K):
                    counts[step, i, j] += gamma[i] * w[i, j] * (F[t, i] + V[step, i, j] + both[j] - mean)
        _, mean = _expect(log_w, G, gamma)
        for k in range(K):
            G[k] -= mean


@njit(**KERNEL)
def tangent(
    start: int,
    stop: int,
    log_initial: Array,
    log_A: Array,
    x: Array,
    lengths: Array,
    u: Array,
    V: Array,
    y: Array,
    initial: Array,
    counts: Array,
    marginals: Array,
) -> None:
    """Derivatives of the expected counts in direction (u, V, y); zeros come in where nothing happens."""
    T, K = x.shape[1:]
    a = np.empty((T, K))
    F = np.empty((T, K))
    for b in range(start, stop):
        n = lengths[b]
        first = log_initial[b if log_initial.shape[0] > 1 else 0]
        A = log_A[b if log_A.shape[0] > 1 else 0]
        if n > 0 and _forward(first, A, x[b], u[b], V[b], y[b], n, a, F):
            _backward(A, x[b], V[b], y[b], n, a, F, marginals[b], counts[b])
            initial[b] = marginals[b, 0]
