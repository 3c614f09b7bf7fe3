r"""Draws of a Gaussian chain and their gradient, in compiled loops.

Backwards in time, :math:`x_t = o_t + G_t x_{t+1} + U_t \varepsilon_t` with :math:`U_t` an upper triangle,
:math:`U_t U_t'` the covariance of ``x_t`` given ``x_{t+1}``: the inverse of the factor with which the block was
eliminated. In matrices of the whole chain, with L the Cholesky factor of the precision, this is
:math:`x = J^{-1} (h + L \varepsilon)`. So its gradient is one more solve, forward in time through the draws and back,
and the derivative of a Cholesky factor: Murray (2016), "Differentiation of the Cholesky decomposition".

Local matrices are made one by one: of several unpacked from one array, Numba does not know that rows are contiguous.
"""

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array
from ppgen.messages.gaussian import _kernels as kernels
from ppgen.messages.gaussian._products import add_times, times_turned

__all__ = ["draw", "eliminate_and_draw", "gradient", "offsets"]


@njit(**KERNEL)
def _add_up(A: Array, v: Array, out: Array) -> None:
    """Out += A' v."""
    for k in range(A.shape[0]):
        a = v[k]
        for i in range(A.shape[1]):
            out[i] += A[k, i] * a


@njit(**KERNEL)
def offsets(start: int, stop: int, h: Array, gain: Array, root: Array, offset: Array) -> None:
    """Fill ``offset`` (B, T, L) for sequences that share the gains and roots of one."""
    T, L = h.shape[1:]
    r, q, o = np.empty(L), np.empty(L), np.empty(L)
    for b in range(start, stop):
        for t in range(T):
            if t > 0:
                q[:] = r
                r[:] = h[b, t]
                _add_up(gain[0, t - 1], q, r)
            else:
                r[:] = h[b, t]
            q[:] = 0.0
            _add_up(root[0, t], r, q)
            o[:] = 0.0
            add_times(root[0, t], q, 1.0, o)
            offset[b, t] = o


@njit(**KERNEL)
def draw(start: int, stop: int, offset: Array, gain: Array, root: Array, noise: Array, x: Array) -> None:
    """Fill ``x`` (n, B, T, L) from standard normal ``noise``, from last block to first."""
    n, _, T, L = x.shape
    here, ahead = np.empty(L), np.empty(L)
    for b in range(start, stop):
        own = b if root.shape[0] > 1 else 0
        for s in range(n):
            for t in range(T - 1, -1, -1):
                ahead[:] = here
                here[:] = offset[b, t]
                add_times(root[own, t], noise[s, b, t], 1.0, here)
                if t + 1 < T:
                    add_times(gain[own, t], ahead, 1.0, here)
                x[s, b, t] = here


@njit(**KERNEL)
def eliminate_and_draw(
    start: int,
    stop: int,
    which: Array,
    J: Array,
    cross: Array,
    h: Array,
    noise: Array,
    root: Array,
    gain: Array,
    offset: Array,
    x: Array,
    bad: Array,
    least: Array,
) -> None:
    """One sequence after the other, so that what is left of its blocks is in the cache when it is drawn."""
    B, T, L = h.shape
    ends, ends_h, value = np.zeros((2 * B, L, L)), np.zeros((2 * B, L)), np.zeros(2 * B)
    for b in range(start, stop):
        kernels.eliminate(
            2 * b, 2 * b + 2, which, J, cross, h, T - 1, True, True, offset, gain, root, ends, ends_h, value, bad
        )
        kernels.join(b, b + 1, which, J, h, T - 1, True, True, ends, ends_h, offset, root, value, bad, least)
        draw(b, b + 1, offset, gain, root, noise, x)


@njit(**KERNEL)
def _through_the_draws(first: int, last: int, gain: Array, g: Array) -> None:
    """g_t += G_{t-1}' g_{t-1} for each draw of sequences ``first`` to ``last``, in place."""
    n, _, T, L = g.shape
    here, before = np.empty(L), np.empty(L)
    for s in range(n):
        for b in range(first, last):
            here[:] = g[s, b, 0]
            for t in range(1, T):
                before[:] = here
                here[:] = g[s, b, t]
                _add_up(gain[t - 1], before, here)
                g[s, b, t] = here


@njit(**KERNEL)
def _through_the_root(U: Array, q: Array, noise: Array, Y: Array) -> None:
    """Y -= U Phi(q noise'), where Phi takes the upper triangle and half the diagonal."""
    L = U.shape[0]
    for i in range(L):
        passed = 0.0
        for k in range(i, L):
            a = U[i, k] * q[k]
            Y[i, k] -= (passed + 0.5 * a) * noise[k]
            passed += a


@njit(**KERNEL)
def _add_outer(sign: float, a: Array, b: Array, out: Array) -> None:
    """Out += sign a b'."""
    for i in range(a.shape[0]):
        scaled = sign * a[i]
        for j in range(b.shape[0]):
            out[i, j] += scaled * b[j]


@njit(**KERNEL)
def _gradient_some(
    first: int,
    last: int,
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
    """Sequences ``first`` to ``last``, which share roots and gains, blocks from the last to the first.

    ``P`` is the gradient in the precision with which a block was eliminated.
    """
    n, _, T, L = x.shape
    P, GP, A, X = np.zeros((L, L)), np.zeros((L, L)), np.zeros((L, L)), np.zeros((L, L))
    Y, N = np.zeros((L, L)), np.zeros((L, L))
    u, q, own, into, after = np.empty(L), np.empty(L), np.empty(L), np.empty(L), np.empty(L)
    _through_the_draws(first, last, gain, g)
    for t in range(T - 1, -1, -1):
        U = root[t]
        Y[:] = 0.0
        A[:] = 0.0
        if t + 1 < T:
            times_turned(gain[t], P, GP)
            times_turned(GP, gain[t], A)
            for i in range(L):
                for j in range(L):
                    X[i, j] = 2.0 * GP[i, j]
        for b in range(first, last):
            into[:] = 0.0
            if t + 1 < T:
                after[:] = out_h[b, t + 1]
                add_times(gain[t], after, 1.0, into)
                _add_outer(-1.0, offset[b, t], after, X)
                _add_outer(-1.0, offset[b, t], into, A)
            for s in range(n):
                q[:] = 0.0
                _add_up(U, g[s, b, t], q)
                u[:] = 0.0
                add_times(U, q, 1.0, u)
                own[:] = x[s, b, t]
                add_times(U, noise[s, b, t], -1.0, own)
                _through_the_root(U, q, noise[s, b, t], Y)
                _add_outer(-1.0, u, own, A)
                if t + 1 < T:
                    _add_outer(-1.0, u, x[s, b, t + 1], X)
                for i in range(L):
                    into[i] += u[i]
            out_h[b, t] = into
        times_turned(U, Y, N)
        for i in range(L):
            for j in range(i + 1):
                P[i, j] = 0.5 * (A[i, j] + A[j, i] + N[i, j] + N[j, i])
                P[j, i] = P[i, j]
        out[t] = P
        if t + 1 < T:
            out_cross[t] = X


@njit(**KERNEL)
def gradient(
    start: int,
    stop: int,
    share: int,
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
    """Gradients in J, J_cross and h, summed over draws, of what has gradient ``g`` (n, B, T, L); that is spoilt.

    A task takes ``share`` sequences, over which the gradients in J and J_cross are summed too.
    """
    for task in range(start, stop):
        own = task if root.shape[0] > 1 else 0
        last = min((task + 1) * share, g.shape[1])
        _gradient_some(task * share, last, g, x, noise, root[own], gain[own], offset, out[task], out_cross[task], out_h)
