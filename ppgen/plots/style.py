"""Common parts of all figures: a canvas outside pyplot, and colours that colour-blind readers can tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT", "INK", "QUIET", "SHADES", "apart", "canvas", "log_scale", "new_figure", "sole_axes", "syllable_colors",
    "tidy",
]  # fmt: skip

# Paul Tol's muted scheme (SRON technical note 09-002): nine hues safe for all common colour-blindness.
MUTED = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
INK, QUIET, ACCENT = "#332288", "#9A9A9A", "#CC6677"
SHADES = "Blues"  # colour map of shares and probabilities: white is none, and lightness alone carries the value


_apart: ContextVar[bool] = ContextVar("apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """Figures that are made inside are files to come, not things to show: pyplot does not know of them."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def new_figure(width: float = 7.0, height: float = 3.5) -> "Figure":
    """An empty figure, in inches, on pyplot's list, so that notebooks and ``plt.show()`` show it."""
    if _apart.get():
        return canvas(width, height)
    from matplotlib import pyplot as plt

    return plt.figure(figsize=(width, height), layout="constrained")


def canvas(width: float = 7.0, height: float = 3.5) -> "Figure":
    """An empty figure, in inches, that pyplot does not know of and so never has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def sole_axes(ax: "Axes | None", width: float = 7.0, height: float = 3.5) -> "Axes":
    """``ax`` itself, or the only axes of a new figure."""
    return new_figure(width, height).subplots() if ax is None else ax


def tidy(ax: "Axes", title: str = "", x: str = "", y: str = "") -> "Axes":
    """Label the axes and take away the frame lines that carry nothing."""
    ax.set(title=title, xlabel=x, ylabel=y)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def log_scale(ax: "Axes", which: str) -> None:
    """Make the axis ``which`` ("x" or "y") logarithmic, with 1, 2, 5, 10, … written out instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def syllable_colors(n: int) -> np.ndarray:
    """Colours (n, 3): nine safe hues for the most used syllables, then greys, which never carry meaning alone."""
    from matplotlib.colors import to_rgb

    greys = np.linspace(0.35, 0.75, max(n - len(MUTED), 0))[:, None].repeat(3, axis=1)
    return np.vstack([np.array([to_rgb(color) for color in MUTED])[:n], greys])
