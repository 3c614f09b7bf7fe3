"""One animal in one recording: where its keypoints were, frame by frame, NaN where nobody saw them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from jaxtyping import Float

from ppgen.errors import DataError

__all__ = ["Recording", "Track", "find_problem"]

SPACE = ("x", "y", "z")
# Farther from 0 than any camera or arena reaches, in any unit; the arithmetic of bodies is still exact there.
LARGEST_COORDINATE = 1e9


@dataclass(frozen=True, eq=False)
class Track:
    """One individual as a reader found it in a file, before any check.

    ``positions`` is (T, P, 2|3) and ``confidence`` (T, P) or None; row 0 is frame number ``start`` of the file.
    """

    keypoints: tuple[str, ...]
    positions: np.ndarray
    confidence: np.ndarray | None = None
    individual: str | None = None
    start: int = 0
    fps: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Recording:
    """Keypoints of one individual over time.

    Parameters
    ----------
    name : label of the recording, unique within a project.
    positions : (T, P, 2) or (T, P, 3) in the file's units; NaN means not observed.
    confidence : (T, P) in 0-1 as the tracker wrote it, or None.
    keypoints : P different names.
    fps : frames per second, or None when nobody said.
    individual : the animal's name in a file of several animals.
    source : format and file that it came from.
    start : frame number of row 0 in the file (track fragments begin late).
    notes : remarks on this recording that a person should read, in words.
    """

    name: str
    positions: Float[np.ndarray, "T P S"]
    confidence: Float[np.ndarray, "T P"] | None
    keypoints: tuple[str, ...]
    fps: float | int | None = None
    individual: str | None = None
    source: str = ""
    start: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problem = find_problem(self.positions, self.confidence, self.keypoints, self.fps)
        if problem:
            raise DataError(f"Recording {self.name!r}: {problem}")

    def __len__(self) -> int:
        """Frames."""
        return len(self.positions)

    @property
    def frame(self) -> np.ndarray:
        """Frame numbers in the file, (T,)."""
        return np.arange(self.start, self.start + len(self))

    @property
    def missing(self) -> float:
        """Share of keypoints that are not observed, over all frames."""
        return float(np.isnan(self.positions).any(-1).mean())

    def select(self, keypoints: Sequence[str]) -> "Recording":
        """The same recording with these keypoints only, in this order."""
        unknown = [k for k in keypoints if k not in self.keypoints]
        if unknown:
            raise DataError(f"Recording {self.name!r}: keypoints must be among {list(self.keypoints)}, got {unknown}")
        places = [self.keypoints.index(k) for k in keypoints]
        confidence = None if self.confidence is None else self.confidence[:, places]
        return replace(self, positions=self.positions[:, places], confidence=confidence, keypoints=tuple(keypoints))

    def to_xarray(self) -> xr.Dataset:
        """A movement-style Dataset: position (time, space, keypoints, individuals) and confidence.

        ``time`` is in seconds when the frame rate is known, in frames otherwise.
        """
        time = self.frame / self.fps if self.fps else self.frame
        confidence = np.full(self.positions.shape[:2], np.nan) if self.confidence is None else self.confidence
        return xr.Dataset(
            {
                "position": (("time", "space", "keypoints", "individuals"), self.positions.swapaxes(1, 2)[..., None]),
                "confidence": (("time", "keypoints", "individuals"), confidence[..., None]),
            },
            coords={
                "time": time,
                "space": list(SPACE[: self.positions.shape[2]]),
                "keypoints": list(self.keypoints),
                "individuals": [self.individual or self.name],
            },
            attrs={"ds_type": "poses", "source_software": self.source, "time_unit": "seconds" if self.fps else "frames"}
            | ({"fps": self.fps} if self.fps else {}),
        )


def find_problem(
    positions: np.ndarray, confidence: np.ndarray | None, keypoints: tuple[str, ...], fps: float | int | None
) -> str | None:
    """Say what is wrong with these arrays as a recording, in words, or return None."""
    checks = (
        lambda: _shape_problem(positions, confidence, keypoints),
        lambda: _name_problem(keypoints),
        lambda: _fps_problem(fps),
        lambda: _position_problem(positions, keypoints),
        lambda: _confidence_problem(confidence, keypoints),
    )
    return next((problem for check in checks if (problem := check())), None)


def _shape_problem(positions: np.ndarray, confidence: np.ndarray | None, keypoints: tuple[str, ...]) -> str | None:
    if positions.ndim != 3 or positions.shape[2] not in (2, 3):
        return f"positions must have shape (frames, keypoints, 2 or 3), got {positions.shape}; reorder the axes"
    if positions.dtype != np.float64:
        return f"positions must be float64, got {positions.dtype}; convert with .astype(float)"
    if positions.shape[1] != len(keypoints):
        return f"positions must have one column per keypoint, got {positions.shape[1]} for {len(keypoints)} names"
    if confidence is not None and confidence.shape != positions.shape[:2]:
        return f"confidence must have shape {positions.shape[:2]}, got {confidence.shape}; one value per keypoint"
    return None


def _name_problem(keypoints: tuple[str, ...]) -> str | None:
    if not keypoints:
        return "it must have at least one keypoint, got none"
    duplicates = sorted({k for k in keypoints if keypoints.count(k) > 1})
    if duplicates:
        return f"keypoint names must differ, got {duplicates} more than once; rename them in the file"
    if not all(keypoints):
        return "keypoint names must not be empty, got an empty one; name it in the file"
    return None


def _fps_problem(fps: float | int | None) -> str | None:
    if fps is not None and not (np.isfinite(fps) and fps > 0):
        return f"fps must be a positive number of frames per second, got {fps}"
    return None


def _position_problem(positions: np.ndarray, keypoints: tuple[str, ...]) -> str | None:
    """The first reason, in words, for which positions are not a recording; None if there is none."""
    if len(positions) < 2:
        return f"a recording must have at least 2 frames, got {len(positions)}; a single image has no behaviour"
    infinite = np.argwhere(np.isinf(positions))
    if len(infinite):
        t, p, s = infinite[0]
        where = f"row {t}, keypoint {keypoints[p]!r} ({SPACE[s]})"
        return f"positions must be finite or NaN, got {positions[t, p, s]} at {where}; write NaN for not observed"
    huge = np.argwhere(np.abs(positions) > LARGEST_COORDINATE)
    if len(huge):
        t, p, s = huge[0]
        where = f"row {t}, keypoint {keypoints[p]!r} ({SPACE[s]})"
        return (
            f"positions must lie within {LARGEST_COORDINATE:g} of 0, got {positions[t, p, s]:g} at {where}; "
            "write NaN for not observed"
        )
    if np.isnan(positions).any(-1).all():
        return "every position is missing; nothing was tracked, or the threshold on confidence is too high"
    return None


def _confidence_problem(confidence: np.ndarray | None, keypoints: tuple[str, ...]) -> str | None:
    if confidence is None:
        return None
    # Trackers compute in float32, whose rounding reaches just past 1.
    bad = np.argwhere((confidence < -1e-6) | (confidence > 1 + 1e-6))
    if len(bad):
        t, p = bad[0]
        where = f"row {t}, keypoint {keypoints[p]!r}"
        return f"likelihood must lie in 0-1, got {confidence[t, p]:g} at {where}; check the order of the columns"
    return None
