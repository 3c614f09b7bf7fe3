r"""Egocentric poses: where the animal is, where it faces, how big it is, and the shape that is left.

A frame is placed on a template (the mean pose, body length one, facing +x) by the closed-form rotation and shift that
fit the *observed* keypoints best,

.. math:: \min_{\theta, c} \sum_p w_p \, | x_p - (c + \ell R(\theta) m_p) |^2 ,

with :math:`w_p` the inverse variance of keypoint p around the template, lowered for outliers (Student's t weights).
Then unseen keypoints get their conditional mean under a Gaussian of aligned shapes *for the placement only*, so that
centroid and heading do not jump when a keypoint drops out; the pose itself keeps NaN. A template is never mirrored.
In 3-D the rotation is about the vertical (last) axis.

References: Gower (1975), Generalized Procrustes analysis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from ppgen.errors import DataError
from ppgen.pose.incomplete import fit_gaussian
from ppgen.pose.procrustes import (
    average,
    body_length,
    medoid,
    normalised,
    place,
    plane,
    refine,
    rotated,
    to_body,
    wrapped,
)
from ppgen.pose.recording import Recording

__all__ = ["Aligned", "AlignedRecording", "Template", "align", "unalign"]

STEPS = 10
FRONT = ("nose", "snout", "forehead", "head", "neck", "ear")
BACK = ("tailbase", "tailstart", "basetail", "rump", "hip", "abdomen", "tail")


@dataclass(frozen=True, eq=False)
class AlignedRecording:
    """One recording seen from the animal.

    ``pose`` (T, P, 2|3) in body lengths, NaN where the keypoint is; ``centroid`` (T, 2|3) in the file's units;
    ``heading`` (T,) in radians, wrapped to (-pi, pi]; ``scale`` the body length in the file's units. A frame that
    shows too little to tell where the animal faces is NaN in all of them.
    """

    name: str
    pose: Float[np.ndarray, "T P S"]
    centroid: Float[np.ndarray, "T S"]
    heading: Float[np.ndarray, " T"]
    scale: float
    keypoints: tuple[str, ...]
    fps: float | int | None = None
    start: int = 0
    notes: tuple[str, ...] = ()

    @property
    def features(self) -> Float[np.ndarray, "T F"]:
        """The pose as (T, P * 2|3), keypoint by keypoint."""
        return self.pose.reshape(len(self.pose), -1)


@dataclass(frozen=True, eq=False)
class Template:
    """The mean pose, and how poses vary around it: all that is needed to align new recordings the same way.

    ``shape`` (P, 2|3) in body lengths (the largest distance between two of its keypoints is 1), ``spread`` (P,) the
    standard deviation of each keypoint, ``covariance`` (F, F) of the aligned features. ``max_heading_error`` is the
    standard error in radians above which a frame counts as showing too little.
    """

    keypoints: tuple[str, ...]
    shape: Float[np.ndarray, "P S"]
    spread: Float[np.ndarray, " P"]
    covariance: Float[np.ndarray, "F F"]
    max_heading_error: float = 0.35
    notes: tuple[str, ...] = ()

    def apply(self, recordings: Sequence[Recording]) -> "Aligned":
        """Align recordings, each on its own; the same input gives the same bits."""
        return Aligned(tuple(self._one(r) for r in recordings), self)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, exact in JSON."""
        return {
            "keypoints": list(self.keypoints),
            "shape": self.shape.tolist(),
            "spread": self.spread.tolist(),
            "covariance": self.covariance.tolist(),
            "max_heading_error": self.max_heading_error,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Template":
        """Undo `to_dict`, bit for bit."""
        shape, spread, covariance = (np.array(state[k], dtype=np.float64) for k in ("shape", "spread", "covariance"))
        return cls(
            tuple(state["keypoints"]), shape, spread, covariance, float(state["max_heading_error"]),
            tuple(state["notes"]),
        )  # fmt: skip

    def _one(self, recording: Recording) -> AlignedRecording:
        """One recording as seen from the animal."""
        points = _matching(recording, self).positions
        scale = self._scale(recording)
        placed = place(points, self.shape, self.spread, scale, self.max_heading_error)
        heading, centroid = refine(points, self.shape, self.covariance, scale, placed)
        unplaced = int((np.isnan(heading) & ~np.isnan(points).all((1, 2))).sum())
        notes = (f"{unplaced} frames show too little of the animal to align and are missing",) if unplaced else ()
        return AlignedRecording(
            name=recording.name,
            pose=to_body(points, centroid, heading, scale),
            centroid=centroid,
            heading=wrapped(heading),
            scale=scale,
            keypoints=self.keypoints,
            fps=recording.fps,
            start=recording.start,
            notes=(*recording.notes, *notes),
        )

    def _scale(self, recording: Recording) -> float:
        points = _matching(recording, self).positions
        scale = body_length(points, self.shape, self.spread, self.max_heading_error)
        if not scale > 0:
            raise DataError(
                f"align: recording {recording.name!r} must show enough keypoints at once to tell where the animal "
                "faces, no frame does; lower min_confidence or leave the recording out"
            )
        return scale


@dataclass(frozen=True, eq=False)
class Aligned:
    """Aligned recordings and the template they lie on."""

    recordings: tuple[AlignedRecording, ...]
    template: Template

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the alignment that a person should read, in words."""
        return self.template.notes


def align(
    recordings: Sequence[Recording],
    *,
    anterior: str | Sequence[str] | None = None,
    posterior: str | Sequence[str] | None = None,
    keypoints: Sequence[str] | None = None,
    max_heading_error: float = 0.35,
    max_frames: int = 20_000,
) -> Aligned:
    """Fit a template to recordings and align them to it.

    Parameters
    ----------
    recordings : animals of one kind, with the same keypoints; sizes and cameras may differ.
    anterior, posterior : keypoints at the front and at the back. When neither is given they are guessed from the names
        (nose, head, tail base, ...), else from the direction of walking; a note says which.
    keypoints : use these only (leave out a tail tip that swings).
    max_heading_error : frames whose heading has a larger standard error, in radians, are not aligned.
    max_frames : the template is fitted to at most so many frames, evenly taken.

    Raises
    ------
    DataError : other keypoints in other recordings, fewer than two, unknown names, or a recording that never shows two
        at once.
    """
    chosen = [_chosen(r, recordings, keypoints) for r in recordings]
    if not chosen:
        raise DataError("align: recordings must be at least one, got none")
    thinned = _thinned(chosen, max_frames)
    template = _faced(_fit_shape(thinned, max_heading_error), chosen, _listed(anterior), _listed(posterior))
    features = np.concatenate([template._one(r).features for r in thinned])
    features = features[~np.isnan(features).all(1)]
    _, covariance = fit_gaussian(features, steps=30)
    variance = np.repeat(template.spread**2, template.shape.shape[1])
    # The alignment itself leaves directions without variance; a hundredth of the spread keeps predictions sober.
    covariance = covariance + 0.01 * np.diag(variance)
    return replace(template, covariance=covariance).apply(chosen)


def unalign(
    pose: Float[np.ndarray, "*B T P S"],
    centroid: Float[np.ndarray, "T S"],
    heading: Float[np.ndarray, " T"],
    scale: float | int,
) -> Float[np.ndarray, "*B T P S"]:
    """Put poses, in body lengths, back to the place, direction and units they came from."""
    turned = rotated(pose, heading)
    return turned * scale + centroid[:, None, :]


def _thinned(recordings: Sequence[Recording], most: int) -> list[Recording]:
    """Recordings of evenly taken frames that show two keypoints or more, about ``most`` in all."""
    if len(recordings[0].keypoints) < 2:
        raise DataError("align: there must be at least 2 keypoints to tell where an animal faces, got 1; track more")
    share = min(1.0, most / sum(len(r) for r in recordings))
    found = []
    for recording in recordings:
        useful = np.flatnonzero((~np.isnan(recording.positions).any(-1)).sum(1) >= 2)
        if len(useful) < 2:
            raise DataError(
                f"align: recording {recording.name!r} must show 2 keypoints at once, {len(useful)} frames do; "
                "lower min_confidence or leave it out"
            )
        count = min(len(useful), max(2, int(len(recording) * share)))
        pick = useful[np.linspace(0, len(useful) - 1, count).astype(np.int64)]
        found.append(Recording(recording.name, recording.positions[pick], None, recording.keypoints))
    return found


def _fit_shape(recordings: Sequence[Recording], limit: float) -> Template:
    """Generalised Procrustes: align to the template, average, repeat."""
    shape = medoid(np.concatenate([r.positions for r in recordings]))
    spread = np.full(len(shape), 0.15)
    for step in range(STEPS + 1):
        template = Template(recordings[0].keypoints, normalised(shape, spread), spread, np.eye(shape.size), limit)
        if step == STEPS:
            break
        poses, weights = [], []
        for recording in recordings:
            scale = template._scale(recording)
            heading, centroid, weight = place(recording.positions, template.shape, spread, scale, limit)
            poses.append(to_body(recording.positions, centroid, heading, scale))
            weights.append(weight * spread**2)
        shape, spread = average(np.concatenate(poses), np.concatenate(weights))
    never = [k for k, gone in zip(template.keypoints, np.isnan(shape).any(-1), strict=True) if gone]
    if never:
        raise DataError(f"align: keypoints {never} are never seen with others; leave them out with keypoints=[...]")
    return template


def _faced(
    template: Template, recordings: Sequence[Recording], front: tuple[str, ...], back: tuple[str, ...]
) -> Template:
    """Turn the template so that the animal faces +x, and say how the front was found."""
    unknown = [k for k in (*front, *back) if k not in template.keypoints]
    if unknown:
        raise DataError(f"align: anterior and posterior must be among {list(template.keypoints)}, got {unknown}")
    how = "given"
    if not front and not back:
        front, back, how = _named(template.keypoints, FRONT), _named(template.keypoints, BACK), "guessed by name"
    if front or back:
        ahead = _middle(template, front) - _middle(template, back)
        note = f"front ({how}): {', '.join(front) or 'away from the back'}; back: {', '.join(back) or 'the centre'}"
    else:
        ahead, clarity = _walking(template, recordings)
        note = f"front: where the animal walks (clarity {clarity:.2f} of 1); name anterior and posterior to be sure"
    if not np.abs(ahead) > 1e-6:
        raise DataError("align: anterior and posterior must lie apart on the animal, they coincide; name others")
    shape = rotated(template.shape[None], np.atleast_1d(-np.angle(ahead)))[0]
    return replace(template, shape=shape, notes=(note,))


def _walking(template: Template, recordings: Sequence[Recording]) -> tuple[np.complex128, float]:
    """The mean direction of movement as the animal sees it, and its share of all movement."""
    total, length = np.complex128(0), 0.0
    for recording in recordings:
        scale = template._scale(recording)
        heading, centroid, _ = place(
            recording.positions, template.shape, template.spread, scale, template.max_heading_error
        )
        step = np.diff(plane(centroid)) / scale * np.exp(-1j * heading[:-1])
        total += np.nansum(step)
        length += float(np.nansum(np.abs(step)))
    return total / max(length, 1e-300), float(np.abs(total) / max(length, 1e-300))


def _middle(template: Template, names: tuple[str, ...]) -> np.complex128:
    """The middle of some keypoints, or the centre of the template when there are none."""
    places = [template.keypoints.index(k) for k in names]
    return np.complex128(plane(template.shape[places]).mean() if places else 0.0)


def _named(keypoints: tuple[str, ...], words: Sequence[str]) -> tuple[str, ...]:
    """The keypoints that hold the first of these words that any of them holds."""
    plain = {k: "".join(c for c in k.lower() if c.isalnum()) for k in keypoints}
    for word in words:
        found = tuple(k for k, name in plain.items() if word in name)
        if found:
            return found
    return ()


def _chosen(recording: Recording, all_of_them: Sequence[Recording], keypoints: Sequence[str] | None) -> Recording:
    first = all_of_them[0]
    names = list(keypoints) if keypoints is not None else list(first.keypoints)
    if keypoints is None and set(recording.keypoints) != set(names):
        odd = sorted(set(recording.keypoints) ^ set(names))
        raise DataError(
            f"align: recordings must have the same keypoints, {recording.name!r} and {first.name!r} differ in "
            f"{odd[:8]}; choose common ones with keypoints=[...]"
        )
    if recording.positions.shape[2] != first.positions.shape[2]:
        raise DataError(f"align: recordings must all be 2-D or all 3-D, {recording.name!r} differs; align them apart")
    return recording if list(recording.keypoints) == names else recording.select(names)


def _matching(recording: Recording, template: Template) -> Recording:
    missing = [k for k in template.keypoints if k not in recording.keypoints]
    if missing or recording.positions.shape[2] != template.shape.shape[1]:
        raise DataError(
            f"align: recording {recording.name!r} must have the template's keypoints and dimensions, it lacks "
            f"{missing or f'{template.shape.shape[1]}-D positions'}; track them too or fit again"
        )
    return recording if recording.keypoints == template.keypoints else recording.select(template.keypoints)


def _listed(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)
