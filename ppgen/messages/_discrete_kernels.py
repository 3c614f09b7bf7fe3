"""Forward-backward in compiled loops.

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

__all__ = ["cross", "finish", "join", "sweep"]

_CHUNK = 64  # steps whose exponentials are taken at once
_LOST = 1e-200  # a message entry below this has lost, or will lose, its digits
_TINY = -230.0  # log of the least transition (relative to the greatest) that the scaled kernels take
_IMPOSSIBLE = 1e-250


@njit(**KERNEL)
def _padded(K: int) -> int:
    return (K + 7) // 8 * 8


@njit(**KERNEL)
def _load_transition(log_A: Array, turned: bool, A: Array) -> tuple[float, int]:
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
            elif not a >= _TINY:
                kind = 2
            if turned:
                A[j, i] = exp(a)
            else:
                A[i, j] = exp(a)
    return top, kind


@njit(**KERNEL)
def _load_emissions(x: Array, t: int, step: int, count: int, e: Array) -> float:
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
def _multiply(A: Array, v: Array, out: Array) -> None:
    """Out = A v, four rows at a time: sums, unlike updates of ``out``, need no check that arrays overlap."""
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
def _absorb(p: Array, e: Array, row: Array, guarded: bool, v: Array) -> float:
    """V = p * e over its sum; return the sum, or 0 where the rescaled message is not to be trusted."""
    K = row.shape[0]
    for k in range(K):
        v[k] = p[k] * e[k]
    total = 0.0
    for k in range(K):
        total += v[k]
    if guarded:
        for k in range(K):
            if p[k] > 0.0 and row[k] > -math.inf and not v[k] >= _LOST * total:
                return 0.0
    if not total >= _IMPOSSIBLE:
        return 0.0
    scale = 1.0 / total
    for k in range(K):
        v[k] *= scale
    return total


@njit(**KERNEL)
def _start(first: Array, row: Array, guarded: bool, v: Array) -> tuple[float, bool]:
    """V = exp(first + row), normalised; return the log of its sum, and whether it is to be trusted."""
    K = row.shape[0]
    top = -math.inf
    for k in range(K):
        if not first[k] + row[k] <= top:
            top = first[k] + row[k]
    if not abs(top) < math.inf:
        return 0.0, False
    for k in range(K):
        v[k] = exp(first[k] + row[k] - top)
        if guarded and first[k] + row[k] > -math.inf and v[k] < _LOST:
            return 0.0, False
    total = 0.0
    for k in range(K):
        total += v[k]
    for k in range(K):
        v[k] /= total
    return top + math.log(total), True


@njit(**KERNEL)
def _sweep_one(
    first: Array, log_A: Array, x: Array, start: int, stop: int, step: int, store: bool, messages: Array, edge: Array
) -> tuple[float, bool]:
    """Carry a message from ``start`` up to, not including, ``stop``; return its log scale and whether to trust it."""
    K = x.shape[1]
    P = _padded(K)
    A = np.zeros((P, P))
    e = np.zeros((_CHUNK, P))
    v = np.zeros(P)
    p = np.zeros(P)
    varying = log_A.shape[0] > 1
    top, kind = _load_transition(log_A[0], step > 0, A)
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
        count = min(_CHUNK, abs(stop - t))
        log_scale += _load_emissions(x, t, step, count, e)
        for s in range(count):
            if varying:
                top, kind = _load_transition(log_A[t - 1 if step > 0 else t], step > 0, A)
                if kind == 2:
                    return 0.0, False
                log_scale += top
            _multiply(A, v, p)
            total = _absorb(p, e[s], x[t], guarded, v)
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
            log_scale[task], trusted[task] = _sweep_one(first, A, x[b], 0, middle, 1, store, messages[b], edge[task])
        elif task % 2 == 1 and n > 1:
            log_scale[task], trusted[task] = _sweep_one(
                flat, A, x[b], n - 1, middle - 1, -1, store, messages[b], edge[task]
            )


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
        if total >= _IMPOSSIBLE:
            value[b] += math.log(total) + top
        else:
            trusted[2 * b] = False


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
    P = _padded(K)
    A = np.zeros((P, P))
    e = np.zeros((_CHUNK, P))
    carried = np.zeros((P, _CHUNK))  # time runs along the rows, so that their products are dot products
    stored = np.zeros((P, _CHUNK))
    v = np.zeros(P)
    p = np.zeros(P)
    v[:K] = edge
    varying = log_A.shape[0] > 1
    top, kind = _load_transition(log_A[0], step > 0, A)
    guarded = varying or kind > 0
    t = start
    while t != stop:
        count = min(_CHUNK, abs(stop - t))
        _load_emissions(x, t, step, count, e)
        for s in range(count):
            if varying:
                _load_transition(log_A[t - 1 if step > 0 else t], step > 0, A)
            _multiply(A, v, p)
            total = 0.0
            for k in range(K):
                total += p[k] * messages[t, k]
            if not total >= _IMPOSSIBLE:
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
            if t + step != stop and _absorb(p, e[s], x[t], guarded, v) == 0.0:
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
