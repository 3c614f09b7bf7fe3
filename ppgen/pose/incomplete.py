"""A Gaussian and rows with holes: what the seen entries say about the unseen ones, exactly, per missing pattern."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["complete", "fit_gaussian"]

PATTERNS_AT_ONCE = 512
JITTER = 1e-9


def complete(
    x: Float[np.ndarray, "n F"], mean: Float[np.ndarray, " F"], covariance: Float[np.ndarray, "F F"]
) -> tuple[Float[np.ndarray, "n F"], Float[np.ndarray, "F F"]]:
    """Rows ``x`` with NaN replaced by its conditional mean, and the conditional covariance summed over rows.

    Observed entries come back bit for bit; a row without any becomes the mean.
    """
    filled = np.where(np.isnan(x), 0.0, x - mean)
    leftover = np.zeros_like(covariance)
    for rows, seen in _by_pattern(~np.isnan(x)):
        gains = _gains(covariance, seen)
        for own, gain in zip(rows, gains, strict=True):
            filled[own] = filled[own] @ gain.T
        counts = np.array([len(own) for own in rows], dtype=np.float64)
        leftover += counts.sum() * covariance - np.einsum("u,uij->ij", counts, gains) @ covariance
    return np.where(np.isnan(x), filled + mean, x), (leftover + leftover.T) / 2


def fit_gaussian(
    x: Float[np.ndarray, "n F"], *, rank: int | None = None, steps: int = 200, tol: float = 1e-5
) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, "F F"]]:
    """The mean and covariance of greatest likelihood, by EM when entries are NaN.

    With ``rank`` the covariance is that of probabilistic PCA (Tipping & Bishop, 1999): its M-step keeps the ``rank``
    leading eigenvalues of the expected scatter and averages the others.
    """
    mean = np.nanmean(x, 0)
    covariance = np.diag(np.nanvar(x, 0)) + _floor(np.nanvar(x, 0).sum(), x.shape[1])
    for _ in range(steps if np.isnan(x).any() else 1):
        filled, leftover = complete(x, mean, covariance)
        mean = filled.mean(0)
        centred = filled - mean
        scatter = (centred.T @ centred + leftover) / len(x)
        updated = scatter + _floor(np.trace(scatter), x.shape[1])
        if rank is not None:
            updated = _truncated(updated, rank)
        moved = np.abs(updated - covariance).max()
        covariance = updated
        if moved <= tol * np.abs(covariance).max():
            break
    return mean, covariance


def _by_pattern(
    seen: Bool[np.ndarray, "n F"],
) -> Iterator[tuple[list[np.ndarray], Bool[np.ndarray, "u F"]]]:
    """Yield, for a few patterns at a time, the rows of each incomplete pattern and the patterns."""
    incomplete = np.flatnonzero(~seen.all(1))
    if not len(incomplete):
        return
    patterns, which = np.unique(seen[incomplete], axis=0, return_inverse=True)
    order = np.argsort(which.ravel(), kind="stable")
    groups = np.split(incomplete[order], np.cumsum(np.bincount(which.ravel()))[:-1])
    for i in range(0, len(groups), PATTERNS_AT_ONCE):
        yield groups[i : i + PATTERNS_AT_ONCE], patterns[i : i + PATTERNS_AT_ONCE]


def _gains(covariance: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The matrix of each pattern that takes a centred row, 0 where unseen, to its conditional mean."""
    both = seen[:, :, None] & seen[:, None, :]
    block = np.where(both, covariance, 0.0)
    # Unseen rows and columns become a unit matrix, which leaves the inverse of the seen block alone.
    places = np.arange(len(covariance))
    block[:, places, places] = np.where(seen, covariance[places, places], 1.0)
    return covariance @ np.where(both, np.linalg.inv(block), 0.0)


def _truncated(covariance: np.ndarray, rank: int) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    if rank < len(values):
        values[: len(values) - rank] = values[: len(values) - rank].mean()
    return (vectors * values) @ vectors.T


def _floor(total: float, size: int) -> np.ndarray:
    """A little variance everywhere, so that a constant column does not make the covariance singular."""
    return JITTER * max(total / size, 1e-300) * np.eye(size)
