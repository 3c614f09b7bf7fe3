r"""Kernels of Gaussians with hidden features: each row's own hidden features, in all states at once.

With a form F over (x, 1), precision :math:`P = -2 F_{hh}` of the hidden features h, and information
:math:`r = 2 F_{h,o} (x_o, 1)` from the observed ones, the integral over the hidden features adds

.. math:: \tfrac12 r' P^{-1} r + \tfrac h2 \log 2\pi - \tfrac12 \log |P| .

A row and a state cost a Cholesky factorisation of as many dimensions as the row hides. States lie innermost, ``LANES``
to a block, which is handled as a tuple of numbers: read together, written together, so that they stay in registers (a
loop over them would not: its writes might change what it reads next, as far as the compiler knows). Rows that hide the
same and are neighbours share a factorisation.
"""

import numpy as np
from numba import njit

from ppgen.constants import LOG_2PI
from ppgen.messages._compiled import KERNEL, Array

__all__ = ["LANES", "draws", "moments", "normalizers"]

Lanes = tuple[float, float, float, float, float, float, float, float]
LANES = 8  # states in one block: sums of them fit into registers
PIVOTS = 8  # pivots whose product is taken before its logarithm: within range for any pivots of 1e-38 to 1e38

# Sums keep their order, so that bits do not depend on how a loop was compiled.
ORDERED = KERNEL | {"fastmath": {"contract"}}


@njit(**ORDERED)
def normalizers(
    start: int, stop: int, tasks: Array, order: Array, hides: Array, x: Array, forms: Array, out: Array
) -> None:
    """Log of the integral over what each row hides, beside the row with zeros there, into ``out`` (n, K)."""
    blocks, D, K = forms.shape[1], forms.shape[2] - 1, out.shape[1]
    root, inverse, y = np.empty((D, D, LANES)), np.empty((D, LANES)), np.empty((D, LANES))
    constant, value = np.empty(LANES), np.empty(LANES)
    places = np.empty(D, np.uint64)
    for t in range(start, stop):
        for b in range(blocks):
            form, width = forms[tasks[t, 2], b], min(LANES, K - b * LANES)
            before, h = -1, 0
            for p in range(tasks[t, 0], tasks[t, 1]):
                r = order[p]
                if before < 0 or not _same(hides[r], hides[before]):
                    h = _split(hides[r], places)
                    _factorise(form, places, h, root, inverse, constant)
                before = r
                _solve(form, places, h, x[r], root, inverse, y)
                total = _all(0.0)
                for i in range(h):
                    total = _plus(total, _get(y[i]), _get(y[i]))
                _put(value, _plus(_get(constant), total, _all(0.5)))
                for v in range(width):
                    out[r, b * LANES + v] = value[v]


@njit(**ORDERED)
def moments(
    start: int,
    stop: int,
    tasks: Array,
    order: Array,
    hides: Array,
    x: Array,
    forms: Array,
    weights: Array,
    sums: Array,
    slopes: Array,
) -> None:
    """Gradient of the ``weights`` (n, K) times `normalizers`: in the forms into ``sums`` (tasks, blocks, W, W, LANES),
    each product in one of its two places; in ``x`` into ``slopes`` (n, D), unless that is empty.
    """
    blocks, D, K = forms.shape[1], forms.shape[2] - 1, weights.shape[1]
    root, inverse, mean = np.empty((D, D, LANES)), np.empty((D, LANES)), np.empty((D, LANES))
    spread, constant, padded = np.empty((D, D, LANES)), np.empty(LANES), np.empty(LANES)
    places = np.empty(D, np.uint64)
    for t in range(start, stop):
        for b in range(blocks):
            form, into, width = forms[tasks[t, 2], b], sums[t, b], min(LANES, K - b * LANES)
            before, h, run = -1, 0, _all(0.0)
            padded[:] = 0.0
            for p in range(tasks[t, 0], tasks[t, 1]):
                r = order[p]
                if before < 0 or not _same(hides[r], hides[before]):
                    _add_spread(places, h, root, inverse, spread, run, into)
                    h = _split(hides[r], places)
                    _factorise(form, places, h, root, inverse, constant)
                    run = _all(0.0)
                before = r
                for v in range(width):
                    padded[v] = weights[r, b * LANES + v]
                weight = _get(padded)
                run = _plus(run, weight, _all(1.0))
                _solve(form, places, h, x[r], root, inverse, mean)
                _back(root, inverse, h, mean)
                _add_means(places, h, mean, x[r], weight, into)
                if len(slopes) > 0:
                    _add_slopes(form, places, h, mean, hides[r], weight, slopes[r])
            _add_spread(places, h, root, inverse, spread, run, into)


