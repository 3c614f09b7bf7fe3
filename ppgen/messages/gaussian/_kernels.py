"""Block-tridiagonal Gaussians in compiled loops.

One sequence is two tasks: blocks are eliminated from both ends towards the middle one, each leaving its distribution
given the next block inwards, ``x_t | x_next ~ N(offset_t + gain_t x_next, spread_t)``; then moments are carried from
the middle outwards, in place of what the elimination left. Where blocks repeat and the recursion has come to rest,
its matrices are reused.
"""

import math

import numpy as np
from numba import njit

from ppgen.messages._compiled import KERNEL, Array

__all__ = ["eliminate", "join", "spread_out", "statistics"]

_SINGULAR = 4e-16  # a pivot this small beside its diagonal entry has no correct digit
_AT_REST = 1e-14
_LOG_2PI = 1.8378770664093454836


@njit(**KERNEL)
def _invert_factor(P: Array, scale: Array, C: Array, inverse: Array) -> float:
    """Lower Cholesky factor C of P, and the inverse of C; return log|C|, NaN if P is not positive definite."""
    n = P.shape[0]
    log_det = 0.0
    product = 1.0
    for i in range(n):
        for j in range(i + 1):
            total = P[i, j]
            for k in range(j):
                total -= C[i, k] * C[j, k]
            if i > j:
                C[i, j] = total * inverse[j, j]
            elif total > _SINGULAR * abs(scale[i, i]) and total < math.inf:
                C[i, i] = math.sqrt(total)
                inverse[i, i] = 1.0 / C[i, i]
            else:
                return math.nan
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
    return log_det + math.log(product)


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
    """Do A and B agree to ``tolerance``, beside the diagonal of A? Exactly, with tolerance 0."""
    for i in range(A.shape[0]):
        for j in range(A.shape[1]):
            if not abs(A[i, j] - B[i, j]) <= tolerance * math.sqrt(abs(A[i, i] * A[j, j])):
                return False
    return True


@njit(**KERNEL)
def _receive(J: Array, h: Array, incoming: Array, incoming_h: Array, P: Array, r: Array) -> None:
    """P, r = precision and linear term of a block after what its neighbour adds; only J + J' counts."""
    n = J.shape[0]
    for i in range(n):
        for j in range(n):
            P[i, j] = 0.5 * (J[i, j] + J[j, i]) - incoming[i, j]
        r[i] = h[i] - incoming_h[i]


@njit(**KERNEL)
def _couple(inverse: Array, cross: Array, turned: bool, W: Array) -> None:
    """W = inverse @ cross, or @ cross'; ``inverse`` is lower triangular."""
    n = cross.shape[0]
    W[:] = 0.0
    for i in range(n):
        for k in range(i + 1):
            a = inverse[i, k]
            if turned:
                for j in range(n):
                    W[i, j] += a * cross[j, k]
            else:
                for j in range(n):
                    W[i, j] += a * cross[k, j]


@njit(**KERNEL)
def _gram(W: Array, out: Array) -> None:
    """Out = W' W, exactly symmetric."""
    n = W.shape[0]
    out[:] = 0.0
    for k in range(n):
        for i in range(n):
            a = W[k, i]
            for j in range(n):
                out[i, j] += a * W[k, j]


@njit(**KERNEL)
def _transposed_product(A: Array, B: Array, sign: float, out: Array) -> None:
    """Out = sign A' B, for A lower triangular."""
    n = A.shape[0]
    out[:] = 0.0
    for k in range(n):
        for i in range(k + 1):
            a = sign * A[k, i]
            for j in range(n):
                out[i, j] += a * B[k, j]


