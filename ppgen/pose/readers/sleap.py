"""The common part of the two SLEAP formats: track fragments begin late, end early, and score a little above one."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ppgen.errors import FileError
from ppgen.pose.recording import Track

__all__ = ["trimmed"]


def trimmed(tracks: list[Track], path: Path) -> list[Track]:
    """Each track from its first to its last seen frame; tracks seen in fewer than two frames are left out.

    Raises
    ------
    FileError : no track is seen in two frames.
    """
    kept, short = [], 0
    for track in tracks:
        seen = np.flatnonzero(np.isfinite(track.positions).all(-1).any(-1))
        if len(seen) < 2:
            short += 1
            continue
        span = slice(seen[0], seen[-1] + 1)
        kept.append(
            replace(
                track,
                positions=np.ascontiguousarray(track.positions[span]),
                # Heights of confidence maps, which exceed one where the network is very sure.
                confidence=None if track.confidence is None else np.clip(track.confidence[span], 0.0, 1.0),
                start=track.start + int(seen[0]),
            )
        )
    if not kept:
        raise FileError(
            f"{path}: must hold a track seen in at least 2 frames, {short} tracks have none; track it again"
        )
    if short:
        kept = [replace(t, notes=(*t.notes, f"{short} tracks seen in fewer than 2 frames were left out")) for t in kept]
    return kept
