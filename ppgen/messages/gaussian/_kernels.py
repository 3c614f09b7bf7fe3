r"""Block-tridiagonal Gaussians in compiled loops.

One sequence is two tasks: blocks are eliminated from both ends towards the middle one, each leaving its distribution
given the next block inwards, ``x_t | x_next ~ N(offset_t + gain_t x_next, spread_t)``; then moments are carried from
the middle outwards, in place of what the elimination left. With K_t the coupling of a block to the next one inwards,

.. math::
    P_{t+1} &= J_{t+1} - K_t' P_t^{-1} K_t, \quad r_{t+1} = h_{t+1} - K_t' P_t^{-1} r_t, \quad
    \log Z = \tfrac12 \textstyle\sum_t (r_t' P_t^{-1} r_t + L \log 2\pi - \log |P_t|) \\
    \mathrm{offset}_t &= P_t^{-1} r_t, \quad \mathrm{gain}_t = -P_t^{-1} K_t, \quad \mathrm{spread}_t = P_t^{-1} \\
    m_t &= \mathrm{offset}_t + \mathrm{gain}_t m_{t+1}, \quad
    \Sigma_t = \mathrm{spread}_t + \mathrm{gain}_t \Sigma_{t+1} \mathrm{gain}_t'

Where blocks repeat and the recursion has come to rest, its matrices are reused.
"""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array
from ppgen.messages.gaussian._products import add_times, times_turned, turn

__all__ = ["eliminate", "join", "spread_out", "statistics"]

SINGULAR = 4e-16  # a pivot this small beside its diagonal entry has no correct digit
AT_REST = 1e-14
NEAREST_LOG_2PI = 1.8378770664093454836  # one unit of the last digit more than in ppgen.constants


@njit(**KERNEL)
def _invert_factor(P: Array, scale: Array, C: Array, inverse: Array) -> tuple[float, float]:
    """Lower Cholesky factor C of P, and the inverse of C.

    Return log|C|, NaN if P is not positive definite, and the least pivot beside the diagonal of ``scale``.
    """
    n = P.shape[0]
    log_det = 0.0
    product = 1.0
    least = math.inf
    for i in range(n):
        for j in range(i + 1):
            total = P[i, j]
            for k in range(j):
                total -= C[i, k] * C[j, k]
            if i > j:
                C[i, j] = total * inverse[j, j]
            elif total > SINGULAR * abs(scale[i, i]) and total < math.inf:
                C[i, i] = math.sqrt(total)
                inverse[i, i] = 1.0 / C[i, i]
                least = min(least, total / abs(scale[i, i]))
            else:
                return math.nan, 0.0
        product *= C[i, i]
        if not 1e-100 < product < 1e100:
            log_det += math.log(product)
            product = 1.0
    for j in range(n):
        for i in range(j + 1, n):
            total = 0.0
            for k in range(j, i):
                total += C[i, k] * inverse[k, j]
            inverse[i, j] = -total * inverse[i, i]
    return log_det + math.log(product), least


@njit(**KERNEL)
def _is_zero(A: Array) -> bool:
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            if A[i, j] != 0.0:
                return False
    return True


@njit(**KERNEL)
def _is_identity(A: Array) -> bool:
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            if A[i, j] != (1.0 if i == j else 0.0):
                return False
    return True


@njit(**KERNEL)
def _near(A: Array, B: Array, tolerance: float) -> bool:
    """Tell whether A and B agree to ``tolerance``, beside the diagonal of A; with tolerance 0, exactly."""
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            if not abs(A[i, j] - B[i, j]) <= tolerance * math.sqrt(abs(A[i, i] * A[j, j])):
                return False
    return True


@njit(**KERNEL)
def _receive(J: Array, h: Array, incoming: Array, incoming_h: Array, P: Array, r: Array) -> None:
    """Write P and r, precision and linear term of a block less what its neighbour takes; only J + J' counts."""
    n = J.shape[0]
    for i in range(n):
        for j in range(n):
            P[i, j] = 0.5 * (J[i, j] + J[j, i]) - incoming[i, j]
        r[i] = h[i] - incoming_h[i]


@njit(**KERNEL)
def _write_spread(U: Array, roots: bool, out: Array) -> None:
    """Write the covariance U U', or its root U itself."""
    if roots:
        out[:] = U
    else:
        times_turned(U, U, out)


