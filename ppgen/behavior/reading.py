"""Pose files as recordings that can be worked with, with notes that a person should read."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppgen.behavior.files import safe_names
from ppgen.errors import DataError
from ppgen.pose.pose import read_poses
from ppgen.pose.recording import Recording

__all__ = ["Reading", "say"]

CONFIDENCE = 0.3  # threshold where the files have confidences and none is given
TRUTH = b"frame,syllable"  # how a table of known syllables begins, which the demo writes beside its recordings


@dataclass(frozen=True)
class Reading:
    """Options of reading files: see :func:`ppgen.pose.pose.read_poses`; None is to find out."""

    fps: float | None = None
    min_confidence: float | None = None
    format: str | None = None
    individuals: tuple[str, ...] | None = None

    def read(self, files: Sequence[Path], shortest: int) -> list[Recording]:
        """Read all recordings; of files with several tracks, those that cannot be used are left out, and said.

        A track is of use when it has ``shortest`` frames and shows half of its keypoints at once somewhere.
        """
        if not files:
            raise DataError("files: at least one pose file must be given, got none; or try --demo")
        found: list[Recording] = []
        for path in tqdm([path for path in files if not _is_truth(path)], desc="reading", delay=1):
            tracks = [replace(one, name=_told_apart(one.name, path, files)) for one in self._read_file(path)]
            useful = [one for one in tracks if len(one) >= shortest and _shows(one) >= 0.5] or tracks
            if len(useful) < len(tracks):
                reason = f"fewer than {shortest} frames, or never half of the keypoints at once"
                say(f"{path.name}: left out {len(tracks) - len(useful)} of {len(tracks)} tracks ({reason})")
            found += useful
        if not found:
            raise DataError("files: at least one of them must hold poses, got tables of known syllables only")
        names = safe_names([recording.name for recording in found])
        return _with_copies_named([replace(one, name=name) for one, name in zip(found, names, strict=True)])

    def _read_file(self, path: Path) -> list[Recording]:
        if self.min_confidence is not None:
            return self._poses(path, self.min_confidence)
        plain = self._poses(path, 0.0)
        if any(one.confidence is None for one in plain):
            return plain
        return self._poses(path, CONFIDENCE)

    def _poses(self, path: Path, min_confidence: float) -> list[Recording]:
        return read_poses(
            path, format=self.format, fps=self.fps, min_confidence=min_confidence, individuals=self.individuals
        )


def say(message: str) -> None:
    """Print a line without breaking a progress bar."""
    tqdm.write(message)


def _told_apart(name: str, path: Path, files: Sequence[Path]) -> str:
    """The name of a recording, with that of its folder in front where another file is called the same."""
    same = [other for other in files if other.stem == path.stem]
    return name if len(same) == 1 else f"{path.resolve().parent.name}_{name}"


def _shows(recording: Recording) -> float:
    """The largest share of the keypoints that is seen at once."""
    return float(np.isfinite(recording.positions).all(axis=-1).mean(axis=1).max())


def _is_truth(path: Path) -> bool:
    """Tell whether a file is a table of known syllables, which holds no poses; it is left out, and the log says so."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        known = file.readline(100).strip() == TRUTH
    if known:
        say(f"{path.name}: left out, it holds known syllables and no poses")
    return known


def _with_copies_named(recordings: list[Recording]) -> list[Recording]:
    """Note, and say, which recordings hold the positions of an earlier one: each would count as an animal."""
    first: dict[str, str] = {}
    noted = []
    for one in recordings:
        digest = hashlib.sha256(one.positions.tobytes()).hexdigest()
        if digest in first:
            note = f"a copy of {first[digest]}, with the same positions; it counts as a recording of its own"
            say(f"{one.name}: {note}")
            one = replace(one, notes=(*one.notes, note))
        first.setdefault(digest, one.name)
        noted.append(one)
    return noted
