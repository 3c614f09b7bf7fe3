"""Figures of a segmentation: what happened when, for how long, how often, and what follows what."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from ppgen.errors import DataError
from ppgen.plots.style import ACCENT, INK, QUIET, SHADES, log_scale, new_figure, sole_axes, syllable_colors, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["durations", "ethogram", "transition_graph", "usage"]

EDGES_PER_SYLLABLE = 3  # the graph draws the likeliest successors only: with all of them it is a ball of wool


def ethogram(
    latents: xr.Dataset,
    *,
    sequence: str | None = None,
    start: float = 0.0,
    seconds: float = 30.0,
    ax: "Axes | None" = None,
) -> "Axes":
    """Syllables over time, one row each; the darker, the more probable.

    Parameters
    ----------
    latents : ``z`` (time, state), the probabilities, and ``z_mode`` (time), the most probable path (``-1``: none); with
        a ``sequence`` dimension in front when several recordings are held, as ``Fit.latents`` gives. The coordinate
        ``time`` is in seconds.
    sequence : the recording to show; the first one when not given.
    start, seconds : the stretch to show.
    ax : axes to draw into; a new figure by default.
    """
    one = latents.sel(sequence=sequence) if sequence is not None else latents
    one = one.isel(sequence=0) if "sequence" in one.dims else one
    shown = one.sel(time=slice(start, start + seconds))
    if not shown.sizes["time"]:
        raise DataError(f"ethogram: nothing lies between {start:g} and {start + seconds:g} s; choose another start")
    mode = shown["z_mode"].to_numpy()
    rows = [int(k) for k in np.unique(mode[mode >= 0])]
    if not rows:
        raise DataError(f"ethogram: no frame between {start:g} and {start + seconds:g} s has a syllable")
    ax = sole_axes(ax, 9.0, 1.2 + 0.18 * len(rows))
    time = shown["time"].to_numpy()
    step = float(np.diff(time).min()) if len(time) > 1 else 1.0
    image = ax.imshow(
        shown["z"].to_numpy()[:, rows].T,
        aspect="auto",
        cmap=SHADES,
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(time[0], time[-1] + step, len(rows) - 0.5, -0.5),
    )
    ax.figure.colorbar(image, ax=ax, label="probability", pad=0.01)
    ax.set_yticks(range(len(rows)), [str(row) for row in rows], fontsize=7)
    return tidy(ax, "Syllables over time", "time (s)", "syllable")


def durations(segments: pd.DataFrame, *, target: float | None = None, most: int = 25) -> "Figure":
    """Plot how long syllables last: all of them together, and the median and quartiles of each.

    Parameters
    ----------
    segments : one row per instance, with the columns ``syllable`` and ``duration`` (seconds).
    target : a wished median, in seconds, drawn as a line.
    most : show each of the first so many syllables on the right.
    """
    if segments.empty:
        raise DataError("durations: segments must hold at least one instance, got none")
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    lengths = segments["duration"].to_numpy()
    left.hist(lengths, bins=_log_bins(lengths), color=INK, alpha=0.75)
    log_scale(left, "x")
    _mark(left, float(np.median(lengths)), "median", "-")
    if target is not None:
        _mark(left, target, "target", "--")
    left.legend(frameon=False, fontsize=8)
    tidy(left, "All instances", "duration (s)", "instances")
    quartiles = segments.groupby("syllable")["duration"].quantile([0.25, 0.5, 0.75]).unstack().head(most)
    low, middle, high = quartiles.to_numpy().T
    right.errorbar(quartiles.index, middle, yerr=(middle - low, high - middle), fmt="o", color=INK, ms=4, lw=1)
    log_scale(right, "y")
    right.xaxis.get_major_locator().set_params(integer=True)
    tidy(right, "Each syllable: median and quartiles", "syllable", "duration (s)")
    return figure


def usage(shares: pd.DataFrame, *, most: int = 50, ax: "Axes | None" = None) -> "Axes":
    """Share of the time spent in each syllable: a bar for the mean over recordings, a dot for every recording.

    Parameters
    ----------
    shares : one row per recording, one column per syllable, shares of the recording's frames.
    most : show the first so many syllables.
    ax : axes to draw into; a new figure by default.
    """
    shown = shares.iloc[:, :most]
    ax = sole_axes(ax, 9.0, 3.0)
    place = np.arange(shown.shape[1])
    ax.bar(place, 100 * shown.mean(axis=0), color=INK, alpha=0.35, width=0.8)
    if len(shown) > 1:
        ax.plot(place, 100 * shown.to_numpy().T, ".", color=INK, ms=4, alpha=max(0.15, 1 / len(shown) ** 0.5))
    every = -(-len(place) // 25)
    ax.set_xticks(place[::every], [str(name) for name in shown.columns[::every]])
    return tidy(ax, "Usage", "syllable, most used first", "% of time")


def transition_graph(
    transitions: pd.DataFrame, shares: pd.Series, *, most: int = 20, ax: "Axes | None" = None
) -> "Axes":
    """Plot what follows what: syllables on a circle, an arrow to each of the likeliest successors.

    Parameters
    ----------
    transitions : square: the probability that the column's syllable is next when the row's ends; a row of NaN is
        skipped.
    shares : share of the time in each syllable: the area of its disc.
    most : show the first so many syllables.
    ax : axes to draw into; a new figure by default.
    """
    matrix = transitions.iloc[:most, :most].fillna(0.0).to_numpy()
    n = len(matrix)
    ax = sole_axes(ax, 6.0, 6.0)
    angle = np.pi / 2 - 2 * np.pi * np.arange(n) / max(n, 1)
    place = np.column_stack([np.cos(angle), np.sin(angle)])
    for i in range(n):
        for j in np.argsort(-matrix[i])[:EDGES_PER_SYLLABLE]:
            if matrix[i, j] > 0 and i != j:
                _arrow(ax, place[i], place[j], matrix[i, j])
    area = 150 + 2500 * shares.iloc[:n].to_numpy()
    ax.scatter(place[:, 0], place[:, 1], s=area, c=syllable_colors(n), zorder=3, edgecolors="white")
    for label, (x, y) in zip(transitions.index[:n], place, strict=True):
        ax.text(1.18 * x, 1.18 * y, str(label), ha="center", va="center", fontsize=9)
    ax.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal", title="What follows what (likeliest successors)")
    ax.axis("off")
    return ax


def _arrow(ax: "Axes", start: np.ndarray, end: np.ndarray, probability: float) -> None:
    from matplotlib.patches import FancyArrowPatch

    arrow = FancyArrowPatch(
        (start[0], start[1]), (end[0], end[1]), connectionstyle="arc3,rad=0.15", arrowstyle="-|>", mutation_scale=10,
        shrinkA=9, shrinkB=9, lw=0.4 + 4 * probability, color=INK, alpha=0.15 + 0.85 * min(probability, 1.0), zorder=2,
    )  # fmt: skip
    ax.add_patch(arrow)


def _log_bins(lengths: np.ndarray) -> np.ndarray:
    low, high = lengths.min(), lengths.max()
    return np.geomspace(low / 1.05, high * 1.05, 40)


def _mark(ax: "Axes", value: float, name: str, style: str) -> None:
    ax.axvline(value, color=ACCENT if name == "median" else QUIET, ls=style, label=f"{name} {value:.2f} s")
