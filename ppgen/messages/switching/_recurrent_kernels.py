"""The particle filter and smoother of a recurrent switching system in compiled loops.

A particle is a discrete and a continuous state. Each step gives every particle a child of each discrete state, weighed
by how well it explains what is seen with its continuous state integrated out; those that stay are drawn by these
weights, and then their continuous states given what is seen. Paths are drawn backwards through all particles.
"""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array
from ppgen.messages.switching._kernels import _pick

__all__ = ["smooth_recurrent"]


@njit(**KERNEL)
def _log_moves(sticks: Array, origin: int, h: Array, out: Array) -> None:
    """Log probabilities of the next discrete state: sticks are broken one after the other."""
    S, L = sticks.shape[0], h.shape[0]
    K, left = S + 1, 0.0
    for k in range(S):
        odds = sticks[k, origin]
        for d in range(L):
            odds += sticks[k, K + d] * h[d]
        softplus = max(odds, 0.0) + math.log1p(math.exp(-abs(odds)))
        out[k] = left + odds - softplus
        left -= softplus
    out[S] = left


@njit(**KERNEL)
def _move(A: Array, h: Array, drive: Array, mean: Array) -> None:
    """Write A [h; drive]."""
    L = h.shape[0]
    for d in range(A.shape[0]):
        total = 0.0
        for j in range(L):
            total += A[d, j] * h[j]
        for j in range(drive.shape[0]):
            total += A[d, L + j] * drive[j]
        mean[d] = total


@njit(**KERNEL)
def _root(Q: Array, seen: Array, root: Array) -> float:
    """Write the Cholesky factor of Q + seen; return half its log determinant."""
    L, half = Q.shape[0], 0.0
    for i in range(L):
        for j in range(i + 1):
            total = Q[i, j] + seen[i, j]
            for n in range(j):
                total -= root[i, n] * root[j, n]
            if i == j:
                root[i, i] = math.sqrt(total)
                half += math.log(root[i, i])
            else:
                root[i, j] = total / root[j, j]
    return half


@njit(**KERNEL)
def _weigh(Q: Array, root: Array, slope: Array, mean: Array, white: Array) -> float:
    """Write root⁻¹ (Q mean + slope); return what the mean adds to the log evidence of what is seen."""
    L, gain = Q.shape[0], 0.0
    for i in range(L):
        pull = 0.0
        for j in range(L):
            pull += Q[i, j] * mean[j]
        gain -= mean[i] * pull
        total = pull + slope[i]
        for j in range(i):
            total -= root[i, j] * white[j]
        white[i] = total / root[i, i]
        gain += white[i] * white[i]
    return 0.5 * gain


@njit(**KERNEL)
def _draw(root: Array, white: Array, h: Array) -> None:
    """Write one draw of the Gaussian of precision root root' and mean root'⁻¹ white."""
    for i in range(root.shape[0] - 1, -1, -1):
        total = white[i] + np.random.standard_normal()  # noqa: NPY002 (the kernel's own stream, seeded by row)
        for j in range(i + 1, root.shape[0]):
            total -= root[j, i] * h[j]
        h[i] = total / root[i, i]


@njit(**KERNEL)
def _thin(scores: Array, count: int, chosen: Array) -> float:
    """Systematic resampling by log weights; write what is chosen, return the log of their sum."""
    top = scores[:count].max()
    if not top > -np.inf:
        return float(top)
    total = 0.0
    for c in range(count):
        scores[c] = math.exp(scores[c] - top)
        total += scores[c]
    step = total / chosen.shape[0]
    left = np.random.random() * step  # noqa: NPY002
    c, reached = 0, scores[0]
    for p in range(chosen.shape[0]):
        while reached <= left and c < count - 1:
            c += 1
            reached += scores[c]
        chosen[p] = c
        left += step
    return float(top + math.log(total))