@njit(**ORDERED)
def draws(start: int, stop: int, hides: Array, x: Array, forms: Array, states: Array, noise: Array, out: Array) -> None:
    """Draw what each row hides given the rest and its state, from standard normal ``noise`` (n, D)."""
    D = x.shape[1]
    root, y, places = np.empty((D, D)), np.empty(D), np.empty(D, np.uint64)
    for r in range(start, stop):
        form, h = forms[states[r]], _split(hides[r], places)
        for i in range(h):
            total = form[places[i], D]
            for o in range(D):
                total += form[places[i], o] * x[r, o]
            total *= 2
            for j in range(i):
                entry = -2 * form[places[i], places[j]]
                for m in range(j):
                    entry -= root[i, m] * root[j, m]
                root[i, j] = entry / root[j, j]
                total -= root[i, j] * y[j]
            pivot = -2 * form[places[i], places[i]]
            for m in range(i):
                pivot -= root[i, m] * root[i, m]
            root[i, i] = np.sqrt(pivot)
            y[i] = total / root[i, i]
        out[r] = x[r]
        for i in range(h - 1, -1, -1):
            total = y[i] + noise[r, places[i]]
            for j in range(i + 1, h):
                total -= root[j, i] * y[j]
            y[i] = total / root[i, i]
            out[r, places[i]] = y[i]


@njit(**ORDERED)
def _same(one: Array, two: Array) -> bool:
    equal = True
    for d in range(len(one)):
        equal &= one[d] == two[d]
    return equal


@njit(**ORDERED)
def _split(hides: Array, places: Array) -> int:
    """Write where a row hides features; return how many."""
    h = 0
    for d in range(len(hides)):
        if hides[d]:
            places[h] = d
            h += 1
    return h


@njit(**ORDERED)
def _factorise(form: Array, places: Array, h: int, root: Array, inverse: Array, constant: Array) -> None:
    """Cholesky factor of the hidden precision, reciprocal pivots, and the constant of its Gaussian integral."""
    for i in range(h):
        for j in range(i + 1):
            total = _plus(_all(0.0), _get(form[places[i], places[j]]), _all(-2.0))
            for m in range(j):
                total = _minus(total, _get(root[i, m]), _get(root[j, m]))
            if j < i:
                _put(root[i, j], _times(total, _get(inverse[j])))
            else:
                _put(inverse[i], _reciprocal_root(total))
    constant[:] = h * LOG_2PI / 2
    for first in range(0, h, PIVOTS):
        product = _all(1.0)
        for i in range(first, min(first + PIVOTS, h)):
            product = _times(product, _get(inverse[i]))
        for v in range(LANES):
            constant[v] += np.log(product[v])


@njit(**ORDERED)
def _solve(form: Array, places: Array, h: int, x: Array, root: Array, inverse: Array, y: Array) -> None:
    """Information of the hidden features, given a row with zeros for them, divided by the factor."""
    D = len(x)
    for i in range(h):
        total = _get(form[places[i], D])
        for o in range(D):
            total = _plus(total, _get(form[places[i], o]), _all(x[o]))
        total = _times(total, _all(2.0))
        for m in range(i):
            total = _minus(total, _get(root[i, m]), _get(y[m]))
        _put(y[i], _times(total, _get(inverse[i])))


