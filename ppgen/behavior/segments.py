"""Labels of frames as instances: when each began, how long it lasted, what came next."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

__all__ = [
    "Labels",
    "instances",
    "median_duration",
    "order_by_use",
    "summary",
    "transition_counts",
    "transition_shares",
    "usage",
]

Labels = Mapping[str, np.ndarray]
"""Recording -> the syllable (T,) of each frame; a negative number is a frame without one."""


def instances(labels: Labels, fps: float) -> pd.DataFrame:
    """One row per instance: ``recording, syllable, start, stop`` (frames, stop excluded) and ``duration`` (seconds)."""
    parts = [_runs(name, np.asarray(z), fps) for name, z in labels.items()]
    empty = _runs("", np.empty(0, int), fps)
    return pd.concat([part for part in parts if len(part)] or [empty], ignore_index=True)


def median_duration(labels: Labels, fps: float) -> float:
    """The median over all instances, in seconds; NaN when there is none."""
    lengths = instances(labels, fps)["duration"]
    return float(lengths.median()) if len(lengths) else float("nan")


def order_by_use(labels: Labels, states: int) -> np.ndarray:
    """The number (states,) that each state gets: 0 for the one with most frames; ties keep their order."""
    counts = sum((_count(z, states) for z in labels.values()), np.zeros(states, int))
    rank = np.empty(states, int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(states)
    return rank


def usage(labels: Labels, states: int) -> pd.DataFrame:
    """Share of the labelled frames of each recording (rows) in each syllable (columns); NaN where no frame has one."""
    counts = np.array([_count(z, states) for z in labels.values()], float).reshape(-1, states)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    return pd.DataFrame(
        shares, index=pd.Index(list(labels), name="recording"), columns=pd.RangeIndex(states, name="syllable")
    )


def transition_counts(z: np.ndarray, states: int) -> np.ndarray:
    """Count how often (states, states) one syllable (row) was followed by another (column); staying does not count."""
    z = np.asarray(z)
    pairs = np.flatnonzero((z[:-1] != z[1:]) & (z[:-1] >= 0) & (z[1:] >= 0))
    counts = np.zeros((states, states), int)
    np.add.at(counts, (z[pairs], z[pairs + 1]), 1)
    return counts


def transition_shares(counts: np.ndarray) -> np.ndarray:
    """Rows of counts (..., states, states) as probabilities of the next syllable; NaN where nothing followed."""
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=-1, keepdims=True)


def summary(labels: Labels, states: int, fps: float) -> pd.DataFrame:
    """One row per syllable that is used: share of time, instances per minute, durations in seconds."""
    rows, counts = instances(labels, fps), sum(_count(z, states) for z in labels.values())
    lengths = rows.groupby("syllable")["duration"]
    frames = pd.Series(counts, name="frames").rename_axis("syllable")
    minutes = max(frames.sum(), 1) / fps / 60
    table = pd.DataFrame({
        "usage": frames / max(frames.sum(), 1),
        "frames": frames,
        "instances": lengths.size(),
        "per_minute": lengths.size() / minutes,
        "median_duration": lengths.median(),
        "mean_duration": lengths.mean(),
        "recordings": rows.groupby("syllable")["recording"].nunique(),
    })  # fmt: skip
    return table[table["frames"] > 0].astype({"instances": int, "recordings": int}).rename_axis("syllable")


def _runs(name: str, z: np.ndarray, fps: float) -> pd.DataFrame:
    start = np.flatnonzero(np.r_[True, z[1:] != z[:-1]]) if len(z) else np.empty(0, int)
    stop = np.r_[start[1:], len(z)].astype(int) if len(z) else start
    kept = z[start] >= 0
    start, stop = start[kept], stop[kept]
    return pd.DataFrame({
        "recording": name,
        "syllable": z[start].astype(int),
        "start": start,
        "stop": stop,
        "duration": (stop - start) / fps,
    })  # fmt: skip


def _count(z: np.ndarray, states: int) -> np.ndarray:
    z = np.asarray(z)
    return np.bincount(z[z >= 0], minlength=states)[:states]