@njit(**KERNEL)
def _whiten(inverse: Array, r: Array, y: Array) -> float:
    """Write ``y = inverse @ r``, ``inverse`` lower triangular; return y' y."""
    square = 0.0
    for i in range(r.shape[0]):
        whitened = 0.0
        for k in range(i + 1):
            whitened += inverse[i, k] * r[k]
        y[i] = whitened
        square += whitened * whitened
    return square


@njit(**KERNEL)
def _eliminate_one(
    J: Array,
    cross: Array,
    h: Array,
    start: int,
    stop: int,
    step: int,
    store: bool,
    roots: bool,
    offset: Array,
    gain: Array,
    spread: Array,
    incoming: Array,
    incoming_h: Array,
) -> tuple[float, int]:
    """Eliminate blocks from ``start`` up to, not including, ``stop``; return their log-normaliser and a bad block.

    ``incoming`` and ``incoming_h`` get the terms to subtract from block ``stop``. With ``roots``, ``spread`` gets
    upper triangular U with U U' the spread. ``V`` is the link times U.
    """
    L = h.shape[1]
    P, last_P = np.empty((L, L)), np.zeros((L, L))
    C, inverse, U = np.zeros((L, L)), np.zeros((L, L)), np.zeros((L, L))
    link_matrix, V = np.zeros((L, L)), np.zeros((L, L))
    r, y = np.empty(L), np.empty(L)
    log_det = 0.0
    total = 0.0
    incoming[:] = 0.0
    incoming_h[:] = 0.0
    coupled = False
    previous = -1
    for t in range(start, stop, step):
        link = t if step > 0 else t - 1
        _receive(J[t], h[t], incoming, incoming_h, P, r)
        same = previous >= 0 and _near(P, last_P, AT_REST)
        same = same and _near(cross[link], cross[link - step], 0.0)
        if not same:
            coupled = not _is_zero(cross[link])
            if _is_identity(P):
                inverse[:] = P
                log_det = 0.0
            else:
                log_det, _ = _invert_factor(P, J[t], C, inverse)
                if math.isnan(log_det):
                    return 0.0, t
            turn(inverse, U)
            if coupled and step > 0:
                turn(cross[link], link_matrix)
                times_turned(link_matrix, inverse, V)
            elif coupled:
                times_turned(cross[link], inverse, V)
            else:
                V[:] = 0.0
            times_turned(V, V, incoming)
            last_P[:] = P
        total += 0.5 * (_whiten(inverse, r, y) + L * NEAREST_LOG_2PI) - log_det
        incoming_h[:] = 0.0
        if coupled:
            add_times(V, y, 1.0, incoming_h)
        if store:
            if same:
                spread[t] = spread[previous]
                gain[link] = gain[link - step]
            else:
                _write_spread(U, roots, spread[t])
                times_turned(U, V, gain[link])
                for i in range(L):
                    for j in range(L):
                        gain[link, i, j] = -gain[link, i, j]
            offset[t] = 0.0
            add_times(U, y, 1.0, offset[t])
        previous = t
    return total, -1


