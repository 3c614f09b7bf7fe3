r"""Forward-backward in compiled loops.

.. math::
    \alpha_t(k) \propto e_t(k) \textstyle\sum_j \alpha_{t-1}(j) A_{jk}, \quad
    \beta_t(k) \propto \textstyle\sum_j A_{kj} e_{t+1}(j) \beta_{t+1}(j), \quad
    p(z_t = k) \propto \alpha_t(k) \beta_t(k)

One sequence is two tasks that never wait for each other: one runs forward from the first step and one backward from
the last, each to the middle; then each goes on into the half where the other left its messages, and turns them into
marginals in place. So two threads share one sequence, and memory is one array of the size of the potentials.

Messages are probabilities rescaled at every step. That loses what is 1e-300 times less likely than the rest, which
is harmless while every state can reach every other; where it may not be, the sequence is done again by the slower
logarithmic kernel, which loses nothing.
"""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array, exp

__all__ = [
    "STEPS_AT_ONCE",
    "IMPOSSIBLE",
    "absorb",
    "carry",
    "join",
    "load_emissions",
    "load_transition",
    "multiply",
    "padded",
    "sweep",
]

STEPS_AT_ONCE = 64  # steps whose exponentials are taken at once
SMALL_MESSAGE = 1e-200  # a message entry below this has lost, or will lose, its digits
TINY = -230.0  # log of the least transition (relative to the greatest) that the scaled kernels take
IMPOSSIBLE = 1e-250


@njit(**KERNEL)
def padded(K: int) -> int:
    return (K + 7) // 8 * 8


@njit(**KERNEL)
def load_transition(log_A: Array, turned: bool, A: Array) -> tuple[float, int]:
    """Write exp(log_A - max), turned over or not; return the max, and 0 if dense, 1 if sparse, 2 if out of range."""
    K = log_A.shape[0]
    top = -math.inf
    for i in range(K):
        for j in range(K):
            if not log_A[i, j] <= top:
                top = log_A[i, j]
    if not abs(top) < math.inf:
        return top, 2
    kind = 0
    for i in range(K):
        for j in range(K):
            a = log_A[i, j] - top
            if a == -math.inf:
                kind = max(kind, 1)
            elif not a >= TINY:
                kind = 2
            if turned:
                A[j, i] = exp(a)
            else:
                A[i, j] = exp(a)
    return top, kind


@njit(**KERNEL)
def load_emissions(x: Array, t: int, step: int, count: int, e: Array) -> float:
    """Write exp(x - max of the row) for ``count`` steps from ``t`` on; return the sum of the maxima."""
    K = x.shape[1]
    total = 0.0
    for s in range(count):
        row = x[t + s * step]
        top = row[0]
        for k in range(1, K):
            top = row[k] if row[k] > top else top
        total += top
        for k in range(K):
            e[s, k] = row[k] - top
        if top == -math.inf:
            e[s, :K] = -math.inf
    for s in range(count):
        for k in range(K):
            e[s, k] = exp(e[s, k])
    return total


@njit(**KERNEL)
def multiply(A: Array, v: Array, out: Array) -> None:
    """Write ``out = A v``, four rows at a time: sums, unlike updates of ``out``, need no check that arrays overlap."""
    n = v.shape[0]
    for i in range(0, n, 4):
        a = 0.0
        b = 0.0
        c = 0.0
        d = 0.0
        for j in range(n):
            a += A[i, j] * v[j]
            b += A[i + 1, j] * v[j]
            c += A[i + 2, j] * v[j]
            d += A[i + 3, j] * v[j]
        out[i] = a
        out[i + 1] = b
        out[i + 2] = c
        out[i + 3] = d


@njit(**KERNEL)
def absorb(p: Array, e: Array, row: Array, guarded: bool, v: Array) -> float:
    """Write ``v = p * e`` over its sum; return the sum, or 0 where the rescaled message is not to be trusted."""
    K = row.shape[0]
    for k in range(K):
        v[k] = p[k] * e[k]
    total = 0.0
    for k in range(K):
        total += v[k]
    if guarded:
        for k in range(K):
            if p[k] > 0.0 and row[k] > -math.inf and not v[k] >= SMALL_MESSAGE * total:
                return 0.0
    if not total >= IMPOSSIBLE:
        return 0.0
    scale = 1.0 / total
    for k in range(K):
        v[k] *= scale
    return total


