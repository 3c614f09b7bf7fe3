"""Comparison of groups of recordings: which syllables they use, how long these last, and what follows what.

The recording is the unit: frames of one animal are not independent. Usage and duration of each syllable are compared
by Kruskal and Wallis's test over the groups, then each pair of groups by Dunn's test on the same ranks (Dunn 1964,
with the correction for ties). Where a group has fewer than ten values, the p-values of both are those of dealing the
values out to the groups in every way, or in ten thousand ways. The probability of each transition is compared by
permuting the recordings between two groups. With few recordings no p-value can be small, and the smallest possible one
is told. All p-values of one kind are adjusted together for the share of false discoveries (Benjamini and Hochberg
1995).

References: Kruskal and Wallis (1952), J. Am. Stat. Assoc. 47; Dunn (1964), Technometrics 6, 241-252; Benjamini and
Hochberg (1995), J. R. Stat. Soc. B 57; Phipson and Smyth (2010), Stat. Appl. Genet. Mol. Biol. 9, for the permutation
p-value that is never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats

from ppgen.behavior.partitions import MANY, assignments, permutation_p, ways
from ppgen.behavior.segments import Labels, instances, transition_counts, transition_shares, usage
from ppgen.errors import DataError

__all__ = ["Comparison", "compare", "dunn"]


@dataclass(frozen=True)
class Comparison:
    """Groups side by side.

    Attributes
    ----------
    usage, duration : recordings (rows) by syllables (columns): share of time; median duration in seconds (NaN: not
        used).
    usage_tests, duration_tests : one row per syllable: the mean of each group, Kruskal and Wallis's ``statistic``,
        ``p``, ``p_adjusted``, and the smallest ``p`` that so many values can give, ``p_smallest``.
    pairs : Dunn's test: one row per measure, syllable and pair of groups: ``z``, ``p``, ``p_adjusted``.
    transitions : one row per transition and pair of groups: both means, their ``difference``, ``p``, ``p_adjusted``.
    groups : the group of each recording.
    smallest : the smallest p-value, before adjustment, that any test of ``usage``, ``duration`` and ``transitions`` can
        give.
    """

    usage: pd.DataFrame
    duration: pd.DataFrame
    usage_tests: pd.DataFrame
    duration_tests: pd.DataFrame
    pairs: pd.DataFrame
    transitions: pd.DataFrame
    groups: pd.Series
    smallest: Mapping[str, float]


def compare(
    labels: Labels,
    groups: Mapping[str, str],
    fps: float,
    *,
    permutations: int = 2000,
    min_usage: float = 0.005,
    random_seed: int = 0,
) -> Comparison:
    """Compare groups of recordings.

    Parameters
    ----------
    labels : recording -> syllable of each frame.
    groups : recording -> its group; at least two groups of two recordings each.
    fps : frames per second.
    permutations : number of shuffles of recordings between two groups; fewer if there are fewer ways in all.
    min_usage : syllables used for less than this share of the time, over all recordings, are left out of the tests.
    random_seed : of the permutations, and of the ways to deal values out where they are too many to take every one.
    """
    group = _groups(labels, groups)
    states = max(int(np.max(z, initial=0)) for z in labels.values()) + 1
    shares = usage(labels, states)
    kept = [k for k in range(states) if shares[k].mean() >= min_usage]
    if not kept:
        raise DataError(f"compare: some syllable must be used for at least {min_usage:.2%} of the time, got none")
    rows = instances(labels, fps)
    length = (
        rows.groupby(["recording", "syllable"])["duration"]
        .median()
        .unstack()
        .reindex(index=shares.index, columns=shares.columns)
    )
    steps = {name: transition_counts(z, states)[np.ix_(kept, kept)] for name, z in labels.items()}
    measures = {"usage": shares[kept], "duration": length[kept]}
    tests = {name: _kruskal(table, group, random_seed) for name, table in measures.items()}
    pairs = [_pairs(name, table, group, random_seed) for name, table in measures.items()]
    return Comparison(
        usage=shares,
        duration=length,
        usage_tests=tests["usage"],
        duration_tests=tests["duration"],
        pairs=pd.concat(pairs, ignore_index=True),
        transitions=_transitions(steps, kept, group, permutations, random_seed),
        groups=group,
        smallest={name: float(table["p_smallest"].min()) for name, table in tests.items()}
        | {"transitions": _smallest_of_splits(group, permutations)},
    )


def dunn(values: np.ndarray, groups: np.ndarray, random_seed: int = 0) -> pd.DataFrame:
    """Dunn's test of every pair of groups on the ranks of all values, corrected for ties.

    Parameters
    ----------
    values, groups : (N,) numbers and the group of each; NaN is left out.
    random_seed : of the ways to deal the ranks of two groups out to them, where they are too many to take every one.

    Returns
    -------
    One row per pair, ``a`` and ``b``, with ``z`` (positive: ``a`` ranks higher) and the two-sided ``p``, from the
    normal distribution where both have ten values or more; NaN where a group is empty or all values are equal.
    """
    seen = np.isfinite(values)
    rank, group = stats.rankdata(values[seen]), groups[seen]
    n = len(rank)
    ties = np.unique(rank, return_counts=True)[1].astype(float)
    variance = n * (n + 1) / 12 - (ties**3 - ties).sum() / (12 * max(n - 1, 1))
    rows = []
    for a, b in combinations(sorted(set(groups.tolist())), 2):
        one, two = rank[group == a], rank[group == b]
        z, p = np.nan, np.nan
        if len(one) and len(two) and variance > 1e-12:
            z = (one.mean() - two.mean()) / np.sqrt(variance * (1 / len(one) + 1 / len(two)))
            p = 2 * stats.norm.sf(abs(z))
            if min(len(one), len(two)) < MANY:
                p, _ = permutation_p([one, two], _apart, random_seed)
        rows.append({"a": a, "b": b, "z": z, "p": p})
    return pd.DataFrame(rows)


def _apart(ranks: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """Distances between the mean ranks of two groups, for each way (ways, values) of dealing ranks out."""
    one = dealt == 0
    count = one.sum(axis=1)
    return np.abs(one @ ranks / count - ~one @ ranks / (len(ranks) - count))


def _spread(ranks: np.ndarray, dealt: np.ndarray) -> np.ndarray:
    """A number that grows with Kruskal and Wallis's statistic, for each way of dealing the same ranks out."""
    groups = np.arange(dealt.max() + 1)[:, None, None] == dealt
    return ((groups @ ranks) ** 2 / groups.sum(axis=2)).sum(axis=0)


