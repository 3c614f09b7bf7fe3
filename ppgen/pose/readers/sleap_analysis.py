"""SLEAP "analysis" h5: one dense array of tracks."""

import json
from pathlib import Path

import h5py
import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.hdf5 import attribute, hard, read_array, strings
from ppgen.pose.readers.sleap import trimmed
from ppgen.pose.recording import Track

__all__ = ["read", "recognises"]

MATLAB = ("track", "xy", "node", "frame")
LEGACY = ("frame", "node", "xy", "track")
ORDER = ("track", "frame", "node", "xy")


def recognises(file: h5py.File, path: Path) -> bool:
    """Tell whether the arrays of a SLEAP export stand at the top."""
    return all(isinstance(hard(file, name), h5py.Dataset) for name in ("tracks", "node_names"))


def read(file: h5py.File, path: Path) -> list[Track]:
    """One track per individual, from its first to its last seen frame.

    The order of the axes is the one the file names (attribute ``dims``), else SLEAP's own (track, xy, node, frame).
    """
    dims = _dims(file, path)
    keypoints = strings(read_array(file, "node_names", path))
    tracks = read_array(file, "tracks", path)
    if tracks.ndim != 4 or tracks.dtype.kind != "f":
        raise FileError(f"{path}: its tracks must have 4 axes of numbers, got {tracks.shape} {tracks.dtype}")
    tracks = tracks.astype(np.float64).transpose([dims.index(d) for d in ORDER])
    if tracks.shape[2:] not in ((len(keypoints), 2), (len(keypoints), 3)):
        raise FileError(
            f"{path}: its tracks must have {len(keypoints)} nodes x 2 or 3, got {tracks.shape[2:]}; export it again"
        )
    scores = _scores(file, [d for d in dims if d != "xy"], tracks.shape[:3], path)
    named = read_array(file, "track_names", path) if hard(file, "track_names") is not None else np.zeros(0, "S1")
    names = strings(named) or (None,) * len(tracks)
    if len(names) != len(tracks):
        raise FileError(f"{path}: must name each of its {len(tracks)} tracks, got {len(names)} names; export it again")
    return trimmed(
        [Track(keypoints, tracks[i], None if scores is None else scores[i], names[i]) for i in range(len(tracks))],
        path,
    )


def _dims(file: h5py.File, path: Path) -> tuple[str, ...]:
    written = attribute(file["tracks"], "dims", path)
    if written is not None:
        try:
            dims = tuple(json.loads(written if isinstance(written, str | bytes) else str(written)))
        except (ValueError, TypeError):
            dims = ()
        if sorted(map(str, dims)) != sorted(ORDER):
            raise FileError(f"{path}: attribute dims of tracks must order {list(ORDER)}, got {str(written)[:80]}")
        return dims
    transposed = attribute(file, "transpose", path)
    return LEGACY if transposed is not None and not np.asarray(transposed) else MATLAB


def _scores(file: h5py.File, dims: list[str], shape: tuple[int, ...], path: Path) -> np.ndarray | None:
    if hard(file, "point_scores") is None:
        return None
    scores = read_array(file, "point_scores", path)
    if scores.ndim != 3 or scores.dtype.kind != "f":
        raise FileError(f"{path}: point_scores must have 3 axes of numbers, got {scores.shape} {scores.dtype}")
    scores = scores.astype(np.float64).transpose([dims.index(d) for d in ORDER[:3]])
    if scores.shape != shape:
        raise FileError(f"{path}: point_scores must have one score per point {shape}, got {scores.shape}")
    return scores
