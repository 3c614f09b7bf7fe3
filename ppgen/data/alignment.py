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

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ppgen.data.incomplete import complete, fit_gaussian
from ppgen.data.recording import Recording
from ppgen.errors import DataError

__all__ = ["Aligned", "AlignedRecording", "Template", "align", "unalign"]

_FREEDOM = 4.0
_REWEIGHT = 3
_STEPS = 10
_SPREAD_FLOOR = 0.01
_FRONT = ("nose", "snout", "forehead", "head", "neck", "ear")
_BACK = ("tailbase", "tailstart", "basetail", "basetail", "rump", "hip", "abdomen", "tail")


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
    fps: float | None = None
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

    def apply(self, recordings: Sequence[Recording]) -> Aligned:
        """Align recordings, each on its own; the same input gives the same bits."""
        return Aligned(tuple(self._one(r) for r in recordings), self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists, exact in JSON."""
        return {
            "keypoints": list(self.keypoints),
            "shape": self.shape.tolist(),
            "spread": self.spread.tolist(),
            "covariance": self.covariance.tolist(),
            "max_heading_error": self.max_heading_error,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Template:
        """Return what `to_dict` described, bit for bit."""
        shape, spread, covariance = (np.array(state[k], dtype=np.float64) for k in ("shape", "spread", "covariance"))
        return cls(
            tuple(state["keypoints"]), shape, spread, covariance, float(state["max_heading_error"]),
            tuple(state["notes"]),
        )  # fmt: skip

    def _one(self, recording: Recording) -> AlignedRecording:
        points = _matching(recording, self).positions
        scale = _body_length(points, self, recording.name)
        heading, centroid, weights = _place(points, self, scale)
        heading, centroid = _refine(points, self, scale, heading, centroid, weights)
        pose = _to_body(points, centroid, heading, scale)
        lost = int((np.isnan(heading) & ~np.isnan(points).all((1, 2))).sum())
        notes = (f"{lost} frames show too little of the animal to align and are missing",) if lost else ()
        return AlignedRecording(
            recording.name, pose, centroid, _wrapped(heading), scale, self.keypoints, recording.fps, recording.start,
            (*recording.notes, *notes),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Aligned:
    """Aligned recordings and the template they lie on."""

    recordings: tuple[AlignedRecording, ...]
    template: Template

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the alignment, in words."""
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
    recordings
        Animals of one kind, with the same keypoints; sizes and cameras may differ.
    anterior, posterior
        Keypoints at the front and at the back. When neither is given they are guessed from the names (nose, head,
        tail base, ...), else from the direction of walking; a note says which.
    keypoints
        Use these only (leave out a tail tip that swings).
    max_heading_error
        Frames whose heading has a larger standard error, in radians, are not aligned.
    max_frames
        The template is fitted to at most so many frames, evenly taken.

    Raises
    ------
    DataError
        Other keypoints in other recordings, fewer than two, unknown names, or a recording that never shows two at once.
    """
    chosen = [_chosen(r, recordings, keypoints) for r in recordings]
    if not chosen:
        raise DataError("align: recordings must be at least one, got none")
    _check_usable(chosen)
    thinned = _thinned(chosen, max_frames)
    template = _fit_shape(thinned, max_heading_error)
    template = _faced(template, thinned, _listed(anterior), _listed(posterior), chosen)
    features = np.concatenate([template._one(r).features for r in thinned])
    features = features[~np.isnan(features).all(1)]
    _, covariance = fit_gaussian(features, steps=30)
    variance = np.repeat(template.spread**2, template.shape.shape[1])
    # The alignment itself leaves directions without variance; a hundredth of the spread keeps predictions sober.
    covariance = covariance + 0.01 * np.diag(variance)
    return _with_covariance(template, covariance).apply(chosen)


def unalign(
    pose: Float[np.ndarray, "*B T P S"],
    centroid: Float[np.ndarray, "T S"],
    heading: Float[np.ndarray, " T"],
    scale: float,
) -> Float[np.ndarray, "*B T P S"]:
    """Return poses, in body lengths, to the place, direction and units they came from."""
    turned = _rotated(pose, heading)
    return turned * scale + centroid[:, None, :]


def _place(
    points: np.ndarray, template: Template, scale: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return heading (T,), centroid (T, S) and the robust weights (T, P) of each frame."""
    seen = ~np.isnan(points).any(-1) & ~np.isnan(template.shape).any(-1)
    base = seen / template.spread**2
    weights = base
    for _ in range(_REWEIGHT):
        heading, centroid = _procrustes(points, template.shape, weights, scale)
        off = _to_body(points, centroid, heading, scale) - template.shape
        distance = np.nan_to_num((off**2).sum(-1) / template.spread**2)
        weights = base * (_FREEDOM + points.shape[2]) / (_FREEDOM + distance)
    heading, centroid = _procrustes(points, template.shape, weights, scale)
    unsure = ~(_heading_error(template.shape, base) <= template.max_heading_error)
    heading[unsure], centroid[unsure] = np.nan, np.nan
    return heading, centroid, np.where(seen, weights, 1 / template.spread**2)


def _procrustes(
    points: np.ndarray, shape: np.ndarray, weights: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted best rotation and shift of each frame; keypoints of weight 0 may be NaN."""
    x, m = np.where(weights[..., None] > 0, points, 0.0), np.nan_to_num(shape)
    total = weights.sum(1)
    total = np.where(total > 0, total, np.nan)
    x_mid = (weights[..., None] * x).sum(1) / total[:, None]
    m_mid = (weights @ m) / total[:, None]
    plane_x, plane_m = _plane(x - x_mid[:, None]), _plane(m - m_mid[:, None])
    heading = np.angle((weights * plane_x * plane_m.conj()).sum(1))
    return np.where(np.isnan(total), np.nan, heading), x_mid - scale * _rotated(m_mid[:, None], heading)[:, 0]


def _refine(
    points: np.ndarray, template: Template, scale: float, heading: np.ndarray, centroid: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Place incomplete frames again, with their unseen keypoints where the seen ones expect them.

    Once only: a second pass would predict from its own prediction, and drifts.
    """
    rows = np.flatnonzero(np.isnan(points).any((1, 2)) & ~np.isnan(heading))
    pose = _to_body(points[rows], centroid[rows], heading[rows], scale)
    expected, _ = complete(pose.reshape(len(rows), -1), template.shape.ravel(), template.covariance)
    full = unalign(expected.reshape(pose.shape), centroid[rows], heading[rows], scale)
    heading, centroid = heading.copy(), centroid.copy()
    heading[rows], centroid[rows] = _procrustes(full, template.shape, weights[rows], scale)
    return heading, centroid


def _heading_error(shape: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the standard error in radians of each frame's heading, inf where nothing tells."""
    plane = _plane(np.nan_to_num(shape))
    total = np.maximum(weights.sum(1), 1e-300)
    middle = (weights * plane).sum(1) / total
    information = (weights * np.abs(plane - middle[:, None]) ** 2).sum(1)
    return 1 / np.sqrt(np.maximum(information, 1e-300))


def _body_length(points: np.ndarray, template: Template, name: str) -> float:
    """Return the median over frames of the size of the observed keypoints relative to the template's."""
    seen = ~np.isnan(points).any(-1) & ~np.isnan(template.shape).any(-1)
    weights = seen / template.spread**2
    usable = _heading_error(template.shape, weights) <= template.max_heading_error
    if not usable.any():
        raise DataError(
            f"align: recording {name!r} must show enough keypoints at once to tell where the animal faces, no frame does; "
            "lower min_confidence or leave the recording out"
        )
    weights, x = weights[usable], np.nan_to_num(points[usable])
    ratio = np.sqrt(_scatter(x, weights) / _scatter(np.nan_to_num(template.shape)[None], weights))
    return float(np.median(ratio))


def _scatter(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted sum of squares around the weighted mean, per frame."""
    total = weights.sum(1)
    middle = (weights[..., None] * x).sum(1) / total[:, None]
    return (weights * ((x - middle[:, None]) ** 2).sum(-1)).sum(1)


def _fit_shape(recordings: Sequence[Recording], max_heading_error: float) -> Template:
    """Generalised Procrustes: align to the template, average, repeat."""
    shape = _medoid(np.concatenate([r.positions for r in recordings]))
    spread = np.full(len(shape), 0.15)
    keypoints, size = recordings[0].keypoints, shape.size
    template = _normalised(keypoints, shape, spread, np.eye(size), max_heading_error)
    for _ in range(_STEPS):
        poses, weights = [], []
        for recording in recordings:
            scale = _body_length(recording.positions, template, recording.name)
            heading, centroid, weight = _place(recording.positions, template, scale)
            poses.append(_to_body(recording.positions, centroid, heading, scale))
            weights.append(weight * template.spread**2)
        shape, spread = _average(np.concatenate(poses), np.concatenate(weights))
        template = _normalised(keypoints, shape, spread, np.eye(size), max_heading_error)
    return template


def _average(pose: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the robust mean (P, S) and the spread (P,) of aligned poses."""
    weights = np.where(np.isnan(pose).any(-1), 0.0, weights)
    total = weights.sum(0)
    with np.errstate(invalid="ignore"):
        shape = (weights[..., None] * np.nan_to_num(pose)).sum(0) / total[:, None]
    square = np.nan_to_num(((pose - shape) ** 2).mean(-1))
    variance = (weights * square).sum(0) / np.maximum(total, 1e-300)
    # Half way to a common spread: left free, the weights run away to the two keypoints that define each other.
    variance = (variance + variance[total > 0].mean()) / 2
    return shape, np.where(total > 0, np.maximum(np.sqrt(variance), _SPREAD_FLOOR), 1.0)


def _normalised(
    keypoints: tuple[str, ...], shape: np.ndarray, spread: np.ndarray, covariance: np.ndarray, max_heading_error: float
) -> Template:
    """Centre the shape and give it body length one."""
    length = np.nanmax(np.linalg.norm(shape[:, None] - shape[None], axis=-1))
    known = ~np.isnan(shape).any(-1)
    weights = known / spread**2
    centre = (weights[:, None] * np.nan_to_num(shape)).sum(0) / weights.sum()
    # The spread is in units of the template it was measured around, whose length was one: it needs no rescaling.
    return Template(keypoints, (shape - centre) / length, spread, covariance, max_heading_error)


def _medoid(points: np.ndarray) -> np.ndarray:
    """Return, of thirty well-seen frames, the one whose shape is nearest to three hundred others."""
    count = (~np.isnan(points).any(-1)).sum(1)
    best = np.flatnonzero(count == count.max())
    candidates = points[best[np.linspace(0, len(best) - 1, min(30, len(best))).astype(np.int64)]]
    some = np.flatnonzero(count >= 2)
    others = points[some[np.linspace(0, len(some) - 1, min(300, len(some))).astype(np.int64)]]
    losses = [_mismatch(others, candidate) for candidate in candidates]
    return candidates[int(np.argmin(losses))]


def _mismatch(points: np.ndarray, shape: np.ndarray) -> float:
    """Mean share of a frame's size that a rotated, scaled shape leaves unexplained."""
    weights = (~np.isnan(points).any(-1) & ~np.isnan(shape).any(-1)).astype(np.float64)
    usable = weights.sum(1) >= 2
    if not usable.any():
        return np.inf
    weights = weights[usable]
    x, m = np.nan_to_num(points[usable]), np.nan_to_num(shape)
    total = weights.sum(1)[:, None]
    x = _plane(x - ((weights[..., None] * x).sum(1) / total)[:, None])
    m = _plane(m - ((weights @ m) / total)[:, None])
    cross = np.abs((weights * x * m.conj()).sum(1)) ** 2
    sizes = (weights * np.abs(x) ** 2).sum(1) * (weights * np.abs(m) ** 2).sum(1)
    return float(np.mean(1 - cross / np.maximum(sizes, 1e-300)))


def _faced(
    template: Template,
    recordings: Sequence[Recording],
    front: tuple[str, ...],
    back: tuple[str, ...],
    whole: Sequence[Recording],
) -> Template:
    """Turn the template so that the animal faces +x, and say how the front was found."""
    unknown = [k for k in (*front, *back) if k not in template.keypoints]
    if unknown:
        raise DataError(f"align: anterior and posterior must be among {list(template.keypoints)}, got {unknown}")
    how = "given"
    if not front and not back:
        front, back, how = _named(template.keypoints, _FRONT), _named(template.keypoints, _BACK), "guessed by name"
    plane = _plane(template.shape)
    if front or back:
        ahead = _middle(plane, template.keypoints, front) - _middle(plane, template.keypoints, back)
        note = f"front ({how}): {', '.join(front) or 'away from the back'}; back: {', '.join(back) or 'the centre'}"
    else:
        ahead, clarity = _walking(template, whole)
        note = f"front: where the animal walks (clarity {clarity:.2f} of 1); name anterior and posterior to be sure"
    if not np.abs(ahead) > 1e-6:
        raise DataError("align: anterior and posterior must lie apart on the animal, they coincide; name others")
    shape = _rotated(template.shape[None], -np.angle(ahead)[None])[0]
    return Template(
        template.keypoints, shape, template.spread, template.covariance, template.max_heading_error, (note,)
    )


def _walking(template: Template, recordings: Sequence[Recording]) -> tuple[np.complex128, float]:
    """Return the mean direction of movement as the animal sees it, and its share of all movement."""
    total, length = np.complex128(0), 0.0
    for recording in recordings:
        scale = _body_length(recording.positions, template, recording.name)
        heading, centroid, _ = _place(recording.positions, template, scale)
        step = np.diff(_plane(centroid)) / scale * np.exp(-1j * heading[:-1])
        total += np.nansum(step)
        length += float(np.nansum(np.abs(step)))
    return total / max(length, 1e-300), float(np.abs(total) / max(length, 1e-300))


def _named(keypoints: tuple[str, ...], words: Sequence[str]) -> tuple[str, ...]:
    """Return the keypoints that hold the first of these words that any of them holds."""
    plain = {k: "".join(c for c in k.lower() if c.isalnum()) for k in keypoints}
    for word in words:
        found = tuple(k for k, name in plain.items() if word in name)
        if found:
            return found
    return ()


def _middle(plane: np.ndarray, keypoints: tuple[str, ...], names: tuple[str, ...]) -> np.complex128:
    places = [keypoints.index(k) for k in names]
    return np.complex128(np.nanmean(plane[places]) if places else 0.0)


def _chosen(recording: Recording, all_of_them: Sequence[Recording], keypoints: Sequence[str] | None) -> Recording:
    first = all_of_them[0]
    names = list(keypoints) if keypoints is not None else list(first.keypoints)
    if keypoints is None and set(recording.keypoints) != set(names):
        odd = sorted(set(recording.keypoints) ^ set(names))
        raise DataError(
            f"align: recordings must have the same keypoints, {recording.name!r} and {first.name!r} differ in {odd[:8]}; "
            "choose common ones with keypoints=[...]"
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


def _check_usable(recordings: Sequence[Recording]) -> None:
    keypoints = recordings[0].keypoints
    if len(keypoints) < 2:
        raise DataError(f"align: there must be at least 2 keypoints to tell where an animal faces, got {len(keypoints)}")
    seen = np.zeros(len(keypoints), dtype=bool)
    for recording in recordings:
        present = ~np.isnan(recording.positions).any(-1)
        seen |= present.any(0)
        if not (present.sum(1) >= 2).any():
            raise DataError(
                f"align: recording {recording.name!r} must show 2 keypoints at once, no frame does; "
                "lower min_confidence or leave it out"
            )
    if not seen.all():
        never = [k for k, s in zip(keypoints, seen, strict=True) if not s]
        raise DataError(f"align: keypoints {never} are never seen in any recording; leave them out with keypoints=[...]")


def _thinned(recordings: Sequence[Recording], most: int) -> list[Recording]:
    """Return recordings of evenly taken frames, at most ``most`` in all."""
    share = min(1.0, most / sum(len(r) for r in recordings))
    found = []
    for r in recordings:
        # Frames with less than two keypoints say nothing about the shape.
        useful = np.flatnonzero((~np.isnan(r.positions).any(-1)).sum(1) >= 2)
        count = min(len(useful), max(2, int(len(r) * share)))
        pick = useful[np.linspace(0, len(useful) - 1, count).astype(np.int64)]
        pick = pick if len(pick) > 1 else np.repeat(useful, 2)
        found.append(Recording(r.name, r.positions[pick], None, r.keypoints))
    return found


def _with_covariance(template: Template, covariance: np.ndarray) -> Template:
    return Template(
        template.keypoints, template.shape, template.spread, covariance, template.max_heading_error, template.notes
    )


def _listed(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _to_body(points: np.ndarray, centroid: np.ndarray, heading: np.ndarray, scale: float) -> np.ndarray:
    return _rotated((points - centroid[:, None]) / scale, -heading)


def _rotated(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Turn (..., T, P, S) by (T,) in the plane of the first two axes."""
    turned = _plane(points) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag, *np.moveaxis(points[..., 2:], -1, 0)], -1)


def _plane(points: np.ndarray) -> np.ndarray:
    return points[..., 0] + 1j * points[..., 1]


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(angle), np.nan, np.angle(np.exp(1j * np.nan_to_num(angle))))