@njit(**ORDERED)
def _back(root: Array, inverse: Array, h: int, y: Array) -> None:
    """Divide by the transposed factor: what `_solve` gave becomes the mean."""
    for i in range(h - 1, -1, -1):
        total = _get(y[i])
        for j in range(i + 1, h):
            total = _minus(total, _get(root[j, i]), _get(y[j]))
        _put(y[i], _times(total, _get(inverse[i])))


@njit(**ORDERED)
def _add_means(places: Array, h: int, mean: Array, x: Array, weight: Lanes, into: Array) -> None:
    """Products of conditional means with all else in the row, each in one of its two places."""
    D = len(x)
    for i in range(h):
        push, here = _times(weight, _get(mean[i])), into[places[i]]
        for o in range(D):
            _put(here[o], _plus(_get(here[o]), push, _all(x[o])))
        _put(here[D], _plus(_get(here[D]), push, _all(1.0)))
        for j in range(i + 1):
            _put(here[places[j]], _plus(_get(here[places[j]]), push, _get(mean[j])))


@njit(**ORDERED)
def _add_spread(places: Array, h: int, root: Array, inverse: Array, spread: Array, run: Lanes, into: Array) -> None:
    """Conditional covariance times the weight of a run of rows that hide the same."""
    for j in range(h):
        _put(spread[j, j], _get(inverse[j]))
        for i in range(j + 1, h):
            total = _all(0.0)
            for m in range(j, i):
                total = _minus(total, _get(root[i, m]), _get(spread[m, j]))
            _put(spread[i, j], _times(total, _get(inverse[i])))
    for i in range(h):
        for j in range(i + 1):
            total = _all(0.0)
            for m in range(i, h):
                total = _plus(total, _get(spread[m, i]), _get(spread[m, j]))
            here = into[places[i], places[j]]
            _put(here, _plus(_get(here), run, total))


@njit(**ORDERED)
def _add_slopes(form: Array, places: Array, h: int, mean: Array, hides: Array, weight: Lanes, slope: Array) -> None:
    """Gradient in the seen features of a row."""
    for o in range(len(hides)):
        if not hides[o]:
            total = _all(0.0)
            for i in range(h):
                total = _plus(total, _get(form[places[i], o]), _get(mean[i]))
            for v in range(LANES):
                slope[o] += 2 * total[v] * weight[v]


@njit(**ORDERED)
def _all(c: float) -> Lanes:
    return (c, c, c, c, c, c, c, c)


@njit(**ORDERED)
def _get(a: Array) -> Lanes:
    return (a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7])


@njit(**ORDERED)
def _put(a: Array, t: Lanes) -> None:
    a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7] = t


@njit(**ORDERED)
def _times(t: Lanes, u: Lanes) -> Lanes:
    (a, b, c, d, e, f, g, h), (p, q, r, s, v, w, x, y) = t, u
    return (a * p, b * q, c * r, d * s, e * v, f * w, g * x, h * y)


@njit(**ORDERED)
def _plus(t: Lanes, u: Lanes, factor: Lanes) -> Lanes:
    (a, b, c, d, e, f, g, h), (p, q, r, s, v, w, x, y) = t, _times(u, factor)
    return (a + p, b + q, c + r, d + s, e + v, f + w, g + x, h + y)


@njit(**ORDERED)
def _minus(t: Lanes, u: Lanes, factor: Lanes) -> Lanes:
    (a, b, c, d, e, f, g, h), (p, q, r, s, v, w, x, y) = t, _times(u, factor)
    return (a - p, b - q, c - r, d - s, e - v, f - w, g - x, h - y)


@njit(**ORDERED)
def _reciprocal_root(t: Lanes) -> Lanes:
    a, b, c, d, e, f, g, h = t
    return (
        1 / np.sqrt(a), 1 / np.sqrt(b), 1 / np.sqrt(c), 1 / np.sqrt(d),
        1 / np.sqrt(e), 1 / np.sqrt(f), 1 / np.sqrt(g), 1 / np.sqrt(h),
    )  # fmt: skip
