"""Arrays behind the alignment: rotations and shifts that fit shapes with holes, over all frames at once.

Letters here: T frames, P keypoints, S = 2 or 3 coordinates. Rotations are in the plane of the first two.
"""

import numpy as np

from ppgen.pose.incomplete import complete

__all__ = [
    "average",
    "body_length",
    "medoid",
    "normalised",
    "place",
    "plane",
    "refine",
    "rotated",
    "to_body",
    "wrapped",
]

FREEDOM = 4.0
REWEIGHT = 3
SPREAD_FLOOR = 0.01


def place(
    points: np.ndarray, shape: np.ndarray, spread: np.ndarray, scale: float, limit: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heading (T,), centroid (T, S) and robust weights (T, P) of frames (T, P, S) on a shape (P, S).

    ``spread`` (P,) is the standard deviation of each keypoint, ``scale`` the body length, ``limit`` the standard error
    of the heading, in radians, above which a frame is NaN.
    """
    seen = _seen(points, shape)
    base = seen / spread**2
    weights = base
    for _ in range(REWEIGHT):
        heading, centroid = _procrustes(points, shape, weights, scale)
        off = to_body(points, centroid, heading, scale) - shape
        distance = np.nan_to_num((off**2).sum(-1) / spread**2)
        weights = base * (FREEDOM + points.shape[2]) / (FREEDOM + distance)
    heading, centroid = _procrustes(points, shape, weights, scale)
    unsure = ~(_heading_error(shape, base) <= limit)
    heading[unsure], centroid[unsure] = np.nan, np.nan
    return heading, centroid, np.where(seen, weights, 1 / spread**2)


def refine(
    points: np.ndarray,
    shape: np.ndarray,
    covariance: np.ndarray,
    scale: float,
    placed: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Place incomplete frames again, with their unseen keypoints where the seen ones expect them.

    Once only: a second pass would predict from its own prediction, and drifts.
    """
    heading, centroid, weights = placed
    rows = np.flatnonzero(np.isnan(points).any((1, 2)) & ~np.isnan(heading))
    pose = to_body(points[rows], centroid[rows], heading[rows], scale)
    expected, _ = complete(pose.reshape(len(rows), shape.size), shape.ravel(), covariance)
    full = scale * rotated(expected.reshape(pose.shape), heading[rows]) + centroid[rows, None]
    heading, centroid = heading.copy(), centroid.copy()
    heading[rows], centroid[rows] = _procrustes(full, shape, weights[rows], scale)
    return heading, centroid


def body_length(points: np.ndarray, shape: np.ndarray, spread: np.ndarray, limit: float) -> float:
    """The median over frames of the size of the observed keypoints relative to the shape's; NaN if no frame."""
    weights = _seen(points, shape) / spread**2
    usable = _heading_error(shape, weights) <= limit
    if not usable.any():
        return np.nan
    weights, x = weights[usable], np.nan_to_num(points[usable])
    return float(np.median(np.sqrt(_scatter(x, weights) / _scatter(np.nan_to_num(shape)[None], weights))))


def normalised(shape: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Centre a shape, and make the largest distance between two of its keypoints one."""
    length = np.nanmax(np.linalg.norm(shape[:, None] - shape[None], axis=-1))
    weights = ~np.isnan(shape).any(-1) / spread**2
    centre = (weights[:, None] * np.nan_to_num(shape)).sum(0) / weights.sum()
    return (shape - centre) / length


def average(pose: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The robust mean (P, S) and the spread (P,) of aligned poses."""
    weights = np.where(np.isnan(pose).any(-1), 0.0, weights)
    total = weights.sum(0)
    with np.errstate(invalid="ignore"):
        shape = (weights[..., None] * np.nan_to_num(pose)).sum(0) / total[:, None]
    square = np.nan_to_num(((pose - shape) ** 2).mean(-1))
    variance = (weights * square).sum(0) / np.maximum(total, 1e-300)
    # Half way to a common spread: left free, the weights run away to the two keypoints that define each other.
    variance = (variance + variance[total > 0].mean()) / 2
    return shape, np.where(total > 0, np.maximum(np.sqrt(variance), SPREAD_FLOOR), 1.0)


def medoid(points: np.ndarray) -> np.ndarray:
    """Return, of thirty well-seen frames, the one whose shape is nearest to three hundred others."""
    count = (~np.isnan(points).any(-1)).sum(1)
    best = np.flatnonzero(count == count.max())
    candidates = points[best[np.linspace(0, len(best) - 1, min(30, len(best))).astype(np.int64)]]
    some = np.flatnonzero(count >= 2)
    others = points[some[np.linspace(0, len(some) - 1, min(300, len(some))).astype(np.int64)]]
    losses = [_mismatch(others, candidate) for candidate in candidates]
    return candidates[int(np.argmin(losses))]


def to_body(points: np.ndarray, centroid: np.ndarray, heading: np.ndarray, scale: float) -> np.ndarray:
    """Frames (T, P, S) as the animal sees them, in body lengths."""
    return rotated((points - centroid[:, None]) / scale, -heading)


def rotated(points: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Turn (..., T, P, S) by (T,) in the plane of the first two axes."""
    turned = plane(points) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag, *np.moveaxis(points[..., 2:], -1, 0)], -1)


def plane(points: np.ndarray) -> np.ndarray:
    """The first two coordinates as complex numbers."""
    return points[..., 0] + 1j * points[..., 1]


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Angles in (-pi, pi]."""
    return np.where(np.isnan(angle), np.nan, np.angle(np.exp(1j * np.nan_to_num(angle))))


def _procrustes(
    points: np.ndarray, shape: np.ndarray, weights: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """The weighted best rotation and shift of each frame; keypoints of weight 0 may be NaN."""
    x, m = np.where(weights[..., None] > 0, points, 0.0), np.nan_to_num(shape)
    total = weights.sum(1)
    total = np.where(total > 0, total, np.nan)
    x_mid = (weights[..., None] * x).sum(1) / total[:, None]
    m_mid = (weights @ m) / total[:, None]
    plane_x, plane_m = plane(x - x_mid[:, None]), plane(m - m_mid[:, None])
    heading = np.angle((weights * plane_x * plane_m.conj()).sum(1))
    return np.where(np.isnan(total), np.nan, heading), x_mid - scale * rotated(m_mid[:, None], heading)[:, 0]


def _heading_error(shape: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The standard error in radians of each frame's heading, inf where nothing tells."""
    flat = plane(np.nan_to_num(shape))
    total = np.maximum(weights.sum(1), 1e-300)
    middle = (weights * flat).sum(1) / total
    information = (weights * np.abs(flat - middle[:, None]) ** 2).sum(1)
    return 1 / np.sqrt(np.maximum(information, 1e-300))


def _scatter(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted sum of squares around the weighted mean, per frame."""
    total = weights.sum(1)
    middle = (weights[..., None] * x).sum(1) / total[:, None]
    return (weights * ((x - middle[:, None]) ** 2).sum(-1)).sum(1)


def _mismatch(points: np.ndarray, shape: np.ndarray) -> float:
    """Mean share of a frame's size that a rotated, scaled shape leaves unexplained."""
    weights = (~np.isnan(points).any(-1) & ~np.isnan(shape).any(-1)).astype(np.float64)
    usable = weights.sum(1) >= 2
    if not usable.any():
        return np.inf
    weights = weights[usable]
    x, m = np.nan_to_num(points[usable]), np.nan_to_num(shape)
    total = weights.sum(1)[:, None]
    x = plane(x - ((weights[..., None] * x).sum(1) / total)[:, None])
    m = plane(m - ((weights @ m) / total)[:, None])
    cross = np.abs((weights * x * m.conj()).sum(1)) ** 2
    sizes = (weights * np.abs(x) ** 2).sum(1) * (weights * np.abs(m) ** 2).sum(1)
    return float(np.mean(1 - cross / np.maximum(sizes, 1e-300)))


def _seen(points: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return ~np.isnan(points).any(-1) & ~np.isnan(shape).any(-1)
