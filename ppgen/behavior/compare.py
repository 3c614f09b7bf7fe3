"""Whether groups of recordings differ in which syllables they use, how long these last, and what follows what.

The recording is the unit: frames of one animal are not independent. Usage and duration of each syllable are compared
by Kruskal and Wallis's test over the groups, then each pair of groups by Dunn's test on the same ranks (Dunn 1964,
with the correction for ties). The probability of each transition is compared by permuting the recordings between two
groups. All p-values of one kind are adjusted together for the share of false discoveries (Benjamini and Hochberg 1995).

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

from ppgen.behavior.segments import Labels, instances, transition_counts, transition_shares, usage
from ppgen.errors import DataError

__all__ = ["Comparison", "compare", "dunn"]


@dataclass(frozen=True)
class Comparison:
    """Groups side by side.

    Attributes
    ----------
    usage, duration
        Recordings (rows) by syllables (columns): share of time; median duration in seconds (NaN: not used).
    usage_tests, duration_tests
        One row per syllable: the mean of each group, Kruskal and Wallis's ``statistic``, ``p``, ``p_adjusted``.
    pairs
        Dunn's test: one row per measure, syllable and pair of groups: ``z``, ``p``, ``p_adjusted``.
    transitions
        One row per transition and pair of groups: both means, their ``difference``, ``p``, ``p_adjusted``.
    groups
        The group of each recording.
    """

    usage: pd.DataFrame
    duration: pd.DataFrame
    usage_tests: pd.DataFrame
    duration_tests: pd.DataFrame
    pairs: pd.DataFrame
    transitions: pd.DataFrame
    groups: pd.Series


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
    labels
        Recording -> syllable of each frame.
    groups
        Recording -> its group; at least two groups of two recordings each.
    fps
        Frames per second.
    permutations
        How often recordings are shuffled between two groups; fewer when all the ways are fewer.
    min_usage
        Syllables used for less than this share of the time, over all recordings, are left out of the tests.
    random_seed
        Of the permutations.
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
    return Comparison(
        usage=shares,
        duration=length,
        usage_tests=_kruskal(shares[kept], group),
        duration_tests=_kruskal(length[kept], group),
        pairs=pd.concat(
            [_pairs("usage", shares[kept], group), _pairs("duration", length[kept], group)], ignore_index=True
        ),
        transitions=_transitions(steps, kept, group, permutations, random_seed),
        groups=group,
    )


def dunn(values: np.ndarray, groups: np.ndarray) -> pd.DataFrame:
    """Dunn's test of every pair of groups on the ranks of all values, corrected for ties.

    Parameters
    ----------
    values, groups
        (N,) numbers and the group of each; NaN is left out.

    Returns
    -------
    One row per pair, ``a`` and ``b``, with ``z`` (positive: ``a`` ranks higher) and the two-sided ``p``; NaN where a
    group is empty or all values are equal.
    """
    seen = np.isfinite(values)
    rank, group = stats.rankdata(values[seen]), groups[seen]
    n = len(rank)
    ties = np.unique(rank, return_counts=True)[1].astype(float)
    variance = n * (n + 1) / 12 - (ties**3 - ties).sum() / (12 * max(n - 1, 1))
    rows = []
    for a, b in combinations(sorted(set(groups.tolist())), 2):
        one, two = rank[group == a], rank[group == b]
        z = np.nan
        if len(one) and len(two) and variance > 1e-12:
            z = (one.mean() - two.mean()) / np.sqrt(variance * (1 / len(one) + 1 / len(two)))
        rows.append({"a": a, "b": b, "z": z, "p": 2 * stats.norm.sf(abs(z))})
    return pd.DataFrame(rows)


def _groups(labels: Labels, groups: Mapping[str, str]) -> pd.Series:
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


def _kruskal(table: pd.DataFrame, group: pd.Series) -> pd.DataFrame:
    names = sorted(group.unique())
    rows = []
    for syllable, column in table.items():
        samples = [column[group == name].dropna().to_numpy() for name in names]
        statistic, p = np.nan, np.nan
        if min(map(len, samples)) and len(np.unique(np.concatenate(samples))) > 1:
            statistic, p = stats.kruskal(*samples)
        means = {
            f"mean_{name}": sample.mean() if len(sample) else np.nan
            for name, sample in zip(names, samples, strict=True)
        }
        rows.append({"syllable": syllable, **means, "statistic": statistic, "p": p})
    tests = pd.DataFrame(rows).set_index("syllable")
    return tests.assign(p_adjusted=_adjust(tests["p"]))


def _pairs(measure: str, table: pd.DataFrame, group: pd.Series) -> pd.DataFrame:
    parts = [
        dunn(column.to_numpy(float), group.to_numpy()).assign(measure=measure, syllable=k)
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
    """Difference of means (cells,) and its two-sided permutation p-value; the observed split counts as one more."""
    seen, filled = np.isfinite(shares).astype(float), np.nan_to_num(shares)
    generator = np.random.default_rng(seed)
    splits = np.array([one, *(generator.permutation(one) for _ in range(permutations))], float)
    with np.errstate(invalid="ignore"):
        means = [(side @ filled) / (side @ seen) for side in (splits, 1 - splits)]
    difference = means[0] - means[1]
    observed = difference[0]
    beyond = (~(np.abs(difference) < np.abs(observed) - 1e-12)).sum(0)
    return observed, np.where(np.isfinite(observed), beyond / (permutations + 1), np.nan)


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
