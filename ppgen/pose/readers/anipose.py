"""Anipose 3-D csv: ``nose_x, nose_y, nose_z, nose_error, nose_score, nose_ncams, ..., fnum``."""

import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.frames import on_grid
from ppgen.pose.readers.table import Table
from ppgen.pose.recording import Track

__all__ = ["read", "recognises"]


def recognises(table: Table) -> bool:
    """Tell whether the header has a frame column and coordinates in three dimensions."""
    return "fnum" in table.head[0] and any(name.endswith("_z") for name in table.head[0])


def read(table: Table) -> list[Track]:
    """The one individual of an Anipose file; ``_score`` is its confidence, camera columns are left out."""
    names = table.head[0]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise FileError(f"{table.path}: columns must differ, got {duplicates[:4]} more than once; rename the keypoint")
    position = {name: i for i, name in enumerate(names)}
    keypoints = tuple(n[:-2] for n in names if n.endswith("_x") and {n[:-2] + "_y", n[:-2] + "_z"} <= set(names))
    if not keypoints or "fnum" not in position:
        raise FileError(
            f"{table.path}: must have columns <keypoint>_x, _y, _z and fnum, got {names[:6]}; export it again"
        )
    values = table.numbers(1, names)
    start, frames, rows = on_grid(values[:, position["fnum"]], table.path)
    grid = np.full((frames, len(names)), np.nan)
    grid[rows] = values
    scores = [position[f"{k}_score"] for k in keypoints if f"{k}_score" in position]
    return [
        Track(
            keypoints,
            np.ascontiguousarray(grid[:, [[position[f"{k}_{c}"] for c in "xyz"] for k in keypoints]]),
            None if len(scores) < len(keypoints) else np.ascontiguousarray(grid[:, scores]),
            start=start,
        )
    ]
