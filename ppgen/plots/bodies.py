"""Figures of bodies: how each syllable moves, as outlines that fade from light to dark over time."""

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ppgen.errors import DataError
from ppgen.plots.style import QUIET, new_figure, syllable_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["trajectories"]

OUTLINES = 6  # outlines per syllable: more overlap, fewer leave the motion to guesswork


def trajectories(bodies: xr.DataArray, *, most: int = 12, columns: int = 6) -> "Figure":
    """Mean motion of each syllable: the body at a few moments, the first light, the last dark.

    Parameters
    ----------
    bodies : mean bodies, dims (syllable, time, keypoint, space), in body lengths, where the body lies at the origin and
        faces right when the syllable begins; ``time`` in seconds. Space beyond its first two axes is not drawn (the
        view is from above). NaN is a keypoint that was not seen.
    most : draw the first so many syllables.
    columns : panels in a row.
    """
    shown = bodies.isel(syllable=slice(most)).transpose("syllable", "time", "keypoint", "space")
    flat = shown.isel(space=slice(2)).to_numpy()
    if not np.isfinite(flat).any():
        raise DataError("trajectories: bodies must hold at least one seen keypoint, got none")
    columns = min(columns, len(flat))
    rows = -(-len(flat) // columns)
    figure = new_figure(1.8 * columns, 1.9 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    lines, colors = _skeleton(flat), syllable_colors(len(flat))
    moments = np.unique(np.linspace(0, flat.shape[1] - 1, OUTLINES).round().astype(int))
    for ax, body, color, name in zip(grid, flat, colors, shown["syllable"].to_numpy(), strict=False):
        for shade, moment in zip(np.linspace(0.15, 1.0, len(moments)), moments, strict=True):
            _outline(ax, body[moment], lines, 1 - shade * (1 - color))
        ax.set_title(str(name), fontsize=9)
        if np.isfinite(body).any():
            _frame(ax, body)
    for ax in grid:
        ax.axis("off")
    first, last = (float(shown["time"][i]) for i in (0, -1))
    figure.suptitle(
        f"Mean motion from {first:.2f} s (light) to {last:.2f} s (dark) after the syllable begins", fontsize=10
    )
    return figure


def _outline(ax: "Axes", body: np.ndarray, lines: list[tuple[int, int]], color: np.ndarray) -> None:
    hull = _hull(body)
    if len(hull) > 2:
        ax.fill(*hull.T, facecolor=color, alpha=0.12, edgecolor="none")
    for i, j in lines:
        ax.plot(*body[[i, j]].T, "-", color=color, lw=1.4, solid_capstyle="round")
    ax.plot(*body.T, ".", color=color, ms=3)


def _frame(ax: "Axes", body: np.ndarray) -> None:
    """A square around the motion, at least a body and a quarter wide, with a bar of half a body length."""
    low, high = (pick(body.reshape(-1, 2), axis=0) for pick in (np.nanmin, np.nanmax))
    middle, half = (low + high) / 2, max(0.6 * float((high - low).max()), 0.625)
    ax.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    left, bottom = middle - 0.95 * half
    ax.plot([left, left + 0.5], [bottom, bottom], "-", color=QUIET, lw=2)


def _skeleton(flat: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of keypoints to join: the shortest tree through the median body, plus the outline of a small one.

    Trackers' files rarely say what is joined to what; neighbours on the body are neighbours in space.
    """
    from scipy.sparse.csgraph import minimum_spanning_tree
    from scipy.spatial.distance import pdist, squareform

    start = flat[:, 0]
    seen = np.flatnonzero(np.isfinite(start).all(axis=(0, 2)))
    body = np.median(start[:, seen], axis=0)
    if len(seen) < 2:
        return []
    if len(seen) <= 5:
        loop = [int(seen[i]) for i in _hull_indices(body)]
        return [*pairwise(loop), (loop[-1], loop[0])]
    tree = minimum_spanning_tree(squareform(pdist(body)) + 1e-12).tocoo()
    return [(int(seen[i]), int(seen[j])) for i, j in zip(tree.row, tree.col, strict=True)]


def _hull(body: np.ndarray) -> np.ndarray:
    seen = body[np.isfinite(body).all(axis=1)]
    return seen[_hull_indices(seen)]


def _hull_indices(points: np.ndarray) -> list[int]:
    """The corners of the convex hull in order; all points when they are too few or lie on one line."""
    from scipy.spatial import ConvexHull, QhullError

    if len(points) < 3:
        return list(range(len(points)))
    try:
        return [int(i) for i in ConvexHull(points).vertices]
    except QhullError:
        return list(range(len(points)))
