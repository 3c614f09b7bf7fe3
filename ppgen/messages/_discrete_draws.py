"""Paths of a discrete chain in compiled loops: backward sampling and the Viterbi algorithm, on logarithms."""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp
from ppgen.messages._discrete_exact import filter_exactly

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
    w = np.empty(K)
    for b in range(start, stop):
        A = log_A[b if log_A.shape[0] > 1 else 0]
        n = lengths[b]
        first = log_initial[b if log_initial.shape[0] > 1 else 0]
        possible[b] = abs(filter_exactly(first, A, x[b], n, True, messages)) < math.inf
        states[:, b, :] = -1
        if not possible[b] or n == 0:
            continue
        turned = np.empty_like(A[:, :, :])
        for s in range(A.shape[0]):
            turned[s] = A[s].T
        for draw in range(states.shape[0]):
            z = _draw(messages[n - 1], uniforms[draw, b, n - 1])
            states[draw, b, n - 1 :] = z
            for t in range(n - 2, -1, -1):
                into = turned[t if A.shape[0] > 1 else 0, z]
                for k in range(K):
                    w[k] = messages[t, k] + into[k]
                z = _draw(w, uniforms[draw, b, t])
                states[draw, b, t] = z


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
