"""The discrete particle filter in compiled loops: states of an autoregression whose unknown frames are summed out.

A particle is a path of states with the Gaussian of the last frames given it (a Kalman filter). Each step gives every
particle one child a state; of more than are wanted, those of large weight stay as they are, and the rest is thinned
so that weights stay right on average. Between gaps, where all lags are known, particles of one state are one.
"""

import math

import numpy as np
from numba import njit

from ppgen.constants import LOG_2PI
from ppgen.messages._compiled import KERNEL, Array

__all__ = ["smooth"]


@njit(**KERNEL)
def _pin(m: Array, P: Array, d: int, value: float, column: Array) -> float:
    """Condition a Gaussian on its entry ``d``; return the log-density of the value.

    With p the column d of P: m += p (value - m_d) / p_d, and P -= p p' / p_d.
    """
    n = m.shape[0]
    variance = P[d, d]
    for i in range(n):
        column[i] = P[i, d]
    step = (value - m[d]) / variance
    density = -0.5 * (step * (value - m[d]) + math.log(variance) + LOG_2PI)
    for i in range(n):
        m[i] += column[i] * step
        for j in range(n):
            P[i, j] -= column[i] * column[j] / variance
    m[d] = value
    for i in range(n):
        P[i, d] = 0.0
        P[d, i] = 0.0
    return density


@njit(**KERNEL)
def _absorb(m: Array, P: Array, u: Array, weight: float, linear: float, column: Array) -> float:
    """Multiply a Gaussian by exp(-w y² / 2 + l y) with y = u' x; return the log of the integral.

    With a = u' m, p = P u, v = u' p and g = 1 + w v: m += p (l - w a) / g, P -= p p' w / g, and the integral is
    exp((l a - w a² / 2 + l² v / 2) / g) / sqrt(g).
    """
    n, k = m.shape[0], u.shape[0]
    mean, variance = 0.0, 0.0
    for i in range(n):
        total = 0.0
        for j in range(k):
            total += P[i, j] * u[j]
        column[i] = total
    for j in range(k):
        mean += u[j] * m[j]
        variance += u[j] * column[j]
    grown = 1.0 + weight * max(variance, 0.0)
    for i in range(n):
        m[i] += column[i] * (linear - weight * mean) / grown
        for j in range(n):
            P[i, j] -= column[i] * column[j] * weight / grown
    inner = linear * mean - 0.5 * weight * mean * mean + 0.5 * linear * linear * max(variance, 0.0)
    return inner / grown - 0.5 * math.log(grown)


@njit(**KERNEL)
def _observe(
    m: Array, P: Array, known: Array, value: Array, U: Array, weight: Array, linear: Array, partial: int, column: Array
) -> float:
    """Take in the known part of the latest frame, the first entries of ``m``; return its log-evidence."""
    density = 0.0
    for d in range(known.shape[0]):
        if known[d]:
            density += _pin(m, P, d, value[d], column)
    if partial >= 0:
        for r in range(weight.shape[1]):
            density += _absorb(m, P, U[partial, r], weight[partial, r], linear[partial, r], column)
    return density


@njit(**KERNEL)
def _predict(m: Array, P: Array, A: Array, Q: Array, AP: Array, mean: Array, covariance: Array) -> None:
    """Write mean A [m; 1] and covariance A P A' + Q of the next frame, and ``AP`` (D, S), its covariance with x."""
    D, S = AP.shape
    for d in range(D):
        total = A[d, S]
        for j in range(S):
            total += A[d, j] * m[j]
        mean[d] = total
        for j in range(S):
            total = 0.0
            for i in range(S):
                total += A[d, i] * P[i, j]
            AP[d, j] = total
    for d in range(D):
        for e in range(D):
            total = Q[d, e]
            for j in range(S):
                total += AP[d, j] * A[e, j]
            covariance[d, e] = total


@njit(**KERNEL)
def _fold(full: Array, drive: Array, S: int, folded: Array) -> None:
    """Write the coefficients of S entries and of one, of a step's given regressors ``drive``: (K, D, S + 1)."""
    for k in range(full.shape[0]):
        for d in range(full.shape[1]):
            for j in range(S):
                folded[k, d, j] = full[k, d, j]
            total = 0.0
            for j in range(drive.shape[0]):
                total += full[k, d, S + j] * drive[j]
            folded[k, d, S] = total