@njit(**KERNEL)
def eliminate(
    start: int,
    stop: int,
    which: Array,
    J: Array,
    cross: Array,
    h: Array,
    middle: int,
    store: bool,
    roots: bool,
    offset: Array,
    gain: Array,
    spread: Array,
    incoming: Array,
    incoming_h: Array,
    value: Array,
    bad: Array,
) -> None:
    """Phase one. Task 2i eliminates the blocks of sequence ``which[i]`` before ``middle``, task 2i + 1 those after."""
    T = h.shape[1]
    for part in range(start, stop):
        b = which[part // 2]
        task = 2 * b + part % 2
        s = b if store else 0
        first, last, step = (0, middle, 1) if part % 2 == 0 else (T - 1, middle, -1)
        value[task], bad[task] = _eliminate_one(
            J[b if J.shape[0] > 1 else 0], cross[b if cross.shape[0] > 1 else 0], h[b], first, last, step, store, roots,
            offset[s], gain[s], spread[s], incoming[task], incoming_h[task],
        )  # fmt: skip


@njit(**KERNEL)
def join(
    start: int,
    stop: int,
    which: Array,
    J: Array,
    h: Array,
    middle: int,
    store: bool,
    roots: bool,
    incoming: Array,
    incoming_h: Array,
    offset: Array,
    spread: Array,
    value: Array,
    bad: Array,
    least: Array,
) -> None:
    """The middle block of sequences ``which[start:stop]``.

    Even places of ``value`` (2B,) get the whole log-normaliser, ``least`` (B,) the least pivot beside its diagonal
    entry: a small one lost digits.
    """
    L = h.shape[2]
    C, inverse, U, P = np.zeros((L, L)), np.zeros((L, L)), np.zeros((L, L)), np.empty((L, L))
    r, y = np.empty(L), np.empty(L)
    for b in which[start:stop]:
        least[b] = 0.0
        if bad[2 * b] >= 0 or bad[2 * b + 1] >= 0:
            continue
        precision = J[b if J.shape[0] > 1 else 0, middle]
        _receive(
            precision,
            h[b, middle],
            incoming[2 * b] + incoming[2 * b + 1],
            incoming_h[2 * b] + incoming_h[2 * b + 1],
            P,
            r,
        )
        log_det, least[b] = _invert_factor(P, precision, C, inverse)
        if math.isnan(log_det):
            bad[2 * b] = middle
            continue
        value[2 * b] += value[2 * b + 1] + 0.5 * (_whiten(inverse, r, y) + L * NEAREST_LOG_2PI) - log_det
        if store:
            turn(inverse, U)
            _write_spread(U, roots, spread[b, middle])
            offset[b, middle] = 0.0
            add_times(U, y, 1.0, offset[b, middle])


@njit(**KERNEL)
def _spread_one(mean: Array, cross: Array, covariance: Array, start: int, stop: int, step: int) -> None:
    """From the block before ``start`` on, turn offsets, gains and spreads into means and covariances, in place."""
    L = mean.shape[1]
    gain = np.empty((L, L))
    last_gain = np.full((L, L), math.nan)
    spread = np.empty((L, L))
    last_spread = np.full((L, L), math.nan)
    product = np.zeros((L, L))
    for t in range(start, stop, step):
        known = t - step
        link = known if step > 0 else t
        gain[:] = cross[link]
        spread[:] = covariance[t]
        for i in range(L):
            for j in range(L):
                mean[t, i] += gain[i, j] * mean[known, j]
        resting = t != start and _near(covariance[known], covariance[known - step], AT_REST)
        if resting and _near(spread, last_spread, 0.0) and _near(gain, last_gain, 0.0):
            covariance[t] = covariance[known]
            cross[link] = cross[link - step]
            continue
        last_gain[:] = gain
        last_spread[:] = spread
        _propagate(gain, covariance[known], product, covariance[t])
        for i in range(L):
            for j in range(L):
                cross[link, i, j] = product[j, i] if step > 0 else product[i, j]


@njit(**KERNEL)
def _propagate(gain: Array, known: Array, product: Array, covariance: Array) -> None:
    """Write ``product = gain @ known``, and add ``product @ gain'`` to ``covariance``, kept symmetric."""
    times_turned(gain, known, product)
    for i in range(gain.shape[0]):
        for j in range(i + 1):
            total = covariance[i, j]
            for k in range(gain.shape[0]):
                total += product[i, k] * gain[j, k]
            covariance[i, j] = total
            covariance[j, i] = total


@njit(**KERNEL)
def spread_out(start: int, stop: int, middle: Array, mean: Array, cross: Array, covariance: Array) -> None:
    """Phase two, task 2b from the middle of sequence b to the first block, 2b + 1 to the last."""
    for task in range(start, stop):
        b = task // 2
        if task % 2 == 0:
            _spread_one(mean[b], cross[b], covariance[b], middle[b] - 1, -1, -1)
        else:
            _spread_one(mean[b], cross[b], covariance[b], middle[b] + 1, mean.shape[1], 1)


@njit(**KERNEL)
def statistics(start: int, stop: int, weights: Array, mean: Array, cross: Array, covariance: Array) -> None:
    """Turn moments into the gradient of the log-normaliser in J, J_cross and h, times ``weights``, in place."""
    T, L = mean.shape[1:]
    for b in range(start, stop):
        w = weights[b]
        for t in range(T):
            for i in range(L):
                m = mean[b, t, i]
                for j in range(L):
                    covariance[b, t, i, j] = -0.5 * w * (covariance[b, t, i, j] + m * mean[b, t, j])
                if t + 1 < T:
                    for j in range(L):
                        cross[b, t, i, j] = -w * (cross[b, t, i, j] + m * mean[b, t + 1, j])
        for t in range(T):
            for i in range(L):
                mean[b, t, i] *= w