@njit(**KERNEL)
def _spread(inverse: Array, roots: bool, out: Array) -> None:
    """The inverse of the precision with this inverse factor, or the upper triangular root of it."""
    if not roots:
        _transposed_product(inverse, inverse, 1.0, out)
        return
    for i in range(out.shape[0]):
        for j in range(out.shape[0]):
            out[j, i] = inverse[i, j]


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

    ``incoming``, ``incoming_h`` end as what is to be subtracted from block ``stop``. With ``roots``, ``spread`` gets
    upper triangular U with U U' the spread.
    """
    L = h.shape[1]
    P = np.empty((L, L))
    last_P = np.zeros((L, L))
    C = np.zeros((L, L))
    inverse = np.zeros((L, L))
    W = np.zeros((L, L))
    r = np.empty(L)
    y = np.empty(L)
    log_det = 0.0
    total = 0.0
    incoming[:] = 0.0
    incoming_h[:] = 0.0
    coupled = False
    previous = -1
    for t in range(start, stop, step):
        link = t if step > 0 else t - 1
        _receive(J[t], h[t], incoming, incoming_h, P, r)
        same = previous >= 0 and _near(P, last_P, _AT_REST)
        same = same and _near(cross[link], cross[link - step], 0.0)
        if not same:
            coupled = not _is_zero(cross[link])
            if _is_identity(P):
                inverse[:] = P
                log_det = 0.0
            else:
                log_det = _invert_factor(P, J[t], C, inverse)
                if math.isnan(log_det):
                    return 0.0, t
            if coupled:
                _couple(inverse, cross[link], step < 0, W)
                _gram(W, incoming)
            else:
                incoming[:] = 0.0
                W[:] = 0.0
            last_P[:] = P
        square = 0.0
        for i in range(L):
            whitened = 0.0
            for k in range(i + 1):
                whitened += inverse[i, k] * r[k]
            y[i] = whitened
            square += whitened * whitened
        total += 0.5 * (square + L * _LOG_2PI) - log_det
        incoming_h[:] = 0.0
        if coupled:
            for i in range(L):
                for j in range(L):
                    incoming_h[j] += W[i, j] * y[i]
        if store:
            if same:
                spread[t] = spread[previous]
                gain[link] = gain[link - step]
            else:
                _spread(inverse, roots, spread[t])
                _transposed_product(inverse, W, -1.0, gain[link])
            for i in range(L):
                offset[t, i] = 0.0
            for k in range(L):
                for i in range(k + 1):
                    offset[t, i] += inverse[k, i] * y[k]
        previous = t
    return total, -1


@njit(**KERNEL)
def eliminate(
    start: int,
    stop: int,
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
    """Phase one. Task 2b eliminates sequence b's blocks before ``middle``, task 2b + 1 those after."""
    T = h.shape[1]
    for task in range(start, stop):
        b = task // 2
        s = b if store else 0
        first, last, step = (0, middle, 1) if task % 2 == 0 else (T - 1, middle, -1)
        value[task], bad[task] = _eliminate_one(
            J[b if J.shape[0] > 1 else 0], cross[b if cross.shape[0] > 1 else 0], h[b], first, last, step, store, roots,
            offset[s], gain[s], spread[s], incoming[task], incoming_h[task],
        )  # fmt: skip


@njit(**KERNEL)
def join(
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
) -> None:
    """The middle block of every sequence; ``value`` (2B,) gets the whole log-normaliser in its even places."""
    L = h.shape[2]
    C = np.zeros((L, L))
    inverse = np.zeros((L, L))
    P = np.empty((L, L))
    r = np.empty(L)
    y = np.empty(L)
    for b in range(h.shape[0]):
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
        log_det = _invert_factor(P, precision, C, inverse)
        if math.isnan(log_det):
            bad[2 * b] = middle
            continue
        square = 0.0
        for i in range(L):
            whitened = 0.0
            for k in range(i + 1):
                whitened += inverse[i, k] * r[k]
            y[i] = whitened
            square += whitened * whitened
        value[2 * b] += value[2 * b + 1] + 0.5 * (square + L * _LOG_2PI) - log_det
        if store:
            _spread(inverse, roots, spread[b, middle])
            for i in range(L):
                total = 0.0
                for k in range(i, L):
                    total += inverse[k, i] * y[k]
                offset[b, middle, i] = total


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
        resting = t != start and _near(covariance[known], covariance[known - step], _AT_REST)
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
    """Product = gain @ known; covariance += product @ gain', kept symmetric."""
    L = gain.shape[0]
    product[:] = 0.0
    for i in range(L):
        for k in range(L):
            a = gain[i, k]
            for j in range(L):
                product[i, j] += a * known[k, j]
    for i in range(L):
        for j in range(i + 1):
            total = covariance[i, j]
            for k in range(L):
                total += product[i, k] * gain[j, k]
            covariance[i, j] = total
            covariance[j, i] = total


@njit(**KERNEL)
def spread_out(start: int, stop: int, middle: int, mean: Array, cross: Array, covariance: Array) -> None:
    """Phase two, task 2b from the middle to the first block, 2b + 1 to the last."""
    for task in range(start, stop):
        b = task // 2
        if task % 2 == 0:
            _spread_one(mean[b], cross[b], covariance[b], middle - 1, -1, -1)
        else:
            _spread_one(mean[b], cross[b], covariance[b], middle + 1, mean.shape[1], 1)


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
