"""The columns of DeepLabCut, whatever file they stand in: (scorer, [individual], keypoint, coordinate)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.frames import on_grid
from ppgen.pose.recording import SPACE, Track

__all__ = ["tracks_from_columns"]

Column = tuple[str, ...]
KNOWN = (*SPACE, "likelihood")


def tracks_from_columns(columns: Sequence[Column], values: np.ndarray, index: np.ndarray, path: Path) -> list[Track]:
    """One track per individual from a table of (rows, columns).

    Each column is named by three words (scorer, keypoint, coordinate) or four (scorer, individual, keypoint,
    coordinate). Coordinates other than x, y, z and likelihood are left out, which a note says.
    """
    _check_columns(columns, path)
    start, frames, places = on_grid(index, path)
    grid = np.full((frames, values.shape[1]), np.nan)
    grid[places] = values
    notes = []
    if frames > len(index):
        notes.append(f"{frames - len(index)} frames are not in the file; they are missing")
    extra = sorted({c[-1] for c in columns} - set(KNOWN))
    if extra:
        notes.append(f"columns {extra} were left out")
    owners = list(dict.fromkeys(_owner(c) for c in columns))
    if len(owners) > 1 and "single" in owners:
        owners.remove("single")
        notes.append("the keypoints of no animal (individual 'single') were left out")
    return [_track(owner, columns, grid, start, tuple(notes), path) for owner in owners]


def _owner(column: Column) -> str | None:
    return column[1] if len(column) == 4 else None


def _check_columns(columns: Sequence[Column], path: Path) -> None:
    if not columns:
        raise FileError(f"{path}: must have columns for keypoints, found none; export it again")
    if {len(c) for c in columns} not in ({3}, {4}):
        raise FileError(f"{path}: columns must be named by 3 header rows, or 4 with individuals, got {len(columns[0])}")
    scorers = sorted({c[0] for c in columns})
    if len(scorers) > 1:
        raise FileError(f"{path}: must come from one scorer, got {scorers[:4]}; export one of them")
    seen: set[Column] = set()
    for column in columns:
        if column in seen:
            raise FileError(f"{path}: columns must differ, got {' '.join(column[1:])!r} twice; rename the keypoint")
        seen.add(column)


def _track(
    owner: str | None, columns: Sequence[Column], grid: np.ndarray, start: int, notes: tuple[str, ...], path: Path
) -> Track:
    """The columns of one individual as a track."""
    position = {c[-2:]: i for i, c in enumerate(columns) if _owner(c) == owner and c[-1] in KNOWN}
    keypoints = tuple(dict.fromkeys(name for name, _ in position))
    found = {name: {c for k, c in position if k == name} for name in keypoints}
    coordinates = [c for c in KNOWN if any(c in have for have in found.values())]
    if not {"x", "y"} <= set(coordinates):
        raise FileError(f"{path}: each keypoint must have columns x and y, got {sorted({c[-1] for c in columns})[:6]}")
    for name, have in found.items():
        if have != set(coordinates):
            missing = sorted(set(coordinates) - have)
            raise FileError(f"{path}: keypoint {name!r} must have columns {coordinates}, {missing} are absent")
    pick = [[position[name, c] for c in coordinates if c != "likelihood"] for name in keypoints]
    sure = [position[name, "likelihood"] for name in keypoints] if "likelihood" in coordinates else None
    return Track(
        keypoints=keypoints,
        positions=np.ascontiguousarray(grid[:, pick]),
        confidence=None if sure is None else np.ascontiguousarray(grid[:, sure]),
        individual=owner,
        start=start,
        notes=notes,
    )
