r"""Have the chains forgotten where they began, and how many draws are they worth? Numbers on plain arrays.

Everything here looks at many scalar quantities (entries, ``P``) at once: ``x`` has shape (P, C, S). Draws are replaced
by normal scores of their ranks, and by those of their distance from the median (folded), so that heavy tails do no
harm and chains that differ in scale only are seen (Vehtari et al. 2021).

:math:`\hat R` of few long chains compares split chains. Of many short ones (16 or more) it would measure how long they
are, not whether they agree: at stationarity it is :math:`\sqrt{1 + (\tau - 1) / S}` for an autocorrelation time
:math:`\tau`. Nested :math:`\hat R` (Margossian et al. 2024) compares the means of superchains of :math:`M` chains
instead. Theirs share a starting point; ours are the quarters of the chains sorted by where their first halves were, and
are compared by their second halves, so that what lasts from one half to the next is between superchains. At
stationarity it is :math:`\sqrt{1 + \tau / (M S / 2)}`, :math:`\sqrt{1 + 1 / M}` for a single draw. A drift that all
chains share is no difference between them: four spans of time are compared in the same way.

References: Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021); Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari &
Gelman (2024); Geyer (1992); Grubbs (1950); Vehtari, Simpson, Gelman, Yao & Gabry (2024); Zhang & Stephens (2009).
"""

from dataclasses import dataclass, fields
from typing import final

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri, stdtr
from scipy.stats import chi2, rankdata

__all__ = [
    "MANY",
    "NUMBERS_AT_ONCE",
    "Convergence",
    "bulk_size",
    "convergence",
    "effective_size",
    "nested_rhat",
    "rhat",
    "tail_shape",
]

Array = np.ndarray
Entries = Float[Array, "P C S"]

MANY, SUPERCHAINS = 16, 4  # from so many chains on R-hat is nested; superchains, and spans of time
SHORTEST = 4  # draws of a chain, for any of this to have a value
FORGOTTEN = 5  # autocorrelation times over which a chain's autocovariance is summed, each too small by what it spans
FEW_CHAINS = 1.1  # what the error of a chain's mean may be above its estimate from few chains
NUMBERS_AT_ONCE = 1 << 22  # numbers worked on at once
TAIL_PRIOR = 10  # draws that the prior of a tail's shape, at 0.5, counts


@final
@dataclass(frozen=True, eq=False)
class Convergence:
    """Per entry (P,); NaN where there is no value.

    ``rhat`` and ``noise`` (what chains that agree would reach by chance once in ``1 / rate`` runs), effective sizes
    ``bulk``, ``tail`` and ``mean``, ``shape`` (the heavier tail's Pareto shape), ``apart`` (distance of the oddest
    chain from the others in pooled standard deviations, 0 where chance explains it) and ``odd``, its number, and
    ``between`` (sd of the chains' means beyond their own Monte Carlo errors, 0 where chance explains it).
    """

    rhat: Float[Array, " P"]
    noise: Float[Array, " P"]
    bulk: Float[Array, " P"]
    tail: Float[Array, " P"]
    mean: Float[Array, " P"]
    shape: Float[Array, " P"]
    apart: Float[Array, " P"]
    odd: Float[Array, " P"]
    between: Float[Array, " P"]


def convergence(x: Entries, rate: float) -> Convergence:
    """Every number of `Convergence` at once; ``rate`` is the false-alarm rate of one entry."""
    rows = max(1, NUMBERS_AT_ONCE // max(1, x[0].size)) if len(x) else 1
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [_convergence(x[first : first + rows], rate) for first in range(0, len(x), rows)]
    return Convergence(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Convergence)))


def rhat(parts: Float[Array, "P m n"]) -> Float[Array, " P"]:
    """Potential scale reduction of ``m`` sequences of ``n``, which the caller has split and ranked."""
    n = parts.shape[-1]
    return np.sqrt((n - 1) / n + parts.mean(-1).var(-1, ddof=1) / parts.var(-1, ddof=1).mean(-1))


def nested_rhat(parts: Float[Array, "P K M n"]) -> Float[Array, " P"]:
    """Nested R-hat of ``K`` superchains of ``M`` sequences of ``n``, eq. 8 of Margossian et al. (2024)."""
    chain = parts.mean(-1)
    within = parts.var(-1, ddof=1).mean(-1) if parts.shape[-1] > 1 else np.zeros(chain.shape[:-1])
    between = chain.var(-1, ddof=1) if parts.shape[-2] > 1 else np.zeros(chain.shape[:-1])
    return np.sqrt(1 + chain.mean(-1).var(-1, ddof=1) / (within + between).mean(-1))


def effective_size(parts: Float[Array, "P m n"]) -> Float[Array, " P"]:
    """Count independent draws that tell as much about the mean as ``m`` sequences of ``n``, by Geyer's sequences."""
    n = parts.shape[-1]
    covariance = _autocovariance(parts)
    within = covariance[:, :1] * n / (n - 1)
    total = covariance[:, :1] + (parts.mean(-1).var(-1, ddof=1)[:, None] if parts.shape[1] > 1 else 0.0)
    size = parts[0].size
    time = _autocorrelation_time(1 - (within - covariance) / total)
    return size / np.maximum(time, 1 / np.log10(size))


