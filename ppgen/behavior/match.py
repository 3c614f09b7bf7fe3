"""Stability of syllables between two fits of the same recordings: which is which, and how far they agree."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from ppgen.behavior.segments import Labels
from ppgen.errors import DataError

__all__ = ["Match", "match", "normalized_mutual_information"]


@dataclass(frozen=True)
class Match:
    """Two segmentations side by side.

    Attributes
    ----------
    syllables : one row per syllable of A: its partner ``b`` (-1: none left), ``frames``, ``partner_frames``, the frames
        in common (``shared``) and the ``agreement``, shared frames over frames in either (Jaccard index).
    overlap : frames in common: syllables of A by syllables of B, these in matched order.
    agreement : share of all frames that lie in matched syllables.
    nmi : normalised mutual information of the labels, between 0 and 1; it needs no matching.
    recordings : the recordings compared.
    """

    syllables: pd.DataFrame
    overlap: pd.DataFrame
    agreement: float
    nmi: float
    recordings: list[str]


def match(a: Labels, b: Labels) -> Match:
    """Match the syllables of two fits by the frames they share (Hungarian assignment).

    Recordings count when both have them under the same name and with the same number of frames; frames count when
    both give them a label (not negative).

    Raises
    ------
    DataError : no recording is in both, or one has different lengths.
    """
    names = [name for name in a if name in b]
    if not names:
        raise DataError(f"match: both fits must share recordings, got {_some(a)} and {_some(b)}; fit the same files")
    for name in names:
        if len(a[name]) != len(b[name]):
            raise DataError(
                f"match: recording {name!r} must have as many frames in both fits, "
                f"got {len(a[name])} and {len(b[name])}; fit the same files"
            )
    za = np.concatenate([np.asarray(a[name]) for name in names])
    zb = np.concatenate([np.asarray(b[name]) for name in names])
    both = (za >= 0) & (zb >= 0)
    if not both.any():
        raise DataError("match: some frame must have a label in both fits, got none")
    counts = _contingency(za[both], zb[both])
    return _matched(counts, names)


def normalized_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two labellings over the mean of their entropies; 1 when both are constant."""
    return _nmi(_contingency(np.asarray(a), np.asarray(b)))


def _matched(counts: np.ndarray, names: list[str]) -> Match:
    used_a, used_b = np.flatnonzero(counts.sum(1)), np.flatnonzero(counts.sum(0))
    kept = counts[np.ix_(used_a, used_b)]
    rows, columns = linear_sum_assignment(kept, maximize=True)
    order = [*columns, *np.setdiff1d(np.arange(len(used_b)), columns)]
    overlap = pd.DataFrame(kept, index=pd.Index(used_a, name="a"), columns=pd.Index(used_b, name="b")).iloc[:, order]
    partner = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    table = pd.DataFrame([_row(kept, i, partner.get(i), used_b) for i in range(len(used_a))], index=overlap.index)
    return Match(table, overlap, float(kept[rows, columns].sum() / kept.sum()), _nmi(kept), names)


def _row(counts: np.ndarray, i: int, j: int | None, used_b: np.ndarray) -> dict[str, float]:
    frames = int(counts[i].sum())
    if j is None:
        return {"b": -1, "frames": frames, "partner_frames": 0, "shared": 0, "agreement": 0.0}
    other, shared = int(counts[:, j].sum()), int(counts[i, j])
    return {"b": int(used_b[j]), "frames": frames, "partner_frames": other, "shared": shared,
            "agreement": shared / (frames + other - shared)}  # fmt: skip


def _contingency(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    counts = np.zeros((a.max() + 1, b.max() + 1), int)
    np.add.at(counts, (a, b), 1)
    return counts


def _nmi(counts: np.ndarray) -> float:
    joint = counts / counts.sum()
    pa, pb = joint.sum(1), joint.sum(0)
    entropy = -sum(float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (pa, pb)) / 2
    if entropy == 0:
        return 1.0
    held = joint > 0
    information = float((joint[held] * np.log(joint[held] / np.outer(pa, pb)[held])).sum())
    return min(max(information / entropy, 0.0), 1.0)


def _some(labels: Labels) -> str:
    names = list(labels)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
