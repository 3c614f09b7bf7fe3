"""A numpy archive: ``positions`` (T, P, 2|3) and, as you have them, ``confidence``, ``keypoints``, ``fps``."""

import zipfile
from pathlib import Path

import numpy as np

from ppgen.errors import FileError
from ppgen.pose.readers.limits import refuse_bomb
from ppgen.pose.recording import Track

__all__ = ["read"]


def read(path: Path) -> list[Track]:
    """The one individual of an archive.

    Raises
    ------
    FileError : not an archive, pickled objects inside, no ``positions``, or arrays of the wrong shape.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                refuse_bomb(path, f"array {item.filename!r}", item.file_size, item.compress_size)
        with np.load(path, allow_pickle=False) as arrays:
            known = {"positions", "confidence", "keypoints", "fps"}
            return [_track({name: arrays[name] for name in arrays.files if name in known}, list(arrays.files), path)]
    except FileError:
        raise
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise FileError(
            f"{path}: must be a numpy archive of plain arrays, reading it failed ({error}); "
            "save it again with np.savez(path, positions=..., keypoints=...)"
        ) from error


def _track(arrays: dict[str, np.ndarray], present: list[str], path: Path) -> Track:
    """The arrays of an archive as a track; keypoints without names are numbered."""
    if "positions" not in arrays:
        raise FileError(f"{path}: must hold an array 'positions' (frames, keypoints, 2 or 3), it holds {present[:6]}")
    for name in ("positions", "confidence", "fps"):
        if name in arrays and arrays[name].dtype.kind not in "fiu":
            raise FileError(f"{path}: {name!r} must hold numbers, it holds {arrays[name].dtype}")
    positions = arrays["positions"].astype(np.float64)
    notes: tuple[str, ...] = ()
    if "keypoints" in arrays:
        keypoints = tuple(str(k) for k in arrays["keypoints"].ravel().tolist())
    else:
        keypoints = tuple(f"keypoint_{p}" for p in range(positions.shape[1] if positions.ndim > 1 else 0))
        notes = ("the file names no keypoints; they are numbered",)
    if "fps" in arrays and arrays["fps"].size != 1:
        raise FileError(f"{path}: 'fps' must be one number, got {arrays['fps'].shape}")
    return Track(
        keypoints,
        positions,
        arrays["confidence"].astype(np.float64) if "confidence" in arrays else None,
        fps=float(arrays["fps"].item()) if "fps" in arrays else None,
        notes=notes,
    )