@njit(**KERNEL)
def _fold_loss(full: Array, drive: Array, U: Array, S: int, folded: Array, linear: Array) -> None:
    """Write the quadratic forms over (x, 1), and the linear terms of their directions, given regressors ``drive``."""
    for k in range(full.shape[0]):
        corner = 0.0
        for i in range(S):
            total = 0.0
            for j in range(drive.shape[0]):
                total += full[k, i, S + j] * drive[j]
            folded[k, i, S] = total
            for j in range(S):
                folded[k, i, j] = full[k, i, j]
        for i in range(drive.shape[0]):
            for j in range(drive.shape[0]):
                corner += drive[i] * full[k, S + i, S + j] * drive[j]
        folded[k, S, S] = corner
        for e in range(S):
            total = 0.0
            for i in range(S):
                total -= U[k, e, i] * folded[k, i, S]
            linear[k, e] = total


@njit(**KERNEL)
def _shift(m: Array, P: Array, AP: Array, new_m: Array, new_P: Array) -> None:
    """Push the frames of ``m`` one back behind the predicted one, already in ``new_m`` and ``new_P``."""
    D, S = AP.shape
    for i in range(S - D):
        new_m[D + i] = m[i]
        for d in range(D):
            new_P[d, D + i] = AP[d, i]
            new_P[D + i, d] = AP[d, i]
        for j in range(S - D):
            new_P[D + i, D + j] = P[i, j]


@njit(**KERNEL)
def _expected_loss(m: Array, P: Array, loss: Array) -> float:
    """Half the expectation of the quadratic form ``loss`` over (x, 1)."""
    S = m.shape[0]
    total = 0.0
    for i in range(S):
        inner = loss[i, S]
        for j in range(S):
            inner += 0.5 * loss[i, j] * m[j]
            total += 0.5 * loss[i, j] * P[i, j]
        total += inner * m[i]
    return float(total + 0.5 * loss[S, S])


@njit(**KERNEL)
def _thin(weight: Array, count: int, most: int, u: float, chosen: Array, kept: Array) -> int:
    """Keep about ``wanted`` of ``count`` weights, unbiased: their numbers, and weights ``kept``; how many."""
    positive, threshold, total = 0, 0.0, 0.0
    for i in range(count):
        if weight[i] > 0.0:
            positive += 1
            total += weight[i]
    if positive > most:
        threshold = total / most
        while True:
            large, rest = 0, 0.0
            for i in range(count):
                if weight[i] >= threshold:
                    large += 1
                else:
                    rest += weight[i]
            lower = rest / (most - large) if large < most else 0.0
            if not 0.0 < lower < threshold:
                break
            threshold = lower
    n, left = 0, u * threshold
    for i in range(count):
        if weight[i] <= 0.0 or n >= chosen.shape[0]:
            continue
        if weight[i] >= threshold:
            chosen[n], kept[n] = i, weight[i]
            n += 1
        else:
            left -= weight[i]
            if left < 0.0:
                left += threshold
                chosen[n], kept[n] = i, threshold
                n += 1
    return n


@njit(**KERNEL)
def _pick(weight: Array, u: float) -> int:
    """Index drawn in proportion to ``weight``; never one of weight zero."""
    left, last = u * weight.sum(), 0
    for k in range(weight.shape[0]):
        if weight[k] > 0.0:
            last = k
            left -= weight[k]
            if left < 0.0:
                break
    return last


