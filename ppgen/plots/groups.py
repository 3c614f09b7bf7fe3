"""Figures of a comparison between groups of recordings."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ppgen.plots.style import SHADES, new_figure, sole_axes, syllable_colors, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["agreement", "group_usage"]


def group_usage(shares: pd.DataFrame, groups: pd.Series, tests: pd.DataFrame, *, most: int = 50) -> "Figure":
    """Usage of each syllable by group: a dot per recording, a bar for the group's mean, a star where groups differ.

    Parameters
    ----------
    shares : recordings (rows) by syllables (columns).
    groups : the group of each recording, indexed like ``shares``.
    tests : indexed by syllable; the column ``p_adjusted`` decides the stars (* < 0.05, ** < 0.01, *** < 0.001).
    most : show the first so many syllables.
    """
    shown = shares.iloc[:, :most]
    names = sorted(groups.unique())
    figure = new_figure(max(6.0, 0.28 * shown.shape[1] * max(len(names) / 2, 1) + 2), 3.6)
    ax = figure.subplots()
    width = 0.8 / len(names)
    for i, (name, color) in enumerate(zip(names, syllable_colors(len(names)), strict=True)):
        rows = 100 * shown[groups.loc[shown.index] == name].to_numpy()
        x = np.arange(shown.shape[1]) - 0.4 + width * (i + 0.5)
        ax.bar(x, rows.mean(axis=0), width, color=color, alpha=0.35, label=str(name))
        ax.plot(x, rows.T, ".", color=color, ms=4)
    for j, syllable in enumerate(shown.columns):
        top = (j, 100 * shown.iloc[:, j].max())
        ax.annotate(
            _stars(tests["p_adjusted"].get(syllable, np.nan)), top, (0, 3), textcoords="offset points", ha="center"
        )
    ax.set_xticks(range(shown.shape[1]), [str(name) for name in shown.columns], fontsize=7)
    ax.legend(frameon=False, fontsize=8)
    tidy(ax, "Usage by group", "syllable", "% of time")
    return figure


def agreement(overlap: pd.DataFrame, *, names: tuple[str, str] = ("A", "B"), ax: "Axes | None" = None) -> "Axes":
    """Plot how two segmentations meet: the share of each row syllable's frames that the column syllable holds.

    Parameters
    ----------
    overlap : frames in common: syllables of one fit (rows) by syllables of the other (columns), columns in matched
        order.
    names : the names of the two.
    ax : axes to draw into; a new figure by default.
    """
    totals = overlap.sum(axis=1).to_numpy(float)[:, None]
    share = np.divide(overlap.to_numpy(float), totals, out=np.zeros(overlap.shape), where=totals > 0)
    ax = sole_axes(ax, 5.5, 4.8)
    image = ax.imshow(share, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="share of frames")
    for axis, labels in ((ax.xaxis, overlap.columns), (ax.yaxis, overlap.index)):
        axis.set_ticks(range(len(labels)), [str(label) for label in labels], fontsize=6)
    one, two = names
    ax.set(title=f"Agreement of {one} and {two}", xlabel=f"syllable ({two}), matched", ylabel=f"syllable ({one})")
    return ax


def _stars(p: float) -> str:
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))