@njit(**KERNEL)
def _start(first: Array, row: Array, guarded: bool, v: Array) -> tuple[float, bool]:
    """Write ``v = exp(first + row)``, normalised; return the log of its sum, and whether it is to be trusted."""
    K = row.shape[0]
    top = -math.inf
    for k in range(K):
        if not first[k] + row[k] <= top:
            top = first[k] + row[k]
    if not abs(top) < math.inf:
        return 0.0, False
    for k in range(K):
        v[k] = exp(first[k] + row[k] - top)
        if guarded and first[k] + row[k] > -math.inf and v[k] < SMALL_MESSAGE:
            return 0.0, False
    total = 0.0
    for k in range(K):
        total += v[k]
    for k in range(K):
        v[k] /= total
    return top + math.log(total), True


@njit(**KERNEL)
def carry(
    first: Array, log_A: Array, x: Array, start: int, stop: int, step: int, store: bool, messages: Array, edge: Array
) -> tuple[float, bool]:
    """Carry a message from ``start`` up to, not including, ``stop``; return its log scale and whether to trust it."""
    K = x.shape[1]
    P = padded(K)
    A = np.zeros((P, P))
    e = np.zeros((STEPS_AT_ONCE, P))
    v = np.zeros(P)
    p = np.zeros(P)
    varying = log_A.shape[0] > 1
    top, kind = load_transition(log_A[0], step > 0, A)
    guarded = varying or kind > 0
    if kind == 2:
        return 0.0, False
    log_scale, good = _start(first, x[start], guarded, v)
    if not good:
        return 0.0, False
    if store:
        messages[start] = v[:K]
    product = 1.0
    t = start + step
    while t != stop:
        count = min(STEPS_AT_ONCE, abs(stop - t))
        log_scale += load_emissions(x, t, step, count, e)
        for s in range(count):
            if varying:
                top, kind = load_transition(log_A[t - 1 if step > 0 else t], step > 0, A)
                if kind == 2:
                    return 0.0, False
                log_scale += top
            multiply(A, v, p)
            total = absorb(p, e[s], x[t], guarded, v)
            if total == 0.0:
                return 0.0, False
            product *= total
            if not 1e-50 < product < 1e50:
                log_scale += math.log(product)
                product = 1.0
            if store:
                for k in range(K):
                    messages[t, k] = v[k]
            t += step
    edge[:] = v[:K]
    if not varying:
        log_scale += top * (abs(stop - start) - 1)  # once: a million roundings of one addend all err to one side
    return log_scale + math.log(product), True


@njit(**KERNEL)
def sweep(
    start: int,
    stop: int,
    log_initial: Array,
    log_A: Array,
    x: Array,
    lengths: Array,
    store: bool,
    messages: Array,
    edge: Array,
    log_scale: Array,
    trusted: Array,
) -> None:
    """Phase one. Task 2b runs sequence b forward, task 2b + 1 backward; ``edge`` gets the messages at the middle."""
    K = x.shape[2]
    flat = np.zeros(K)
    for task in range(start, stop):
        b = task // 2
        n = lengths[b]
        middle = (n + 1) // 2
        A = log_A[b if log_A.shape[0] > 1 else 0]
        first = log_initial[b if log_initial.shape[0] > 1 else 0]
        log_scale[task] = 0.0
        trusted[task] = True
        if task % 2 == 0 and n > 0:
            log_scale[task], trusted[task] = carry(first, A, x[b], 0, middle, 1, store, messages[b], edge[task])
        elif task % 2 == 1 and n > 1:
            log_scale[task], trusted[task] = carry(flat, A, x[b], n - 1, middle - 1, -1, store, messages[b], edge[task])


@njit(**KERNEL)
def join(log_A: Array, lengths: Array, edge: Array, log_scale: Array, trusted: Array, value: Array) -> None:
    """Log-normaliser of each trusted sequence, from the two messages that meet in its middle."""
    for b in range(lengths.shape[0]):
        n = lengths[b]
        value[b] = log_scale[2 * b] + log_scale[2 * b + 1]
        if n < 2 or not (trusted[2 * b] and trusted[2 * b + 1]):
            continue
        A = log_A[b if log_A.shape[0] > 1 else 0]
        middle = (n + 1) // 2
        step = A[middle - 1 if A.shape[0] > 1 else 0]
        top = step.max()
        total = 0.0
        for i in range(edge.shape[1]):
            for j in range(edge.shape[1]):
                total += edge[2 * b, i] * exp(step[i, j] - top) * edge[2 * b + 1, j]
        if total >= IMPOSSIBLE:
            value[b] += math.log(total) + top
        else:
            trusted[2 * b] = False
