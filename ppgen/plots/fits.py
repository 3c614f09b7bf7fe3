"""Figures of a fit: did it converge, does it describe the data, and what was there to see."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ppgen.errors import DataError
from ppgen.plots.style import ACCENT, INK, QUIET, SHADES, log_scale, new_figure, sole_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["elbo", "missing", "predictive_check", "stickiness_search"]


def elbo(history: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
    """The evidence lower bound, step by step. The first steps may be off the scale, so that the end can be seen.

    Parameters
    ----------
    history : ``Fit.history``: the columns ``step`` and ``elbo``, in nats.
    ax : axes to draw into; a new figure by default.
    """
    ax = sole_axes(ax, 6.0, 3.0)
    kept = history[np.isfinite(history["elbo"])]
    if kept.empty:
        raise DataError("elbo: history must hold at least one finite value, got none")
    ax.plot(kept["step"], kept["elbo"], "-" if len(kept) > 1 else "o", color=INK)
    low, high = kept["elbo"].quantile(0.1), kept["elbo"].max()
    if high > low:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
    ax.yaxis.set_major_formatter("{x:,.8g}")
    return tidy(ax, "Evidence lower bound", "step", "nats")


def missing(shares: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
    """Share of the frames in which each keypoint was not seen, one row per recording.

    Parameters
    ----------
    shares : recordings (rows) by keypoints (columns), shares between 0 and 1.
    ax : axes to draw into; a new figure by default.
    """
    rows, columns = shares.shape
    ax = sole_axes(ax, min(2.5 + 0.5 * columns, 12.0), 1.5 + 0.28 * rows)
    image = ax.imshow(100 * shares.to_numpy(), aspect="auto", cmap=SHADES, vmin=0, vmax=100)
    ax.figure.colorbar(image, ax=ax, label="% of frames")
    ax.set_xticks(range(columns), list(shares.columns), rotation=40, ha="right", fontsize=8)
    ax.set_yticks(range(rows), [str(name) for name in shares.index], fontsize=8)
    if rows * columns <= 120:
        for i, j in np.ndindex(rows, columns):
            share = shares.iat[i, j]
            ax.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color="w" if share > 0.5 else "k")
    ax.set_title("Keypoints not seen")
    return ax


def predictive_check(replicates: pd.DataFrame) -> "Figure":
    """Does the model make data like yours? Cumulative shares of recorded values against those of simulated data.

    The axes end where the recorded values do; the share of simulated values that lie beyond is written into the panel.

    Parameters
    ----------
    replicates : long form: ``statistic`` (a panel each), ``draw`` (``-1``: recorded, 0, 1, …: simulated), ``value``.
    """
    panels = list(dict.fromkeys(replicates["statistic"]))
    if not panels:
        raise DataError("predictive_check: replicates must hold at least one statistic, got none")
    figure = new_figure(3.2 * len(panels), 3.0)
    for ax, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        rows = replicates[replicates["statistic"] == name]
        _panel(ax, rows)
        tidy(ax, "", str(name), "share of values below")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def stickiness_search(trail: pd.DataFrame, *, target: float, ax: "Axes | None" = None) -> "Axes":
    """The search for a stickiness: the median duration found at each value tried, and the target.

    Parameters
    ----------
    trail : one row per trial, in order: ``stickiness`` and ``median`` (seconds).
    target : the wished median, in seconds.
    ax : axes to draw into; a new figure by default.
    """
    ax = sole_axes(ax, 4.5, 3.0)
    ax.axhline(target, color=QUIET, ls="--", label=f"target {target:.2f} s")
    ax.plot(trail["stickiness"], trail["median"], "o", color=INK)
    ax.plot(trail["stickiness"].iloc[-1], trail["median"].iloc[-1], "o", color=ACCENT, ms=9, label="chosen")
    ax.set_xlim(
        trail["stickiness"].min() / 2, trail["stickiness"].max() * 2
    )  # trials may differ in the last digit only
    ax.set_xscale("log")
    log_scale(ax, "y")
    ax.legend(frameon=False, fontsize=8)
    return tidy(ax, "Choosing the stickiness", "stickiness", "median duration (s)")


def _panel(ax: "Axes", rows: pd.DataFrame) -> None:
    recorded = rows.loc[rows["draw"] < 0, "value"].to_numpy()
    recorded = recorded[np.isfinite(recorded)]
    for i, (_, values) in enumerate(rows[rows["draw"] >= 0].groupby("draw")["value"]):
        finite = np.sort(values[np.isfinite(values)])
        ax.plot(
            finite, _shares(finite), color=ACCENT, lw=0.6, alpha=0.5, label="simulated by the model" if i == 0 else None
        )
    ax.plot(np.sort(recorded), _shares(recorded), color=INK, lw=2, label="recorded")
    if len(recorded):
        low, high = np.quantile(recorded, [0.001, 0.999])
        margin = 0.3 * (high - low) or 1.0
        ax.set_xlim(low - margin if low < 0 else 0, high + margin)
        _say_beyond(ax, rows.loc[rows["draw"] >= 0, "value"].to_numpy())


def _say_beyond(ax: "Axes", simulated: np.ndarray) -> None:
    """Write how much of the simulated values the axis leaves out; NaN and infinity are among them."""
    low, high = ax.get_xlim()
    beyond = float(np.mean(~((simulated >= low) & (simulated <= high)))) if len(simulated) else 0.0
    if beyond > 0:
        share = f"{beyond:.0%}" if beyond >= 0.01 else "under 1%"
        words = f"{share} of simulated\nvalues lie beyond"
        ax.text(0.97, 0.05, words, transform=ax.transAxes, ha="right", va="bottom", fontsize=8, color=ACCENT)


def _shares(values: np.ndarray) -> np.ndarray:
    return (np.arange(len(values)) + 1) / max(len(values), 1)