@njit(**KERNEL)
def smooth(
    start: int,
    stop: int,
    initial: Array,
    transition: Array,
    potential: Array,
    lengths: Array,
    touched: Array,
    known: Array,
    value: Array,
    partial: Array,
    U: Array,
    weight: Array,
    linear: Array,
    drive: Array,
    coefficients: Array,
    noise: Array,
    losses: Array,
    loss_U: Array,
    loss_weight: Array,
    constant: Array,
    improper: bool,
    lags: int,
    particles: int,
    thinning: Array,
    uniforms: Array,
    evidence: Array,
    marginals: Array,
    paths: Array,
) -> None:
    """Log-evidence, marginals (N, T, K) and paths (n, N, T) of the states of sequences ``start`` to ``stop``."""
    K, D = transition.shape[0], known.shape[2]
    S = lags * D
    most = particles + K + 1
    mean, new_mean = np.zeros((most, S)), np.zeros((most, S))
    cov, new_cov = np.zeros((most, S, S)), np.zeros((most, S, S))
    W, state = np.zeros(most), np.zeros(most, np.int64)
    scores, chosen, kept = np.zeros(most * K), np.zeros(most, np.int64), np.zeros(most)
    AP, column = np.zeros((D, S)), np.zeros(max(S, D))
    frame_m, frame_P = np.zeros(D), np.zeros((D, D))
    spare_m, spare_P = np.zeros(S), np.zeros((S, S))
    regression = np.zeros((coefficients.shape[0], D, S + 1))
    loss, loss_linear = np.zeros((K, S + 1, S + 1)), np.zeros((K, S))
    own = partial.shape[2] > 1  # whether each state has a Gaussian potential of its own
    for b in range(start, stop):
        n = lengths[b]
        evidence[b] = 0.0
        marginals[b] = 0.0
        if n == 0:
            continue
        row = np.zeros(n, np.int64)
        rows = 0
        for t in range(n):
            row[t] = rows
            if touched[b, t]:
                rows += 1
        parents, states = np.zeros((rows, most), np.int32), np.zeros((rows, most), np.int32)
        weights, counts = np.zeros((rows, most)), np.zeros(rows, np.int64)
        alpha = np.zeros((n, K))
        total_log, count = 0.0, 0
        for t in range(n):
            if not touched[b, t]:
                if t < lags:
                    for d in range(D):
                        last = value[b, t - 1, d] if t > 0 else 0.0
                        variance = noise[K if t == 0 else K + 1, d, d]
                        off = value[b, t, d] - last
                        total_log -= 0.5 * (off * off / variance + math.log(variance) + LOG_2PI)
                top = potential[b, t].max()
                total = 0.0
                for k in range(K):
                    prior = initial[k]
                    if t > 0:
                        prior = 0.0
                        for j in range(K):
                            prior += alpha[t - 1, j] * transition[j, k]
                    alpha[t, k] = prior * math.exp(potential[b, t, k] - top)
                    total += alpha[t, k]
                total_log += math.log(total) + top
                if not total > 0.0:
                    break
                for k in range(K):
                    alpha[t, k] /= total
                continue
            r = row[t]
            _fold(coefficients, drive[b, t], S, regression)
            if improper:
                _fold_loss(losses, drive[b, t], loss_U, S, loss, loss_linear)
            if t == 0 or not touched[b, t - 1]:  # a gap begins: one particle a state, its lags known
                count = 1 if t == 0 else K
                for i in range(count):
                    state[i] = i if t > 0 else -1
                    W[i] = alpha[t - 1, i] if t > 0 else 1.0
                    for lag in range(lags):
                        for d in range(D):
                            mean[i, lag * D + d] = value[b, t - 1 - lag, d] if t > lag else 0.0
                    cov[i] = 0.0
            seen = partial[b, t, 0] >= 0
            for d in range(D):
                seen = seen or known[b, t, d]
            top = -np.inf
            for i in range(count):
                score = 0.0
                for k in range(K):
                    q = W[i] * (initial[k] if state[i] < 0 else transition[state[i], k])
                    if q <= 0.0:
                        scores[i * K + k] = -np.inf
                        continue
                    regime = k if t >= lags else (K if t == 0 else K + 1)
                    if seen:
                        _predict(mean[i], cov[i], regression[regime], noise[regime], AP, frame_m, frame_P)
                        score = _observe(
                            frame_m,
                            frame_P,
                            known[b, t],
                            value[b, t],
                            U,
                            weight,
                            linear,
                            partial[b, t, k if own else 0],
                            column,
                        )
                    else:
                        score = 0.0
                    if t >= lags:
                        score += constant[k]
                        if improper:
                            score -= _expected_loss(mean[i], cov[i], loss[k])
                    scores[i * K + k] = score + potential[b, t, k] + math.log(q)
                    top = max(top, scores[i * K + k])
            if top == -np.inf:
                total_log = top
                break
            for c in range(count * K):
                scores[c] = math.exp(scores[c] - top)
            fresh = _thin(scores, count * K, particles, thinning[t], chosen, kept)
            total = 0.0
            for p in range(fresh):
                i, k = chosen[p] // K, chosen[p] % K
                regime = k if t >= lags else (K if t == 0 else K + 1)
                spare_m[:] = mean[i]
                spare_P[:] = cov[i]
                gained = 0.0
                if improper and t >= lags:  # chosen by an expected loss; weighed by the exact one
                    gained = _expected_loss(spare_m, spare_P, loss[k]) - 0.5 * loss[k, S, S]
                    for e in range(S):
                        gained += _absorb(spare_m, spare_P, loss_U[k, e], loss_weight[k, e], loss_linear[k, e], column)
                if improper and seen:
                    _predict(mean[i], cov[i], regression[regime], noise[regime], AP, frame_m, frame_P)
                    gained -= _observe(
                        frame_m,
                        frame_P,
                        known[b, t],
                        value[b, t],
                        U,
                        weight,
                        linear,
                        partial[b, t, k if own else 0],
                        column,
                    )
                _predict(spare_m, spare_P, regression[regime], noise[regime], AP, frame_m, frame_P)
                new_mean[p, :D] = frame_m
                new_cov[p, :D, :D] = frame_P
                _shift(spare_m, spare_P, AP, new_mean[p], new_cov[p])
                observed = _observe(
                    new_mean[p],
                    new_cov[p],
                    known[b, t],
                    value[b, t],
                    U,
                    weight,
                    linear,
                    partial[b, t, k if own else 0],
                    column,
                )
                if improper:
                    kept[p] *= math.exp(gained + observed)
                parents[r, p], states[r, p] = i, k
                total += kept[p]
            total_log += math.log(total) + top
            if not total > 0.0:
                break
            count = fresh
            counts[r] = fresh
            for p in range(fresh):
                W[p] = kept[p] / total
                state[p] = states[r, p]
                weights[r, p] = W[p]
                alpha[t, state[p]] += W[p]
            mean, new_mean = new_mean, mean
            cov, new_cov = new_cov, cov
        evidence[b] = total_log
        if not total_log > -np.inf:
            continue
        _marginals(n, transition, touched[b], row, alpha, weights, states, parents, counts, marginals[b])
        for s in range(paths.shape[0]):
            _path(n, transition, touched[b], row, alpha, weights, states, parents, counts, uniforms[s, b], paths[s, b])


