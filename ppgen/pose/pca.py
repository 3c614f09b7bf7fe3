r"""Principal components of rows with holes, without filling the holes first.

.. math:: x = \mu + B (s \odot h) + \varepsilon, \qquad h \sim \mathcal N(0, I_D), \quad B'B = I

with residual variance ``noise`` in each of the discarded directions. Entries that are NaN are integrated out (EM on
the Gaussian of all features, then on the probabilistic PCA of the chosen width), so nothing is shrunk towards the mean
as it is by mean-filling.

References: Tipping & Bishop (1999), Probabilistic principal component analysis.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ppgen.errors import DataError
from ppgen.pose.incomplete import complete, fit_gaussian

__all__ = ["PrincipalComponents", "fit_pca"]

WORK = 2e9


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """A fitted subspace.

    ``mean`` (F,), ``basis`` (F, D) orthonormal, ``scale`` (D,) the standard deviation along each component, ``noise``
    the variance in each discarded direction (never exactly 0), ``explained`` (F,) the share of variance of every
    component, largest first.
    """

    mean: Float[np.ndarray, " F"]
    basis: Float[np.ndarray, "F D"]
    scale: Float[np.ndarray, " D"]
    noise: float
    explained: Float[np.ndarray, " F"]

    def project(self, x: Float[np.ndarray, "*B F"]) -> Float[np.ndarray, "*B D"]:
        """The coordinates h of unit variance: the projection of a complete row, the posterior mean of another.

        A row without any observed entry has no coordinates: NaN.
        """
        if x.ndim < 1 or x.shape[-1] != len(self.mean):
            raise DataError(f"project: x must have {len(self.mean)} features, got shape {x.shape}")
        rows = x.reshape(-1, len(self.mean))
        filled, _ = complete(rows, self.mean, self.covariance)
        h = (filled - self.mean) @ self.basis / self.scale
        h[np.isnan(rows).all(1)] = np.nan
        return h.reshape(*x.shape[:-1], len(self.scale))

    def reconstruct(self, h: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B F"]:
        """The features at coordinates h."""
        return self.mean + (h * self.scale) @ self.basis.T

    @property
    def covariance(self) -> Float[np.ndarray, "F F"]:
        """Covariance of x, (F, F)."""
        inside = (self.basis * (self.scale**2 - self.noise)) @ self.basis.T
        return inside + self.noise * np.eye(len(self.mean))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, exact in JSON."""
        return {
            "mean": self.mean.tolist(),
            "basis": self.basis.tolist(),
            "scale": self.scale.tolist(),
            "noise": self.noise,
            "explained": self.explained.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "PrincipalComponents":
        """Undo `to_dict`, bit for bit."""
        mean, basis, scale, explained = (
            np.array(state[key], dtype=np.float64) for key in ("mean", "basis", "scale", "explained")
        )
        return cls(mean, basis, scale, float(state["noise"]), explained)


def fit_pca(
    x: Float[np.ndarray, "n F"],
    components: int | None = None,
    *,
    variance: float = 0.9,
    max_rows: int = 50_000,
) -> PrincipalComponents:
    """Fit probabilistic PCA to rows with holes.

    Parameters
    ----------
    x : (n, F); NaN means not observed.
    components : width D; when None the smallest that explains ``variance``.
    variance : share of variance, 0-1.
    max_rows : longer data is thinned evenly (always to the same rows) before fitting.

    Raises
    ------
    DataError : fewer than two usable rows, a feature that is never seen or never moves, or an impossible width.
    """
    rows = _usable(x, max_rows)
    mean, covariance = fit_gaussian(rows)
    values = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)
    width = _width(values, components, variance)
    if width < len(mean) and np.isnan(rows).any():
        mean, covariance = fit_gaussian(rows, rank=width)
        values = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0)
    vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :width]
    largest = np.abs(vectors).argmax(0)
    basis = vectors * np.sign(vectors[largest, np.arange(width)])
    floor = 1e-8 * float(values.mean())
    noise = float(values[width:].mean()) if width < len(values) else 0.0
    scale = np.sqrt(np.maximum(values[:width], floor))
    return PrincipalComponents(mean, np.ascontiguousarray(basis), scale, max(noise, floor), values / values.sum())


def _usable(x: np.ndarray, max_rows: int) -> np.ndarray:
    """Rows with something observed, evenly thinned to as many as the work allows."""
    if x.ndim != 2:
        raise DataError(f"fit_pca: x must have shape (rows, features), got {x.shape}; reshape it")
    if np.isinf(x).any():
        raise DataError("fit_pca: x must be finite or NaN, got inf; write NaN for not observed")
    rows = x[~np.isnan(x).all(1)].astype(np.float64)
    if len(rows) < 2:
        raise DataError(f"fit_pca: x must have at least 2 rows with something observed, got {len(rows)}")
    never = np.flatnonzero(np.isnan(rows).all(0))
    if len(never):
        raise DataError(f"fit_pca: every feature must be observed somewhere, {never.tolist()[:8]} never are; drop them")
    if not np.nanvar(rows, 0).sum() > 0:
        raise DataError("fit_pca: x must vary, every feature is constant; nothing to find")
    rows = _thinned(rows, max_rows)
    patterns = len(np.unique(np.isnan(rows), axis=0))
    affordable = int(WORK / (max(patterns / len(rows), 1e-9) * rows.shape[1] ** 3))
    return _thinned(rows, max(affordable, 1000))


def _thinned(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _width(values: np.ndarray, components: int | None, variance: float) -> int:
    if components is not None:
        if not 1 <= components <= len(values):
            raise DataError(f"fit_pca: components must lie in 1-{len(values)} (the features), got {components}")
        return components
    if not 0 < variance <= 1:
        raise DataError(f"fit_pca: variance must lie in 0-1, got {variance}")
    reached = np.cumsum(values) / values.sum()
    return min(int(np.searchsorted(reached, variance - 1e-12)) + 1, len(values))
