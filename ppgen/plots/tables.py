"""Figures of filled tables: errors by how much was hidden, and how often intervals hold what they promise."""

from itertools import cycle
from typing import TYPE_CHECKING

import pandas as pd

from ppgen.plots.style import QUIET, new_figure, sole_axes, syllable_colors, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["errors_by_share", "interval_coverage"]

LINES = ("-", "--", ":", "-.")


def errors_by_share(table: pd.DataFrame) -> "Figure":
    """Root mean square error of hidden entries by the share hidden, axes for each way to hide.

    Parameters
    ----------
    table : columns ``hidden``, ``share``, ``filled by`` and ``rmse``.
    """
    ways = table["hidden"].unique()
    figure = new_figure(3.2 * len(ways), 3.4)
    axes = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    names = table["filled by"].unique()
    for ax, way in zip(axes, ways, strict=True):
        for color, name in zip(syllable_colors(len(names)), names, strict=True):
            own = table[(table["hidden"] == way) & (table["filled by"] == name)]
            ax.plot(own["share"], own["rmse"], "o-", color=color, label=name, lw=1.5, ms=4)
        shares = sorted(table["share"].unique())
        ax.set(xticks=shares, xlim=(shares[0] - 0.05, shares[-1] + 0.05))
        tidy(ax, f"hidden {way}", "share hidden", "error, standard deviations" if ax is axes[0] else "")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=3)
    return figure


def interval_coverage(table: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
    """Share of hidden entries inside intervals against what the intervals promise; a kind of line for each way to hide.

    Parameters
    ----------
    table : columns ``hidden``, ``filled by`` and ``in 50%``, ``in 80%`` and so on; rows without them are left out.
    ax : axes to draw into; a new figure by default.
    """
    ax = sole_axes(ax, 5.2, 3.8)
    columns = [name for name in table if str(name).startswith("in ")]
    levels = [float(str(name).removeprefix("in ").removesuffix("%")) / 100 for name in columns]
    kept = table.dropna(subset=columns)
    names = kept["filled by"].unique()
    ways = dict(zip(kept["hidden"].unique(), cycle(LINES)))
    ax.plot([0, 1], [0, 1], color=QUIET, lw=1)
    for color, name in zip(syllable_colors(len(names)), names, strict=True):
        ax.plot([], [], "o-", color=color, label=name)
        own = kept[kept["filled by"] == name]
        for way, row in zip(own["hidden"], own[columns].to_numpy(), strict=True):
            ax.plot(levels, row, color=color, ls=ways[way], marker="o", alpha=0.7, lw=1.2, ms=4)
    for way, line in ways.items():
        ax.plot([], [], color=QUIET, ls=line, label=f"hidden {way}")
    ax.legend(fontsize=7, loc="lower right")
    ax.set(xlim=(0.4, 1), ylim=(0, 1.02))
    return tidy(ax, "Are intervals right?", "promised", "share of hidden entries inside")
