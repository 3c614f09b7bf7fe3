"""Figures of decisions: strategies along trials, what each does with a stimulus, and what predicts best."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ppgen.plots.style import INK, QUIET, new_figure, sole_axes, syllable_colors, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["compared", "psychometric_curves", "strategies", "strategy_weights"]


def strategies(probabilities: Mapping[str, np.ndarray]) -> "Figure":
    """Probability of each strategy along the trials of some sessions, a row of axes for each.

    Parameters
    ----------
    probabilities : session -> (trials, states).
    """
    figure = new_figure(8.0, 1.1 + 1.3 * len(probabilities))
    axes = figure.subplots(len(probabilities), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, value) in zip(axes, probabilities.items(), strict=True):
        colors = syllable_colors(value.shape[-1])
        for k, own in enumerate(value.T):
            ax.plot(np.arange(len(own)), own, color=colors[k], lw=1.4, label=f"state {k}")
        ax.set_ylim(-0.03, 1.03)
        tidy(ax, name, "trial" if ax is axes[-1] else "", "probability")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", fontsize=8, ncols=4)
    return figure


def psychometric_curves(
    values: np.ndarray, middle: np.ndarray, interval: np.ndarray, name: str, *, ax: "Axes | None" = None
) -> "Axes":
    """Probability of choice 1 by the value of a stimulus, in each state, with intervals.

    Parameters
    ----------
    values : (V,) of the stimulus, in its own units.
    middle, interval : (K, V) and (2, K, V).
    name : of the stimulus.
    ax : axes to draw into; a new figure by default.
    """
    ax = sole_axes(ax, 5.0, 3.6)
    colors = syllable_colors(len(middle))
    for k, (own, low, high) in enumerate(zip(middle, *interval, strict=True)):
        ax.fill_between(values, low, high, color=colors[k], alpha=0.25, lw=0)
        ax.plot(values, own, color=colors[k], label=f"state {k}")
    ax.axhline(0.5, color=QUIET, lw=0.8)
    ax.set_ylim(-0.03, 1.03)
    ax.legend(fontsize=8)
    return tidy(ax, "What each strategy does", name, "probability of choice 1")


def strategy_weights(table: pd.DataFrame, *, ax: "Axes | None" = None) -> "Axes":
    """Weights of the inputs in each state, with intervals.

    Parameters
    ----------
    table : columns ``state``, ``input``, ``weight``, ``from`` and ``to``.
    ax : axes to draw into; a new figure by default.
    """
    ax = sole_axes(ax, 6.0, 3.6)
    inputs, states = list(dict.fromkeys(table["input"])), sorted(set(table["state"]))
    colors = syllable_colors(len(states))
    for k in states:
        own = table[table["state"] == k]
        place = np.arange(len(inputs)) + 0.14 * (k - (len(states) - 1) / 2)
        error = np.stack([own["weight"] - own["from"], own["to"] - own["weight"]])
        ax.errorbar(place, own["weight"], error, fmt="o", color=colors[k], capsize=2, ms=4, label=f"state {k}")
    ax.axhline(0, color=QUIET, lw=0.8)
    ax.set_xticks(range(len(inputs)), inputs)
    ax.legend(fontsize=8)
    return tidy(ax, "Weights", "", "log odds a standard deviation")


def compared(scores: pd.Series, *, ax: "Axes | None" = None) -> "Axes":
    """Bits a trial that each model predicts better than a coin, in sessions held out.

    Parameters
    ----------
    scores : model -> bits.
    ax : axes to draw into; a new figure by default.
    """
    ax = sole_axes(ax, 6.0, 1.2 + 0.35 * len(scores))
    names: Sequence[str] = [str(name) for name in scores.index]
    ax.barh(names, scores.to_numpy(), color=INK)
    ax.invert_yaxis()
    return tidy(ax, "Predicting sessions held out", "bits a trial, better than a coin", "")