@njit(**KERNEL)
def smooth_recurrent(
    start: int,
    stop: int,
    log_initial: Array,
    sticks: Array,
    A: Array,
    Q: Array,
    half_log_det: Array,
    drive: Array,
    seen: Array,
    slope: Array,
    own: Array,
    lengths: Array,
    particles: int,
    seeds: Array,
    evidence: Array,
    marginals: Array,
    means: Array,
    z_paths: Array,
    h_paths: Array,
) -> None:
    """Log evidence (N,), marginals (N, T, K), means (N, T, L) and paths (n, N, T) of sequences ``start`` to ``stop``.

    The last of ``A``, ``Q`` and ``half_log_det`` are of the first step.
    """
    K, L, P = log_initial.shape[0], A.shape[1], particles
    switches = seen.shape[0] > 1
    roots, bases = np.zeros((K, L, L)), np.zeros(K)
    scores, chosen, moves = np.zeros(P * K), np.zeros(P, np.int64), np.zeros(K)
    mean, white = np.zeros(L), np.zeros(L)
    for b in range(start, stop):
        n = lengths[b]
        evidence[b] = 0.0
        if n == 0:
            continue
        np.random.seed(seeds[b])  # noqa: NPY002
        h, z = np.zeros((n, P, L)), np.zeros((n, P), np.int64)
        nowhere = np.zeros(L)
        for t in range(n):
            row, step = min(b, seen.shape[1] - 1), min(t, seen.shape[2] - 1)
            for k in range(K):
                regime, view = (k if t > 0 else K), (k if switches else 0)
                half = _root(Q[regime], seen[view, row, step], roots[k])
                bases[k] = half_log_det[regime] - half + own[view, b, t]
            count = P if t > 0 else 1
            for i in range(count):
                if t > 0:
                    _log_moves(sticks, z[t - 1, i], h[t - 1, i], moves)
                for k in range(K):
                    _move(A[k if t > 0 else K], h[t - 1, i] if t > 0 else nowhere, drive[b, t], mean)
                    gain = _weigh(Q[k if t > 0 else K], roots[k], slope[k if switches else 0, b, t], mean, white)
                    scores[i * K + k] = (moves[k] if t > 0 else log_initial[k]) + bases[k] + gain
            total = _thin(scores, count * K, chosen)
            evidence[b] += total - math.log(count)
            if not total > -np.inf:
                break
            for p in range(P):
                i, k = chosen[p] // K, chosen[p] % K
                _move(A[k if t > 0 else K], h[t - 1, i] if t > 0 else nowhere, drive[b, t], mean)
                _weigh(Q[k if t > 0 else K], roots[k], slope[k if switches else 0, b, t], mean, white)
                _draw(roots[k], white, h[t, p])
                z[t, p] = k
        if evidence[b] > -np.inf:
            _backwards(n, sticks, A, Q, drive[b], z, h, marginals[b], means[b], z_paths[:, b], h_paths[:, b])


@njit(**KERNEL)
def _backwards(
    n: int,
    sticks: Array,
    A: Array,
    Q: Array,
    drive: Array,
    z: Array,
    h: Array,
    marginals: Array,
    means: Array,
    z_paths: Array,
    h_paths: Array,
) -> None:
    """Draw paths backwards through the particles, and average over these what is next to each path."""
    draws, P, L = z_paths.shape[0], z.shape[1], h.shape[2]
    weights, moves, mean, off = np.zeros(P), np.zeros(A.shape[0] - 1), np.zeros(L), np.zeros(L)
    for s in range(draws):
        for t in range(n - 1, -1, -1):
            total = 0.0
            if t == n - 1:
                weights[:] = 1.0
                total = float(P)
            else:
                k = z_paths[s, t + 1]
                for i in range(P):
                    _log_moves(sticks, z[t, i], h[t, i], moves)
                    _move(A[k], h[t, i], drive[t + 1], mean)
                    score = moves[k]
                    for d in range(L):
                        off[d] = h_paths[s, t + 1, d] - mean[d]
                    for d in range(L):
                        inner = 0.0
                        for e in range(L):
                            inner += Q[k, d, e] * off[e]
                        score -= 0.5 * off[d] * inner
                    weights[i] = score
                top = weights.max()
                for i in range(P):
                    weights[i] = math.exp(weights[i] - top)
                    total += weights[i]
            for i in range(P):
                share = weights[i] / (total * draws)
                marginals[t, z[t, i]] += share
                for d in range(L):
                    means[t, d] += share * h[t, i, d]
            picked = _pick(weights, np.random.random())  # noqa: NPY002
            z_paths[s, t] = z[t, picked]
            h_paths[s, t] = h[t, picked]
