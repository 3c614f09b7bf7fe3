r"""Modes of the chains: chains that share no ground are in separate modes, or have not moved far.

In every scalar quantity the chains' medians are put in order and cut wherever the gap to the next one is more than
three spreads (the pooled 1.48 MAD of the two neighbours): two normals so far apart share 13 % of their mass. Chains
that no quantity cuts apart are together. How many chains are in a mode says where they began, not how much the mode
weighs: chains that cannot cross know nothing of the way between (Yao, Vehtari & Gelman 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Modes", "modes"]

Array = np.ndarray

GAP = 3.0  # spreads between the medians of neighbours
NAMED = 3  # sites named in words
SPREAD = 1.4826  # of a normal, per median absolute deviation


@final
@dataclass(frozen=True, eq=False)
class Modes:
    """``label`` of each chain (C,), 0 the most frequent; ``sites`` in which they differ; ``counts`` of the chains."""

    label: Int[Array, " C"]
    sites: tuple[str, ...]

    @property
    def counts(self) -> list[int]:
        """Chains in each mode, most first."""
        return np.bincount(self.label).tolist()

    def words(self, lp: Float[Array, "C S"] | None = None) -> str:
        """``2 modes: 33 chains here, 31 there``, the sites that differ, and the mean log density of each mode."""
        counts = self.counts
        if len(counts) == 1:
            return f"1 mode: {counts[0]} chains"
        if max(counts) == 1:
            head = f"no two of {len(counts)} chains are in the same place"
        else:
            rest = ", ".join(f"{count} {'there' if i == 0 else 'elsewhere'}" for i, count in enumerate(counts[1:4]))
            more = ", and so on" if len(counts) > 4 else ""
            head = f"{len(counts)} modes: {counts[0]} chains here, {rest}{more}"
        named = ", ".join(self.sites[:NAMED]) + (" and others" if len(self.sites) > NAMED else "")
        if lp is None or len(counts) > 4:
            return f"{head}; they differ in {named}"
        heights = ", ".join(f"{lp[self.label == i].mean():.1f}" for i in range(len(counts)))
        return f"{head}; they differ in {named}; mean log density {heights}"


def modes(draws: Mapping[str, Float[Array, "C S *event"]]) -> Modes:
    """Group chains by the mode they sit in; every draw must be finite."""
    cuts = {site: _labels(np.asarray(value, dtype=float)) for site, value in draws.items()}
    together = np.concatenate(list(cuts.values()), 1)
    _, label, counts = np.unique(together, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(np.argsort(-counts, kind="stable"))
    differ = tuple(site for site, labels in cuts.items() if labels.any())
    return Modes(order[label.reshape(-1)], differ)


def _labels(value: Float[Array, "C S *event"]) -> Int[Array, "C P"]:
    """Per entry, which chains share ground with their neighbours: a number for each run of them."""
    flat = value.reshape(*value.shape[:2], -1)
    middle = np.median(flat, 1)
    spread = SPREAD * np.median(np.abs(flat - middle[:, None]), 1)
    order = np.argsort(middle, 0)
    middle, spread = np.take_along_axis(middle, order, 0), np.take_along_axis(spread, order, 0)
    cut = np.diff(middle, axis=0) > GAP * np.sqrt((spread[1:] ** 2 + spread[:-1] ** 2) / 2)
    label = np.zeros(order.shape, dtype=int)
    np.put_along_axis(label, order[1:], cut.cumsum(0), 0)
    return label
