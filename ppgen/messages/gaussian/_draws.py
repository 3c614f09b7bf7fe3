r"""Draws of a Gaussian chain that know their derivative, in compiled loops.

Backwards in time, :math:`x_t = o_t + G_t x_{t+1} + M_t \varepsilon_t` with :math:`M_t` the lower Cholesky factor of the
covariance of ``x_t`` given ``x_{t+1}``. The gradient runs the other way: forward in time through the draws, back
through the elimination, whose factors are kept. That of a Cholesky factor: Murray (2016), "Differentiation of the
Cholesky decomposition".
"""

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array
from ppgen.messages.gaussian._kernels import invert_factor, near
from ppgen.messages.gaussian._tangent import add_product

__all__ = ["draw", "gradient"]


@njit(**KERNEL)
def draw(start: int, stop: int, offset: Array, gain: Array, root: Array, noise: Array, x: Array) -> None:
    """Fill ``x`` (n, B, T, L) from standard normal ``noise``; ``root`` comes as covariances and becomes their roots."""
    n, _, T, L = x.shape
    C = np.zeros((L, L))
    inverse = np.zeros((L, L))
    last = np.empty((L, L))
    for b in range(start, stop):
        for t in range(T - 1, -1, -1):
            if t == T - 1 or not near(root[b, t], last, 0.0):
                invert_factor(root[b, t], root[b, t], C, inverse)
                last[:] = root[b, t]
            root[b, t] = C
            for s in range(n):
                for i in range(L):
                    total = offset[b, t, i]
                    for k in range(i + 1):
                        total += C[i, k] * noise[s, b, t, k]
                    if t + 1 < T:
                        for k in range(L):
                            total += gain[b, t, i, k] * x[s, b, t + 1, k]
                    x[s, b, t, i] = total


@njit(**KERNEL)
def _through_the_draws(gain: Array, g: Array) -> None:
    """g_t += G_{t-1}' g_{t-1} for each draw of one sequence, in place."""
    n, T, L = g.shape
    for t in range(1, T):
        for s in range(n):
            for k in range(L):
                a = g[s, t - 1, k]
                for i in range(L):
                    g[s, t, i] += gain[t - 1, k, i] * a


@njit(**KERNEL)
def _at_block(M: Array, g: Array, noise: Array, w: Array, u: Array, E: Array) -> None:
    """For each draw u = M M' g, w += u; E = the lower triangle of the sum of (M' g) noise', half its diagonal."""
    n, L = g.shape
    q = np.empty(L)
    E[:] = 0.0
    for s in range(n):
        for i in range(L):
            q[i] = 0.0
            u[s, i] = 0.0
        for k in range(L):
            for i in range(k + 1):
                q[i] += M[k, i] * g[s, k]
        for i in range(L):
            total = 0.0
            for k in range(i + 1):
                total += M[i, k] * q[k]
            u[s, i] = total
            w[s, i] += total
            for j in range(i):
                E[i, j] += q[i] * noise[s, j]
            E[i, i] += 0.5 * q[i] * noise[s, i]


@njit(**KERNEL)
def _gradient_one(
    g: Array,
    x: Array,
    noise: Array,
    root: Array,
    gain: Array,
    offset: Array,
    out: Array,
    out_cross: Array,
    out_h: Array,
) -> None:
    n, T, L = x.shape
    P, K, E, ME, turned = np.zeros((5, L, L))
    w, u = np.zeros((2, n, L))
    carried = np.empty(L)
    _through_the_draws(gain, g)
    for t in range(T - 1, -1, -1):
        K[:] = 0.0
        if t + 1 < T:
            for s in range(n):
                carried[:] = w[s]
                for i in range(L):
                    total = 0.0
                    for k in range(L):
                        total += gain[t, i, k] * carried[k]
                    w[s, i] = total
            add_product(gain[t], P, 1.0, K)
            out_cross[t] = K
        _at_block(root[t], g[:, t], noise[:, t], w, u, E)
        for i in range(L):
            total = 0.0
            for s in range(n):
                total += w[s, i]
            out_h[t, i] = total
        ME[:] = 0.0
        add_product(root[t], E, 1.0, ME)
        for i in range(L):
            for j in range(L):
                turned[i, j] = root[t, j, i]
        P[:] = 0.0
        add_product(ME, turned, -1.0, P)
        for s in range(n):
            for i in range(L):
                for j in range(L):
                    P[i, j] -= u[s, i] * offset[t, j]
        if t + 1 < T:
            for i in range(L):
                for s in range(n):
                    for j in range(L):
                        K[i, j] -= u[s, i] * x[s, t + 1, j]
                for j in range(L):
                    K[i, j] -= offset[t, i] * out_h[t + 1, j]
                    out_cross[t, i, j] += K[i, j]
                    turned[i, j] = gain[t, j, i]
            add_product(K, turned, 1.0, P)
        for i in range(L):
            for j in range(i + 1):
                out[t, i, j] = 0.5 * (P[i, j] + P[j, i])
                out[t, j, i] = out[t, i, j]
        P[:] = out[t]


@njit(**KERNEL)
def gradient(
    start: int,
    stop: int,
    g: Array,
    x: Array,
    noise: Array,
    root: Array,
    gain: Array,
    offset: Array,
    out: Array,
    out_cross: Array,
    out_h: Array,
) -> None:
    """Gradients in J, J_cross and h, summed over draws, of what has gradient ``g`` (n, B, T, L); that is spoilt."""
    for b in range(start, stop):
        _gradient_one(g[:, b], x[:, b], noise[:, b], root[b], gain[b], offset[b], out[b], out_cross[b], out_h[b])
