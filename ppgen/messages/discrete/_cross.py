"""Second half of forward-backward: each pass continues into the other's half and combines the two messages there."""

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp
from ppgen.messages.discrete._kernels import (
    IMPOSSIBLE,
    STEPS_AT_ONCE,
    absorb,
    load_emissions,
    load_transition,
    multiply,
    padded,
)

__all__ = ["cross", "finish"]


@njit(**KERNEL)
def _cross_one(
    edge: Array,
    log_A: Array,
    x: Array,
    start: int,
    stop: int,
    step: int,
    skip: bool,
    weight: float,
    messages: Array,
    pairs: Array,
    log_counts: Array,
) -> bool:
    """Carry ``edge`` on over the other task's messages and make them marginals; False if not to be trusted.

    ``pairs`` (K, K) sums the products (carried message) x (stored message) for a constant transition; a varying one
    gets its finished counts in ``log_counts`` (T - 1, K, K).
    """
    K = x.shape[1]
    P = padded(K)
    A = np.zeros((P, P))
    e = np.zeros((STEPS_AT_ONCE, P))
    carried = np.zeros((P, STEPS_AT_ONCE))  # time runs along the rows, so that their products are dot products
    stored = np.zeros((P, STEPS_AT_ONCE))
    v = np.zeros(P)
    p = np.zeros(P)
    v[:K] = edge
    varying = log_A.shape[0] > 1
    top, kind = load_transition(log_A[0], step > 0, A)
    guarded = varying or kind > 0
    t = start
    while t != stop:
        count = min(STEPS_AT_ONCE, abs(stop - t))
        load_emissions(x, t, step, count, e)
        for s in range(count):
            if varying:
                load_transition(log_A[t - 1 if step > 0 else t], step > 0, A)
            multiply(A, v, p)
            total = 0.0
            for k in range(K):
                total += p[k] * messages[t, k]
            if not total >= IMPOSSIBLE:
                return False
            scale = weight / total
            if skip and t == start:
                scale = 0.0  # the other task counts the pair in the middle
            for k in range(K):
                carried[k, s] = v[k]
                stored[k, s] = messages[t, k] * scale
            if varying and scale != 0.0:
                _count(A, v, messages[t], scale, step, log_counts[t - 1 if step > 0 else t])
            scale = weight / total
            for k in range(K):
                messages[t, k] *= p[k] * scale
            if t + step != stop and absorb(p, e[s], x[t], guarded, v) == 0.0:
                return False
            t += step
        if not varying:
            carried[:, count:] = 0.0
            _add_products(carried, stored, pairs)
    return True


@njit(**KERNEL)
def _add_products(carried: Array, stored: Array, pairs: Array) -> None:
    """Pairs += carried stored'."""
    K = pairs.shape[0]
    n = carried.shape[1]
    for i in range(K):
        for j in range(0, K, 4):
            a = 0.0
            b = 0.0
            c = 0.0
            d = 0.0
            for s in range(n):
                a += carried[i, s] * stored[j, s]
                b += carried[i, s] * stored[j + 1, s]
                c += carried[i, s] * stored[j + 2, s]
                d += carried[i, s] * stored[j + 3, s]
            pairs[i, j] += a
            if j + 1 < K:
                pairs[i, j + 1] += b
            if j + 2 < K:
                pairs[i, j + 2] += c
            if j + 3 < K:
                pairs[i, j + 3] += d


@njit(**KERNEL)
def _count(A: Array, v: Array, w: Array, scale: float, step: int, counts: Array) -> None:
    """Expected transitions at one step: A (which is turned over when going forward) times both messages."""
    K = w.shape[0]
    for i in range(K):
        for j in range(K):
            if step > 0:
                counts[i, j] = v[i] * A[j, i] * w[j] * scale
            else:
                counts[i, j] = w[i] * A[i, j] * v[j] * scale


@njit(**KERNEL)
def cross(
    start: int,
    stop: int,
    log_A: Array,
    x: Array,
    lengths: Array,
    weights: Array,
    edge: Array,
    trusted: Array,
    messages: Array,
    pairs: Array,
    counts: Array,
) -> None:
    """Phase two: ``messages`` become marginals; ``pairs`` (2B, K, K) are each task's share of the counts."""
    for task in range(start, stop):
        b = task // 2
        n = lengths[b]
        if not (trusted[2 * b] and trusted[2 * b + 1]):
            continue
        A = log_A[b if log_A.shape[0] > 1 else 0]
        middle = (n + 1) // 2
        pairs[task] = 0.0
        if n == 1 and task % 2 == 0:
            messages[b, 0] *= weights[b]
        elif n > 1 and task % 2 == 0:
            trusted[task] = _cross_one(
                edge[task], A, x[b], middle, n, 1, False, weights[b], messages[b], pairs[task], counts[b]
            )
        elif n > 1:
            trusted[task] = _cross_one(
                edge[task], A, x[b], middle - 1, -1, -1, True, weights[b], messages[b], pairs[task], counts[b]
            )


@njit(**KERNEL)
def finish(
    start: int, stop: int, log_A: Array, lengths: Array, pairs: Array, marginals: Array, initial: Array, counts: Array
) -> None:
    """Counts from the two tasks' shares; zeros where the sequence has ended."""
    K = log_A.shape[2]
    for b in range(start, stop):
        n = lengths[b]
        marginals[b, n:] = 0.0
        initial[b] = marginals[b, 0]
        A = log_A[b if log_A.shape[0] > 1 else 0]
        if A.shape[0] == 1:
            top = A[0].max()
            for i in range(K):
                for j in range(K):
                    both = pairs[2 * b, i, j] + pairs[2 * b + 1, j, i]
                    counts[b, 0, i, j] = both * exp(A[0, i, j] - top)
        else:
            counts[b, max(n - 1, 0) :] = 0.0
