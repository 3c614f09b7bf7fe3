r"""The second derivative of a Gaussian chain's log-normaliser in one direction, in compiled loops.

The blocks were eliminated from both ends towards the middle (:mod:`ppgen.messages.gaussian._kernels`):
``x_t | x_next ~ N(o + G x_next, S)`` with precision P and linear term r. Their derivatives need no new factor,
:math:`dP_{next} = dJ_{next} + G' dP\, G + G' D + D' G` with D = dJ_cross, and :math:`dG = -S (dP\, G + D)`.
"""

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array

__all__ = ["add_product", "add_turned", "inwards", "outwards"]


@njit(**KERNEL)
def add_product(A: Array, B: Array, sign: float, out: Array) -> None:
    """Out += sign A B."""
    n = A.shape[0]
    for i in range(n):
        for k in range(n):
            a = sign * A[i, k]
            for j in range(n):
                out[i, j] += a * B[k, j]


@njit(**KERNEL)
def add_turned(A: Array, B: Array, sign: float, out: Array) -> None:
    """Out += sign A' B."""
    n = A.shape[0]
    for k in range(n):
        for i in range(n):
            a = sign * A[k, i]
            for j in range(n):
                out[i, j] += a * B[k, j]


@njit(**KERNEL)
def _add_vector(A: Array, v: Array, sign: float, out: Array) -> None:
    """Out += sign A v."""
    for i in range(A.shape[0]):
        total = 0.0
        for j in range(A.shape[1]):
            total += A[i, j] * v[j]
        out[i] += sign * total


@njit(**KERNEL)
def _coupled(dP: Array, gain: Array, D: Array, turned: bool, K: Array) -> None:
    """K = dP G + D, or with D'."""
    n = K.shape[0]
    for i in range(n):
        for j in range(n):
            K[i, j] = D[j, i] if turned else D[i, j]
    add_product(dP, gain, 1.0, K)


@njit(**KERNEL)
def _inwards_one(
    dJ: Array,
    D: Array,
    dh: Array,
    offset: Array,
    gain: Array,
    start: int,
    stop: int,
    step: int,
    incoming: Array,
    incoming_h: Array,
    dP: Array,
    dr: Array,
) -> None:
    """Fill ``dP`` and ``dr`` from ``start`` up to, not including, ``stop``, and what is to be added there."""
    L = dh.shape[1]
    K = np.empty((L, L))
    for t in range(start, stop, step):
        link = t if step > 0 else t - 1
        for i in range(L):
            dr[t, i] = dh[t, i] + incoming_h[i]
            for j in range(L):
                dP[t, i, j] = 0.5 * (dJ[t, i, j] + dJ[t, j, i]) + incoming[i, j]
        _coupled(dP[t], gain[link], D[link], step < 0, K)
        incoming[:] = 0.0
        add_turned(gain[link], K, 1.0, incoming)
        if step > 0:
            add_turned(D[link], gain[link], 1.0, incoming)
        else:
            add_product(D[link], gain[link], 1.0, incoming)
        incoming_h[:] = 0.0
        for k in range(L):
            for j in range(L):
                incoming_h[j] += gain[link, k, j] * dr[t, k] - K[k, j] * offset[t, k]


@njit(**KERNEL)
def inwards(
    start: int,
    stop: int,
    middle: Array,
    dJ: Array,
    D: Array,
    dh: Array,
    offset: Array,
    gain: Array,
    incoming: Array,
    incoming_h: Array,
    dP: Array,
    dr: Array,
) -> None:
    """Phase one. Task 2b takes sequence b's blocks before ``middle[b]``, task 2b + 1 those after."""
    for task in range(start, stop):
        b = task // 2
        first, step = (0, 1) if task % 2 == 0 else (dh.shape[1] - 1, -1)
        _inwards_one(
            dJ[b],
            D[b],
            dh[b],
            offset[b],
            gain[b],
            first,
            middle[b],
            step,
            incoming[task],
            incoming_h[task],
            dP[b],
            dr[b],
        )


@njit(**KERNEL)
def _start(S: Array, o: Array, dP: Array, dr: Array, dS: Array, dm: Array) -> None:
    """DS = -S dP S; dm = S (dr - dP o), which overwrites dr."""
    product = np.zeros_like(S)
    add_product(S, dP, -1.0, product)
    dS[:] = 0.0
    add_product(product, S, 1.0, dS)
    _add_vector(dP, o, -1.0, dr)
    dm[:] = 0.0
    _add_vector(S, dr, 1.0, dm)


