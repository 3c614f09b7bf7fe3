"""Permutation tests over every way of dealing values out to groups: p-values for a handful of recordings.

With three recordings against three the chi-squared distribution gives complete separation p = .0495, though one way
in ten separates them completely. Here the statistic is compared with what it is for every way, or for many at random.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

__all__ = ["MANY", "SHUFFLES", "assignments", "permutation_p", "ways"]

MANY = 10  # values in each group from which on the usual approximations hold
# Ways up to which every one is taken; beyond, so many at random beside the one that was seen.
MOST_WAYS, SHUFFLES = 20_000, 9_999


def ways(sizes: Sequence[int]) -> int:
    """Count the ways of dealing values out to groups of these sizes."""
    return math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes))


@lru_cache(maxsize=64)
def assignments(sizes: tuple[int, ...], seed: int = 0, shuffles: int = SHUFFLES, most: int = MOST_WAYS) -> np.ndarray:
    """The group (ways, values) of each value: every way where they are at most ``most``, else so many ``shuffles``.

    The first way is that of the groups in order: the first ``sizes[0]`` values are in group 0, and so on.
    """
    first = np.repeat(np.arange(len(sizes)), sizes)
    if ways(sizes) <= most:
        dealt = np.array(list(_deal(tuple(range(len(first))), sizes)))
    else:
        generator = np.random.default_rng(seed)
        dealt = np.array([first, *(generator.permutation(first) for _ in range(shuffles))])
    dealt.flags.writeable = False
    return dealt


def permutation_p(
    samples: Sequence[np.ndarray], statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """Share of ways in which the statistic is as large as it is, and the smallest that this share could have been.

    Parameters
    ----------
    samples : the values of each group.
    statistic : ``statistic(values, dealt)`` gives one number for each way (ways, values); large is far apart.
    seed : of the ways, where not every one is taken.
    """
    dealt = assignments(tuple(map(len, samples)), seed)
    found = statistic(np.concatenate(samples), dealt)
    slack = 1e-9 * max(1.0, float(np.abs(found).max()))
    return float(np.mean(found >= found[0] - slack)), float(np.mean(found >= found.max() - slack))


def _deal(places: tuple[int, ...], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Group of each of ``places``, for every way; the first way is in order."""
    if len(sizes) == 1:
        yield [0] * len(places)
        return
    for chosen in combinations(range(len(places)), sizes[0]):
        rest = [i for i in range(len(places)) if i not in chosen]
        for later in _deal(tuple(rest), sizes[1:]):
            groups = [0] * len(places)
            for place, group in zip(rest, later, strict=True):
                groups[place] = group + 1
            yield groups