def _groups(labels: Labels, groups: Mapping[str, str]) -> pd.Series:
    """Recording -> its group; two groups of two recordings are the least."""
    absent = [name for name in labels if name not in groups]
    if absent:
        raise DataError(
            f"compare: every recording must have a group, got none for {', '.join(absent[:3])}; add it to the index"
        )
    series = pd.Series({name: str(groups[name]) for name in labels}, name="group").rename_axis("recording")
    sizes = series.value_counts()
    if len(sizes) < 2 or sizes.min() < 2:
        found = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise DataError(
            f"compare: there must be two groups or more, of two recordings or more each, got {found}; "
            "write the group of each recording into the column 'group' of the index"
        )
    return series


def _kruskal(table: pd.DataFrame, group: pd.Series, seed: int) -> pd.DataFrame:
    """Kruskal and Wallis's test of each syllable (column) between groups, with p-values adjusted for their number."""
    names = sorted(group.unique())
    rows = []
    for syllable, column in table.items():
        samples = [column[group == name].dropna().to_numpy() for name in names]
        statistic, p, smallest = np.nan, np.nan, np.nan
        if min(map(len, samples)) and len(np.unique(np.concatenate(samples))) > 1:
            statistic, p = stats.kruskal(*samples)
            smallest = 0.0
            if min(map(len, samples)) < MANY:
                ranks = stats.rankdata(np.concatenate(samples))
                p, smallest = permutation_p(np.split(ranks, np.cumsum(list(map(len, samples)))[:-1]), _spread, seed)
        means = {
            f"mean_{name}": sample.mean() if len(sample) else np.nan
            for name, sample in zip(names, samples, strict=True)
        }
        rows.append({"syllable": syllable, **means, "statistic": statistic, "p": p, "p_smallest": smallest})
    tests = pd.DataFrame(rows).set_index("syllable")
    return tests.assign(p_adjusted=_adjust(tests["p"]))


