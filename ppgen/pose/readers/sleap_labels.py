"""SLEAP labels (``.slp``): tables of frames, instances and points, and a JSON description of the skeleton.

Points are taken as stored (older files count pixels from their corner, half a pixel off the newer convention).
"""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.hdf5 import attribute, hard, read_array, strings
from ppgen.pose.readers.limits import refuse_bomb
from ppgen.pose.readers.sleap import trimmed
from ppgen.pose.recording import Track

__all__ = ["read", "recognises"]

_USER, _PREDICTED = 0, 1


def recognises(file: h5py.File, path: Path) -> bool:
    """Tell whether the tables of a SLEAP project stand at the top."""
    return all(hard(file, name) is not None for name in ("metadata", "frames", "instances"))


def read(file: h5py.File, path: Path) -> list[Track]:
    """One track per tracked individual and video, from its first to its last seen frame.

    An instance that a person corrected takes the place of the predicted one. Untracked instances are one individual
    when there is at most one in each frame.

    Raises
    ------
    FileError : several untracked animals, several skeletons in use, or tables that do not fit together.
    """
    frames, instances = (_table(file, name, path) for name in ("frames", "instances"))
    keypoints = _keypoints(file, instances, path)
    position = {int(frame): i for i, frame in enumerate(frames["frame_id"])}
    rows = np.array([position.get(int(frame), -1) for frame in instances["frame_id"]], dtype=np.int64)
    if (rows < 0).any():
        raise FileError(f"{path}: its instances must lie in its frames, some do not; it is damaged, save it again")
    points = {_USER: _table(file, "points", path), _PREDICTED: _table(file, "pred_points", path)}
    names = _track_names(file, path)
    owners = np.stack([frames["video"][rows].astype(np.int64), instances["track"].astype(np.int64)], 1)
    found = []
    for video, track in np.unique(owners, axis=0):
        mine = np.flatnonzero((owners == (video, track)).all(1))
        label = names[track] if 0 <= track < len(names) else None if track < 0 else f"track_{track}"
        if len(np.unique(frames["video"])) > 1:
            label = f"video{video}" + (f"_{label}" if label else "")
        found.append(_track(instances[mine], frames["frame_idx"][rows[mine]], points, keypoints, label, path))
    return trimmed(found, path)


def _track(
    instances: np.ndarray,
    times: np.ndarray,
    points: dict[int, np.ndarray],
    keypoints: tuple[str, ...],
    label: str | None,
    path: Path,
) -> Track:
    """The instances of one individual on a grid of frames; a person's corrections overwrite predictions."""
    times = times.astype(np.int64)
    start, frames = int(times.min()), int(times.max() - times.min()) + 1
    refuse_bomb(path, "the recording", frames * len(keypoints) * 24, len(instances) * len(keypoints) * 24)
    positions = np.full((frames, len(keypoints), 2), np.nan)
    confidence = np.full((frames, len(keypoints)), np.nan)
    for kind in (_PREDICTED, _USER):
        which = instances["instance_type"] == kind
        mine, at = instances[which], times[which] - start
        if len(np.unique(at)) < len(at):
            raise FileError(
                f"{path}: an individual ({label or 'untracked'}) must appear once per frame, it appears more often; "
                "run SLEAP's tracking and save again"
            )
        if len(mine):
            positions[at], confidence[at] = _points(points[kind], mine, len(keypoints), path)
    return Track(keypoints, positions, confidence, label, start)


def _points(points: np.ndarray, instances: np.ndarray, keypoints: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    first = instances["point_id_start"].astype(np.int64)
    if (instances["point_id_end"].astype(np.int64) - first != keypoints).any() or (
        first.min() < 0 or first.max() + keypoints > len(points)
    ):
        raise FileError(
            f"{path}: each instance must have {keypoints} points, some do not; it is damaged, save it again"
        )
    mine = points[first[:, None] + np.arange(keypoints)]
    positions = np.stack([mine["x"], mine["y"]], -1).astype(np.float64)
    positions[~mine["visible"].astype(bool)] = np.nan
    scores = mine["score"].astype(np.float64) if "score" in (points.dtype.names or ()) else np.ones(mine.shape)
    return positions, scores


def _table(file: h5py.File, name: str, path: Path) -> np.ndarray:
    needed = {
        "frames": {"frame_id", "video", "frame_idx"},
        "instances": {"frame_id", "track", "skeleton", "instance_type", "point_id_start", "point_id_end"},
    }.get(name, {"x", "y", "visible"})
    table = read_array(file, name, path)
    absent = sorted(needed - set(table.dtype.names or ()))
    if absent:
        raise FileError(
            f"{path}: table {name!r} must have columns {sorted(needed)}, {absent} are absent; save it again"
        )
    return table


def _keypoints(file: h5py.File, instances: np.ndarray, path: Path) -> tuple[str, ...]:
    used = np.unique(instances["skeleton"])
    if len(used) != 1:
        raise FileError(f"{path}: must use one skeleton, got {len(used)} in use; save each animal kind on its own")
    raw = attribute(file["metadata"], "json", path)
    try:
        metadata: Any = json.loads(raw if isinstance(raw, str | bytes) else "null")
        nodes = [node["name"] for node in metadata["nodes"]]
        # Points follow the skeleton's own order of nodes, which differs from the order in which they are described.
        order = [node["id"] for node in metadata["skeletons"][int(used[0])]["nodes"]]
        return tuple(str(nodes[i]) for i in order)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise FileError(f"{path}: its skeleton cannot be read ({error!r}); save it again with SLEAP") from error


def _track_names(file: h5py.File, path: Path) -> list[str]:
    if hard(file, "tracks_json") is None:
        return []
    try:
        rows = [json.loads(text) for text in strings(read_array(file, "tracks_json", path))]
        names = [str(row[1]) for row in rows]
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise FileError(f"{path}: the names of its tracks cannot be read ({error}); save it again") from error
    return names if len(set(names)) == len(names) else [f"{i}_{name}" for i, name in enumerate(names)]
