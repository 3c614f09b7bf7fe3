"""Paths of a discrete chain in compiled loops: backward sampling, and the Viterbi algorithm on logarithms.

Draws come from messages that are probabilities rescaled at every step; where those are not to be trusted, from
logarithms, as in :mod:`ppgen.messages.discrete._kernels`.
"""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp
from ppgen.messages.discrete._exact import filter_exactly
from ppgen.messages.discrete._kernels import carry

__all__ = ["mode", "sample"]


@njit(**KERNEL)
def _draw(weights: Array, u: float) -> int:
    """Index drawn in proportion to exp(weights - max), by one uniform number; never one of weight zero."""
    top = weights.max()
    total = 0.0
    for k in range(weights.shape[0]):
        total += exp(weights[k] - top)
    left = u * total
    last = 0
    for k in range(weights.shape[0]):
        w = exp(weights[k] - top)
        if w > 0.0:
            last = k
            left -= w
            if left < 0.0:
                break
    return last


@njit(**KERNEL)
def _draw_plainly(weights: Array, u: float) -> int:
    """Index drawn in proportion to ``weights``, by one uniform number; never one of weight zero."""
    total = 0.0
    for k in range(weights.shape[0]):
        total += weights[k]
    left = u * total
    last = 0
    for k in range(weights.shape[0]):
        if weights[k] > 0.0:
            last = k
            left -= weights[k]
            if left < 0.0:
                break
    return last


@njit(**KERNEL)
def _trace_back(log_A: Array, messages: Array, n: int, uniforms: Array, states: Array) -> None:
    """Fill ``states`` (n, T) from messages that are probabilities."""
    steps, K = log_A.shape[:2]
    into = np.empty((K, K))
    w = np.empty(K)
    top = log_A[0].max()
    for i in range(K):
        for j in range(K):
            into[j, i] = exp(log_A[0, i, j] - top)
    for draw in range(states.shape[0]):
        z = _draw_plainly(messages[n - 1], uniforms[draw, n - 1])
        states[draw, n - 1 :] = z
        for t in range(n - 2, -1, -1):
            if steps > 1:
                top = log_A[t, :, z].max()
                for k in range(K):
                    into[z, k] = exp(log_A[t, k, z] - top)
            for k in range(K):
                w[k] = messages[t, k] * into[z, k]
            z = _draw_plainly(w, uniforms[draw, t])
            states[draw, t] = z


@njit(**KERNEL)
def _trace_back_exactly(log_A: Array, messages: Array, n: int, uniforms: Array, states: Array) -> None:
    """Fill ``states`` (n, T) from messages that are logarithms."""
    steps, K = log_A.shape[:2]
    w = np.empty(K)
    for draw in range(states.shape[0]):
        z = _draw(messages[n - 1], uniforms[draw, n - 1])
        states[draw, n - 1 :] = z
        for t in range(n - 2, -1, -1):
            step = t if steps > 1 else 0
            for k in range(K):
                w[k] = messages[t, k] + log_A[step, k, z]
            z = _draw(w, uniforms[draw, t])
            states[draw, t] = z


@njit(**KERNEL)
def sample(
    start: int,
    stop: int,
    log_initial: Array,
    log_A: Array,
    x: Array,
    lengths: Array,
    uniforms: Array,
    states: Array,
    possible: Array,
) -> None:
    """Fill ``states`` (n, B, T); ``possible`` (B,) says where there is anything to draw."""
    T, K = x.shape[1:]
    messages = np.empty((T, K))
    edge = np.empty(K)
    for b in range(start, stop):
        A = log_A[b if log_A.shape[0] > 1 else 0]
        n = lengths[b]
        first = log_initial[b if log_initial.shape[0] > 1 else 0]
        states[:, b, :] = -1
        if n == 0:
            continue
        if carry(first, A, x[b], 0, n, 1, True, messages, edge)[1]:
            _trace_back(A, messages, n, uniforms[:, b], states[:, b])
            continue
        possible[b] = abs(filter_exactly(first, A, x[b], n, True, messages)) < math.inf
        if possible[b]:
            _trace_back_exactly(A, messages, n, uniforms[:, b], states[:, b])


@njit(**KERNEL)
def mode(
    start: int, stop: int, log_initial: Array, log_A: Array, x: Array, lengths: Array, states: Array, possible: Array
) -> None:
    """Fill ``states`` (B, T) with the most probable paths."""
    T, K = x.shape[1:]
    came_from = np.empty((T, K), np.int32)
    v = np.empty(K)
    best = np.empty(K)
    for b in range(start, stop):
        A = log_A[b if log_A.shape[0] > 1 else 0]
        n = lengths[b]
        states[b] = -1
        if n == 0:
            continue
        v[:] = log_initial[b if log_initial.shape[0] > 1 else 0] + x[b, 0]
        possible[b] = _recenter(v)
        for t in range(1, n):
            _maximize(A[t - 1 if A.shape[0] > 1 else 0], v, best, came_from[t])
            for k in range(K):
                v[k] = best[k] + x[b, t, k]
            possible[b] = possible[b] and _recenter(v)
        z = np.argmax(v)
        states[b, n - 1 :] = z
        for t in range(n - 1, 0, -1):
            z = came_from[t, z]
            states[b, t - 1] = z


@njit(**KERNEL)
def _recenter(v: Array) -> bool:
    """Subtract the maximum, so that a million steps lose no digits; False if no entry is finite, or one is NaN."""
    top = -math.inf
    for k in range(v.shape[0]):
        if not v[k] <= top:
            top = v[k]
    if not abs(top) < math.inf:
        return False
    for k in range(v.shape[0]):
        v[k] -= top
    return True


@njit(**KERNEL)
def _maximize(log_A: Array, v: Array, best: Array, came_from: Array) -> None:
    """best_j = max_i v_i + log_A_ij, and the first i that reaches it."""
    K = v.shape[0]
    for j in range(K):
        best[j] = v[0] + log_A[0, j]
        came_from[j] = 0
    for i in range(1, K):
        for j in range(K):
            a = v[i] + log_A[i, j]
            better = a > best[j]
            best[j] = a if better else best[j]
            came_from[j] = i if better else came_from[j]