@njit(**KERNEL)
def _marginals(
    n: int,
    transition: Array,
    touched: Array,
    row: Array,
    alpha: Array,
    weights: Array,
    states: Array,
    parents: Array,
    counts: Array,
    out: Array,
) -> None:
    """Backwards: of each particle, how much weight its descendants end with."""
    K = transition.shape[0]
    now, before = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    ratio = np.zeros(K)
    for t in range(n - 1, -1, -1):
        if t == n - 1 or not touched[t + 1]:
            for k in range(K):
                ratio[k] = 1.0
            if t < n - 1:
                for k in range(K):
                    ratio[k] = 0.0
                for j in range(K):
                    predicted = 0.0
                    for i in range(K):
                        predicted += alpha[t, i] * transition[i, j]
                    if predicted > 0.0:
                        share = out[t + 1, j] / predicted
                        for i in range(K):
                            ratio[i] += transition[i, j] * share
            if touched[t]:
                r = row[t]
                for p in range(counts[r]):
                    now[p] = weights[r, p] * ratio[states[r, p]]
            else:
                for k in range(K):
                    out[t, k] = alpha[t, k] * ratio[k]
        elif not touched[t]:
            for k in range(K):
                out[t, k] = now[k]
        if touched[t]:
            r = row[t]
            before[:] = 0.0
            for p in range(counts[r]):
                out[t, states[r, p]] += now[p]
                before[parents[r, p]] += now[p]
            now, before = before, now


@njit(**KERNEL)
def _path(
    n: int,
    transition: Array,
    touched: Array,
    row: Array,
    alpha: Array,
    weights: Array,
    states: Array,
    parents: Array,
    counts: Array,
    uniforms: Array,
    path: Array,
) -> None:
    """One path drawn backwards."""
    particle = -1  # of the step behind, where that touches a gap
    shares = np.zeros(max(weights.shape[1], transition.shape[0]))
    for t in range(n - 1, -1, -1):
        if particle >= 0:
            particle = parents[row[t + 1], particle]
        if touched[t]:
            r = row[t]
            if particle < 0:
                for p in range(counts[r]):
                    shares[p] = weights[r, p] * (transition[states[r, p], path[t + 1]] if t < n - 1 else 1.0)
                particle = _pick(shares[: counts[r]], uniforms[t])
            path[t] = states[r, particle]
        elif particle >= 0:
            path[t] = particle
            particle = -1
        else:
            for k in range(transition.shape[0]):
                shares[k] = alpha[t, k] * (transition[k, path[t + 1]] if t < n - 1 else 1.0)
            path[t] = _pick(shares[: transition.shape[0]], uniforms[t])
