"""Pose files in, recordings out: NaN where nobody saw a keypoint, and nothing made up in its place."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from ppgen.errors import DataError, FileError
from ppgen.pose.readers import FORMATS, find_format, read_tracks
from ppgen.pose.readers.movement import read_dataset
from ppgen.pose.recording import Recording, Track, find_problem

__all__ = ["FORMATS", "Recording", "missing_report", "read_poses"]


def read_poses(
    path: str | Path | xr.Dataset | Sequence[str | Path],
    *,
    format: str | None = None,  # noqa: A002 - the word that every reader of files uses
    fps: float | int | None = None,
    min_confidence: float | int = 0.0,
    recording: str | None = None,
    individuals: Sequence[str] | None = None,
) -> list[Recording]:
    """Read one or several pose files: one recording per file and individual.

    Parameters
    ----------
    path : a file, several files, or a movement-style Dataset (position (time, space, keypoints[, individuals])).
    format : one of `FORMATS`, or ``"movement:<software>"`` to read through the package movement. Found from the content
        when None.
    fps : frames per second; overrides what the file says.
    min_confidence : a keypoint seen with less confidence than this is not observed (NaN). Nothing is interpolated.
    recording : name of the recording; the file's name without its ending when None.
    individuals : beginnings of keypoint names that tell animals apart in a file that has no individuals of its own:
        ``["B_", "W_"]`` makes of ``B_Nose`` and ``W_Nose`` the ``Nose`` of two animals.

    Raises
    ------
    FileError : the file is absent, empty, damaged, unsafe, in no known format, or holds no usable poses; said in words.
    """
    if not 0 <= min_confidence <= 1:
        raise DataError(f"read_poses: min_confidence must lie in 0-1, got {min_confidence}")
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        raise DataError(f"read_poses: fps must be a positive number of frames per second, got {fps}")
    if isinstance(path, xr.Dataset):
        name = recording or "dataset"
        return _recordings(read_dataset(path, name), name, "movement", name, fps, min_confidence, individuals)
    if isinstance(path, str | Path):
        path = [path]
    elif recording is not None:
        raise DataError("read_poses: recording must be left out when several files are given; their names are used")
    files = [Path(p) for p in path]
    names = [recording] if recording else _names(files)
    found = []
    for file, name in zip(files, names, strict=True):
        _check_file(file)
        kind = format or find_format(file)
        found += _recordings(
            read_tracks(file, kind, fps), name, f"{kind} {file.name}", str(file), fps, min_confidence, individuals
        )
    return found


def missing_report(recordings: Sequence[Recording]) -> pd.DataFrame:
    """Tabulate missing points, one row per recording and keypoint.

    Columns: ``share_missing`` (0-1), ``longest_gap_frames``, ``longest_gap_seconds`` (NaN when fps is unknown).
    """
    rows = []
    for recording in recordings:
        absent = np.isnan(recording.positions).any(-1)
        for p, keypoint in enumerate(recording.keypoints):
            gap = _longest_run(absent[:, p])
            seconds = gap / recording.fps if recording.fps else np.nan
            rows.append((recording.name, keypoint, absent[:, p].mean(), gap, seconds))
    columns = ["recording", "keypoint", "share_missing", "longest_gap_frames", "longest_gap_seconds"]
    return pd.DataFrame(rows, columns=columns).set_index(["recording", "keypoint"])


def _check_file(file: Path) -> None:
    if file.is_dir():
        raise FileError(f"{file}: must be a file, but it is a folder; give the pose files inside it")
    if not file.is_file():
        raise FileError(f"{file}: must be a file, but there is none; check the path")
    if file.stat().st_size == 0:
        raise FileError(f"{file}: must hold poses, it is empty (0 bytes); export it again")


def _names(files: Sequence[Path]) -> list[str]:
    """Name files by their stems, with the folder before those that would be the same."""
    stems = Counter(f.stem for f in files)
    names = [f.stem if stems[f.stem] == 1 else f"{f.resolve().parent.name}_{f.stem}" for f in files]
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
    if twice:
        raise FileError(f"read_poses: recordings must have different names, got {twice[:4]} twice; rename the files")
    return names


def _recordings(
    tracks: list[Track],
    name: str,
    source: str,
    who: str,
    fps: float | int | None,
    min_confidence: float | int,
    individuals: Sequence[str] | None,
) -> list[Recording]:
    """Tracks of one file as recordings: split by individual, unsure points missing, unseen individuals left out."""
    if individuals is not None:
        tracks = _split(tracks, individuals, who)
    several, found, unseen = len(tracks) > 1, [], []
    for track in tracks:
        where = f"{who}: individual {track.individual}" if several else who
        rate = track.fps if fps is None else float(fps)
        _refuse(track, rate, where, never_seen=several)
        positions, below = _without_unsure(track, min_confidence, where)
        if np.isnan(positions).all():
            unseen.append(track.individual or name)
            continue
        found.append(
            Recording(
                name=f"{name}.{track.individual}" if several else name,
                positions=positions,
                confidence=track.confidence,
                keypoints=track.keypoints,
                fps=rate,
                individual=track.individual,
                source=source,
                start=track.start,
                notes=(*track.notes, *_notes(positions, track.keypoints, below, min_confidence)),
            )
        )
    if not found:
        raise FileError(f"{who}: nothing is left at min_confidence={min_confidence:g}; lower it")
    if unseen:
        note = f"individuals {unseen} are never seen with enough confidence and were left out"
        found = [replace(r, notes=(*r.notes, note)) for r in found]
    return found


def _refuse(track: Track, fps: float | None, who: str, *, never_seen: bool) -> None:
    """Refuse a track with a problem; one that was never seen is no problem when there are others."""
    if never_seen and np.isnan(track.positions).any(-1).all() and track.positions.size:
        return
    problem = find_problem(track.positions, track.confidence, track.keypoints, fps)
    if problem:
        raise FileError(f"{who}: {problem}")


def _without_unsure(track: Track, threshold: float | int, who: str) -> tuple[np.ndarray, int]:
    """Positions that are NaN as a whole where a coordinate is NaN or the confidence too low."""
    absent = np.isnan(track.positions).any(-1)
    below = np.zeros_like(absent)
    if threshold > 0:
        if track.confidence is None:
            raise FileError(f"{who}: min_confidence={threshold:g} needs confidences, the file has none; leave it out")
        below = ~absent & ~(track.confidence >= threshold)
    return np.where((absent | below)[..., None], np.nan, track.positions), int(below.sum())


def _notes(positions: np.ndarray, keypoints: tuple[str, ...], below: int, threshold: float | int) -> list[str]:
    notes = []
    if below:
        share = below / positions[..., 0].size
        notes.append(f"{share:.1%} of keypoints have confidence below {threshold:g} and count as not observed")
    never = [k for k, gone in zip(keypoints, np.isnan(positions[..., 0]).all(0), strict=True) if gone]
    if never:
        notes.append(f"keypoints {never} were never seen")
    return notes


def _split(tracks: list[Track], prefixes: Sequence[str], who: str) -> list[Track]:
    """Tell animals apart by how the names of their keypoints begin."""
    if len(tracks) != 1 or tracks[0].individual is not None:
        raise FileError(f"{who}: individuals must be left out, the file names its own; leave the option out")
    track, found = tracks[0], []
    for prefix in prefixes:
        places = [i for i, k in enumerate(track.keypoints) if k.startswith(prefix)]
        if not places:
            raise FileError(f"{who}: no keypoint begins with {prefix!r}, they are {list(track.keypoints)[:8]}")
        found.append(
            replace(
                track,
                keypoints=tuple(track.keypoints[i].removeprefix(prefix) for i in places),
                positions=track.positions[:, places],
                confidence=None if track.confidence is None else track.confidence[:, places],
                individual=prefix.strip("_-. ") or prefix,
            )
        )
    return found


def _longest_run(flags: np.ndarray) -> int:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))