@njit(**KERNEL)
def _write(dS: Array, m: Array, dm: Array, out: Array, out_h: Array) -> None:
    """Derivatives of the block's statistics -E[x x'] / 2 and E[x] from those of its moments."""
    for i in range(m.shape[0]):
        out_h[i] = dm[i]
        for j in range(m.shape[0]):
            out[i, j] = -0.25 * (dS[i, j] + dS[j, i]) - 0.5 * (dm[i] * m[j] + m[i] * dm[j])


@njit(**KERNEL)
def _outwards_one(
    D: Array,
    offset: Array,
    gain: Array,
    spread: Array,
    start: int,
    stop: int,
    step: int,
    cov: Array,
    m: Array,
    dcov: Array,
    dm: Array,
    out: Array,
    out_cross: Array,
    out_h: Array,
) -> None:
    """From the known block before ``start`` on, turn dP and dr in ``out`` and ``out_h`` into derivatives, in place."""
    L = m.shape[0]
    K, dG, A, X = np.empty((L, L)), np.empty((L, L)), np.empty((L, L)), np.empty((L, L))
    known, turned, dS = np.empty((L, L)), np.empty((L, L)), np.empty((L, L))
    here, dhere = np.empty(L), np.empty(L)
    for t in range(start, stop, step):
        link = t - 1 if step > 0 else t
        G = gain[link]
        _coupled(out[t], G, D[link], step > 0, K)
        dG[:] = 0.0
        add_product(spread[t], K, -1.0, dG)
        A[:] = 0.0
        add_product(dG, cov, 1.0, A)
        X[:] = A
        add_product(G, dcov, 1.0, X)
        _start(spread[t], offset[t], out[t], out_h[t], dS, dhere)
        _add_vector(dG, m, 1.0, dhere)
        _add_vector(G, dm, 1.0, dhere)
        here[:] = offset[t]
        _add_vector(G, m, 1.0, here)
        for i in range(L):
            for j in range(L):
                turned[i, j] = G[j, i]
        add_product(X, turned, 1.0, dS)
        for i in range(L):
            for j in range(L):
                known[i, j] = A[j, i]
        add_product(G, known, 1.0, dS)
        for i in range(L):
            for j in range(L):
                value = -(X[i, j] + dhere[i] * m[j] + here[i] * dm[j])
                if step > 0:
                    out_cross[link, j, i] = value
                else:
                    out_cross[link, i, j] = value
        known[:] = 0.0
        add_product(G, cov, 1.0, known)
        cov[:] = spread[t]
        add_product(known, turned, 1.0, cov)
        dcov[:] = dS
        m[:] = here
        dm[:] = dhere
        _write(dcov, m, dm, out[t], out_h[t])


@njit(**KERNEL)
def outwards(
    start: int,
    stop: int,
    middle: Array,
    dJ: Array,
    D: Array,
    dh: Array,
    offset: Array,
    gain: Array,
    spread: Array,
    incoming: Array,
    incoming_h: Array,
    out: Array,
    out_cross: Array,
    out_h: Array,
) -> None:
    """Phase two, task 2b from the middle to the first block, 2b + 1 to the last; both work out the middle one."""
    T, L = dh.shape[1:]
    dP, dcov, dm = np.empty((L, L)), np.empty((L, L)), np.empty(L)
    for task in range(start, stop):
        b = task // 2
        t = middle[b]
        block = dJ[b, t]
        for i in range(L):
            for j in range(L):
                dP[i, j] = 0.5 * (block[i, j] + block[j, i]) + incoming[2 * b, i, j] + incoming[2 * b + 1, i, j]
        dr = dh[b, t] + incoming_h[2 * b] + incoming_h[2 * b + 1]
        cov, m = spread[b, t].copy(), offset[b, t].copy()
        _start(cov, m, dP, dr, dcov, dm)
        if task % 2 == 0:
            _write(dcov, m, dm, out[b, t], out_h[b, t])
        first, last, step = (t - 1, -1, -1) if task % 2 == 0 else (t + 1, T, 1)
        _outwards_one(
            D[b], offset[b], gain[b], spread[b], first, last, step, cov, m, dcov, dm, out[b], out_cross[b], out_h[b]
        )
