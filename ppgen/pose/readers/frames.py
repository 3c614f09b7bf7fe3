"""Rows of a file onto an even grid of frames."""

from pathlib import Path

import numpy as np

from ppgen.errors import FileError

__all__ = ["on_grid"]

SPARSE = 10


def on_grid(index: np.ndarray, path: Path) -> tuple[int, int, np.ndarray]:
    """The first frame number, the number of frames, and the row of the grid that each row of the file fills.

    Frames that the file leaves out become rows that nothing fills, so a step is always one frame.

    Raises
    ------
    FileError : the numbers are not whole, do not grow, or leave out more than nine frames of ten.
    """
    if index.dtype.kind not in "iuf":
        raise FileError(f"{path}: frames must be numbered, got {index.dtype}; labelled images are not a recording")
    if not np.isfinite(index.astype(np.float64)).all() or (index != np.round(index)).any():
        raise FileError(
            f"{path}: frame numbers must be whole, got {index[:3].tolist()}...; put them in the first column"
        )
    if len(index) and abs(float(index[0])) > 2**53:
        raise FileError(f"{path}: frame numbers must be below 2^53, got {index[0]}; put them in the first column")
    steps = np.diff(index.astype(np.int64))
    if (steps < 1).any():
        row = int(np.argmax(steps < 1)) + 1
        raise FileError(f"{path}: frame numbers must grow, got {index[row - 1]:g} then {index[row]:g} at row {row}")
    places = index.astype(np.int64) - int(index[0]) if len(index) else np.zeros(0, np.int64)
    frames = int(places[-1]) + 1 if len(index) else 0
    if frames > SPARSE * len(index) + SPARSE:
        raise FileError(
            f"{path}: must be a recording, {len(index)} rows are spread over {frames} frames; "
            "labelled images or a wrong first column"
        )
    return int(index[0]) if len(index) else 0, frames, places