def bulk_size(x: Entries) -> Float[Array, " P"]:
    """Effective size for the middle of a distribution: of the normal scores of ranks, chains split in halves."""
    return effective_size(_scores(_halves(x)))


def tail_shape(x: Float[Array, "P n"]) -> Float[Array, " P"]:
    """Shape of the heavier tail as a generalised Pareto: from 0.5 on the variance is infinite, from 1 on the mean."""
    n = x.shape[-1]
    count = min(int(3 * np.sqrt(n)) if n > 225 else n // 5, n // 2 - 1)
    if count < 5:
        return np.full(len(x), np.nan)
    ordered = np.sort(x, -1)
    upper = ordered[:, -count:] - ordered[:, -count - 1, None]
    lower = ordered[:, count, None] - ordered[:, count - 1 :: -1]
    return np.maximum(_pareto_shape(upper), _pareto_shape(lower))


def _convergence(x: Entries, rate: float) -> Convergence:
    """Ranks of split chains for means (bulk) and of their folded values for spreads; the worse of the two decides."""
    nothing = np.full(len(x), np.nan)
    if x.shape[-1] < SHORTEST or not np.isfinite(x).all():
        return Convergence(*(nothing,) * len(fields(Convergence)))
    halves = _halves(x)
    bulk, folded = _scores(halves), _scores(_fold(halves))
    compared = [_compared(scores, rate / 2) for scores in (bulk, folded)]
    apart = [_apart(_chain_means(scores), rate / 2) for scores in (bulk, folded)]
    farther = apart[1][0] > apart[0][0]
    tails = [effective_size(_halves(flag.astype(float))) for flag in _beyond_quantiles(x)]
    return Convergence(
        rhat=np.maximum(compared[0][0], compared[1][0]),
        noise=np.maximum(compared[0][1], compared[1][1]),
        bulk=effective_size(bulk),
        tail=np.minimum(*tails),
        mean=effective_size(halves),
        shape=tail_shape(x.reshape(len(x), -1)),
        apart=np.where(farther, apart[1][0], apart[0][0]),
        odd=np.where(farther, apart[1][1], apart[0][1]),
        between=np.maximum(compared[0][2], compared[1][2]),
    )


def _compared(
    scores: Float[Array, "P m n"], rate: float
) -> tuple[Float[Array, " P"], Float[Array, " P"], Float[Array, " P"]]:
    """R-hat of ranked half chains (first halves first), what it reaches with probability ``rate``, and `_between`."""
    _, m, n = scores.shape
    covariance = _autocovariance(scores)
    time = np.maximum(_autocorrelation_time(covariance / covariance[:, :1]), 1.0)  # within chains: they may disagree
    between = _between(scores, covariance[:, 0], time, rate)
    if m < 2 * MANY:
        one = np.full(len(scores), np.nan)
        value = one if m < 4 else rhat(scores)
        return value, np.sqrt((n - 1) / n + time / n * chi2.isf(rate, max(m - 1, 1)) / max(m - 1, 1)), between
    first, second = scores[:, : m // 2], scores[:, m // 2 :]
    value = np.maximum(nested_rhat(_superchains(first, second)), nested_rhat(_spans(first, second)))
    least = n * (m // 2 // SUPERCHAINS)  # draws behind the mean of a superchain, the same as of a span or fewer
    return value, np.sqrt(1 + time / least * chi2.isf(rate / 2, SUPERCHAINS - 1) / (SUPERCHAINS - 1)), between


def _between(
    scores: Float[Array, "P m n"], variance: Float[Array, " P"], time: Float[Array, " P"], rate: float
) -> Float[Array, " P"]:
    """Sd of the chains' means beyond their Monte Carlo errors, where a chi-square test tells it from none; else 0.

    The error is that of the autocorrelation time, less exact the shorter the chains; of many chains it is also half the
    difference of their halves, if that is larger.
    """
    _, m, n = scores.shape
    if m < 4:
        return np.zeros(len(scores))
    means, halves = _chain_means(scores), scores.mean(-1)
    error = variance * time / (2 * n) / np.maximum(1 - FORGOTTEN * time / n, 0.5)
    if m < 2 * MANY:
        error *= FEW_CHAINS
    else:
        error = np.maximum(error, ((halves[:, : m // 2] - halves[:, m // 2 :]) ** 2).mean(-1) / 4)
    found = means.var(-1, ddof=1)
    seen = found * (m // 2 - 1) > error * chi2.isf(rate, m // 2 - 1)
    return np.where(seen, np.sqrt(np.maximum(found - error, 0)), 0.0)


def _superchains(first: Entries, second: Entries) -> Float[Array, "P K M S"]:
    """Second halves, grouped by where the first halves were."""
    order = np.argsort(first.mean(-1), axis=-1)[:, : first.shape[1] // SUPERCHAINS * SUPERCHAINS]
    return np.take_along_axis(second, order[..., None], 1).reshape(len(first), SUPERCHAINS, -1, second.shape[-1])


def _spans(first: Entries, second: Entries) -> Float[Array, "P K C n"]:
    """Spans of time as superchains, in each of which every chain takes part."""
    length = first.shape[-1] // (SUPERCHAINS // 2)
    return np.stack([half[..., k * length : (k + 1) * length] for half in (first, second) for k in (0, 1)], 1)


def _apart(means: Float[Array, "P C"], rate: float) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """Distance of the oddest chain from the mean of the others, 0 where their spread explains it (Grubbs); which."""
    C = means.shape[-1]
    if C < 3:
        return np.zeros(len(means)), np.zeros(len(means))
    others = (means.sum(-1, keepdims=True) - means) / (C - 1)
    square = ((means**2).sum(-1, keepdims=True) - means**2) - (C - 1) * others**2
    distance = np.abs(means - others)
    deviation = distance / np.sqrt(np.maximum(square, 0) / (C - 2) * C / (C - 1))
    odd = np.argmax(distance, -1)
    farthest, t = (np.take_along_axis(v, odd[:, None], -1)[:, 0] for v in (distance, deviation))
    chance = 2 * C * stdtr(C - 2, -t)
    return np.where(chance < rate, farthest, 0.0), odd.astype(float)


def _chain_means(scores: Float[Array, "P m n"]) -> Float[Array, "P C"]:
    half = scores.shape[1] // 2
    return (scores[:, :half].mean(-1) + scores[:, half:].mean(-1)) / 2


def _halves(x: Entries) -> Float[Array, "P m n"]:
    half = x.shape[-1] // 2
    return np.concatenate([x[..., :half], x[..., -half:]], 1)


def _fold(x: Entries) -> Entries:
    return np.abs(x - np.median(x.reshape(len(x), -1), -1)[:, None, None])


def _scores(x: Entries) -> Entries:
    """Normal scores of the ranks among all draws of an entry, ties sharing theirs."""
    flat = x.reshape(len(x), -1)
    return ndtri((rankdata(flat, axis=-1) - 3 / 8) / (flat.shape[-1] + 1 / 4)).reshape(x.shape)


def _beyond_quantiles(x: Entries) -> tuple[Array, Array]:
    low, high = np.quantile(x.reshape(len(x), -1), [0.05, 0.95], axis=-1)
    return x <= low[:, None, None], x >= high[:, None, None]


def _autocovariance(parts: Float[Array, "P m n"]) -> Float[Array, "P n"]:
    """Mean over sequences of the autocovariance at every lag."""
    n = parts.shape[-1]
    size = 1 << (2 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(parts - parts.mean(-1, keepdims=True), size)) ** 2
    return np.fft.irfft(power.mean(1), size)[:, :n] / n


def _autocorrelation_time(rho: Float[Array, "P n"]) -> Float[Array, " P"]:
    """One plus twice the sum of autocorrelations, by Geyer's initial positive, then monotone, sequence of pairs."""
    pairs = rho[:, : rho.shape[-1] // 2 * 2].reshape(len(rho), -1, 2).copy()
    pairs[:, 0, 0] = 1.0
    sums = pairs.sum(-1)
    sums[:, (rho.shape[-1] - 3) // 2 :] = -1.0  # the last pair that is known well enough ends the sequence in any case
    alive = np.logical_and.accumulate(sums > 0, -1)
    end = np.minimum(alive.sum(-1), sums.shape[-1] - 1)
    rest = np.maximum(np.take_along_axis(pairs[..., 0], end[:, None], -1)[:, 0], 0)
    time = -1 + 2 * np.where(alive, np.minimum.accumulate(sums, -1), 0).sum(-1) + np.where(end > 0, rest, 1.0)
    return np.where(np.isfinite(rho).all(-1), time, np.nan)


def _pareto_shape(excess: Float[Array, "P n"]) -> Float[Array, " P"]:
    """Shape of excesses in ascending order: the profile posterior mean of Zhang & Stephens, drawn towards 0.5."""
    n = excess.shape[-1]
    count = 30 + int(np.sqrt(n))
    grid = (1 - np.sqrt(count / (np.arange(1, count + 1) - 0.5))) / 3
    b = grid / excess[:, int(n / 4 + 0.5) - 1, None] + 1 / excess[:, -1:]
    k = np.stack([np.log1p(-column[:, None] * excess).mean(-1) for column in b.T], -1)
    weight = n * (np.log(-b / k) - k - 1)
    weight = np.exp(weight - weight.max(-1, keepdims=True))
    middle = (b * weight).sum(-1) / weight.sum(-1)
    shape = np.log1p(-middle[:, None] * excess).mean(-1)
    return (n * shape + TAIL_PRIOR * 0.5) / (n + TAIL_PRIOR)