def _pairs(measure: str, table: pd.DataFrame, group: pd.Series, seed: int) -> pd.DataFrame:
    parts = [
        dunn(column.to_numpy(float), group.to_numpy(), seed).assign(measure=measure, syllable=k)
        for k, column in table.items()
    ]
    tests = pd.concat(parts, ignore_index=True)
    return tests.assign(p_adjusted=_adjust(tests["p"]))[["measure", "syllable", "a", "b", "z", "p", "p_adjusted"]]


def _transitions(
    counts: Mapping[str, np.ndarray], kept: list[int], group: pd.Series, permutations: int, seed: int
) -> pd.DataFrame:
    """Differences of mean transition probabilities; only transitions that every pair can be asked about."""
    shares = np.array([transition_shares(counts[name]).ravel() for name in group.index])
    total = np.array([counts[name] for name in group.index]).sum(0).ravel()
    n = len(kept)
    rows = []
    for a, b in combinations(sorted(group.unique()), 2):
        inside = group.isin([a, b]).to_numpy()
        one = (group[inside] == a).to_numpy()
        difference, p = _permute(shares[inside], one, permutations, seed)
        means = _mean(shares[group.to_numpy() == a]), _mean(shares[group.to_numpy() == b])
        for cell in np.flatnonzero((total > 0) & np.isfinite(difference)):
            rows.append({
                "from": kept[cell // n], "to": kept[cell % n], "a": a, "b": b, "mean_a": means[0][cell],
                "mean_b": means[1][cell], "difference": difference[cell], "p": p[cell],
            })  # fmt: skip
    tests = pd.DataFrame(rows, columns=["from", "to", "a", "b", "mean_a", "mean_b", "difference", "p"])
    return tests.assign(p_adjusted=_adjust(tests["p"])).sort_values(["p_adjusted", "p"], ignore_index=True)


def _permute(shares: np.ndarray, one: np.ndarray, permutations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means (cells,) and its two-sided permutation p-value.

    Every split is taken where they are not more than ``permutations``, else so many at random and the observed one.
    """
    seen, filled = np.isfinite(shares).astype(float), np.nan_to_num(shares)
    sizes = (int(one.sum()), int((~one).sum()))
    if ways(sizes) <= permutations:
        dealt = assignments(sizes, most=permutations)
        splits = np.empty(dealt.shape)
        splits[:, np.r_[np.flatnonzero(one), np.flatnonzero(~one)]] = dealt == 0
    else:
        generator = np.random.default_rng(seed)
        splits = np.array([one, *(generator.permutation(one) for _ in range(permutations))], float)
    with np.errstate(invalid="ignore"):
        means = [(side @ filled) / (side @ seen) for side in (splits, 1 - splits)]
    difference = means[0] - means[1]
    observed = difference[0]
    beyond = (~(np.abs(difference) < np.abs(observed) - 1e-12)).sum(0)
    return observed, np.where(np.isfinite(observed), beyond / len(splits), np.nan)


def _smallest_of_splits(group: pd.Series, permutations: int) -> float:
    """The smallest p-value that splitting the recordings of two groups can give, over the pairs of groups."""
    found = []
    for pair in combinations(group.value_counts().to_list(), 2):
        mirrored = 2 if pair[0] == pair[1] else 1
        found.append(mirrored / ways(pair) if ways(pair) <= permutations else 1 / (permutations + 1))
    return min(found)


def _mean(values: np.ndarray) -> np.ndarray:
    seen = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(seen, values, 0.0).sum(0) / seen.sum(0)


def _adjust(p: pd.Series) -> pd.Series:
    """Benjamini and Hochberg's adjustment of the p-values that exist."""
    adjusted, known = pd.Series(np.nan, index=p.index, dtype=float), p.notna()
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known].to_numpy(float))
    return adjusted
