"""Figures of time series: forecasts beside what came, what comes next, and probabilities of regimes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ppgen.plots.style import ACCENT, INK, QUIET, new_figure, syllable_colors, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["forecast_fan", "forecasts_compared", "regime_probabilities"]

SHOWN = 60  # steps of the past beside a forecast


def forecast_fan(
    times: Sequence[str], past: Float[np.ndarray, "T D"], ahead: Float[np.ndarray, "S H D"], names: Sequence[str]
) -> "Figure":
    """The last steps of each series and what comes next, bands of 50 and 90 %, a row of axes for each."""
    figure = new_figure(7.5, 0.6 + 2.0 * len(names))
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    first = max(0, len(past) - SHOWN)
    for d, (ax, name) in enumerate(zip(axes, names, strict=True)):
        ax.plot(np.arange(first, len(past)), past[first:, d], color=INK, lw=1.2)
        _fan(ax, len(past), ahead[..., d])
        tidy(ax, name, "", "")
    _label_times(axes[-1], times, first, len(past))
    return figure


def forecasts_compared(
    times: Sequence[str],
    truth: Float[np.ndarray, "T D"],
    begin: int,
    draws: Mapping[str, Float[np.ndarray, "S H D"]],
    name: str,
) -> "Figure":
    """Forecasts of the first series in several ways from the same step, each beside what came."""
    rows = -(-len(draws) // 3)
    figure = new_figure(9.0, 0.5 + 1.9 * rows)
    axes = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False).ravel()
    first, H = max(0, begin - SHOWN // 2), next(iter(draws.values())).shape[1]
    for ax, (way, value) in zip(axes, draws.items(), strict=False):
        ax.plot(np.arange(first, begin + H), truth[first : begin + H, 0], color=INK, lw=1.2)
        _fan(ax, begin, value[..., 0])
        tidy(ax, way, "", name if ax in axes[::3] else "")
    for ax in axes[len(draws) :]:
        ax.set_visible(False)
    _label_times(axes[0], times, first, begin + H, 2)
    for ax in axes[max(0, len(draws) - 3) : len(draws)]:
        ax.tick_params(labelbottom=True)
    low, high = np.nanmin(truth[first : begin + H, 0]), np.nanmax(truth[first : begin + H, 0])
    axes[0].set_ylim(low - (high - low), high + (high - low))
    return figure


def regime_probabilities(
    times: Sequence[str],
    values: Float[np.ndarray, "T D"],
    probabilities: Float[np.ndarray, "T K"],
    names: Sequence[str],
) -> "Figure":
    """Every series, and below them the probability of each regime at each step."""
    figure = new_figure(7.5, 1.6 + 1.3 * len(names))
    axes = figure.subplots(len(names) + 1, 1, sharex=True)
    for d, name in enumerate(names):
        axes[d].plot(values[:, d], color=INK, lw=1)
        tidy(axes[d], name, "", "")
    K = probabilities.shape[1]
    labels = [f"regime {k}" for k in range(K)]
    axes[-1].stackplot(np.arange(len(values)), probabilities.T, colors=syllable_colors(K), alpha=0.8, labels=labels)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", fontsize=8, ncols=6)
    axes[-1].set(ylim=(0, 1), xlim=(0, len(values) - 1))
    tidy(axes[-1], "probability of each regime", "", "")
    _label_times(axes[-1], times, 0, len(values))
    return figure


def _fan(ax: "Axes", begin: int, draws: Float[np.ndarray, "S H"]) -> None:
    steps = np.arange(begin, begin + draws.shape[1])
    for low, high, alpha in ((0.05, 0.95, 0.2), (0.25, 0.75, 0.35)):
        ax.fill_between(steps, *np.quantile(draws, [low, high], axis=0), color=ACCENT, alpha=alpha, lw=0)
    ax.plot(steps, np.median(draws, 0), color=ACCENT, lw=1.2)
    ax.axvline(begin - 0.5, color=QUIET, lw=0.8)


def _label_times(ax: "Axes", times: Sequence[str], first: int, end: int, count: int = 6) -> None:
    places = np.unique(np.linspace(first, end - 1, count).round().astype(int))
    ax.set_xticks(places, [times[place] for place in places])
