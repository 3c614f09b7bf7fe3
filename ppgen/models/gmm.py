r"""Gaussian mixture with conjugate priors; with a Dirichlet process over its weights on request.

.. math::
    w &\sim \mathrm{Dir}(\alpha / K), \quad (\mu_k, \Lambda_k) \sim \text{normal-inverse-Wishart} \\
    z_n &\sim \mathrm{Cat}(w), \quad x_n \sim \mathcal N(\mu_{z_n}, \Lambda_{z_n}^{-1})

With ``nonparametric=True`` the weights are broken off a stick, :math:`w_k = v_k \prod_{j<k} (1 - v_j)` and
:math:`v_k \sim \mathrm{Beta}(1, \alpha)` up to component K, which takes what is left: the truncated Dirichlet process,
in which components that the data do not need stay empty.

Components are summed out exactly, so the guide covers the parameters only. NaN in ``x`` is missing at random: it is
integrated out. Scale your features to about unit variance; the priors assume it, and a start refuses data that they
would outweigh.

References: Bishop (2006), §10.2; Blei & Jordan (2006) for the truncated Dirichlet process.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import pyro
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor

from ppgen.collapsed.emission_mixture import EmissionMixture
from ppgen.data.parts import Inputs
from ppgen.emissions.gaussian import Gaussian
from ppgen.emissions.units import check_units
from ppgen.errors import DataError, in_name_of
from ppgen.families.beta import Beta
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Factor, Natural
from ppgen.model import Conjugate

__all__ = ["GMM"]

CLUSTERED = 20_000  # rows that k-means looks at for a start


@final
class GMM(Conjugate):
    r"""``GMM(components=3, features=2)``: data ``x`` of shape (N, D).

    Parameters
    ----------
    components : number of components K; with ``nonparametric=True`` the most there can be.
    features : number of features D.
    covariance : ``"full"``, ``"diagonal"`` or ``"spherical"``, of each component.
    nonparametric : a Dirichlet process prior of the weights, truncated at K components.
    concentration : total prior count of the weights, :math:`\alpha` (K, one for each component, unless given; 1 for
        ``nonparametric=True``). Small values empty more components.
    scale : prior guess of the variance within a component, in squared units of ``x``.
    strength : number of observations that the prior mean (zero) of a component is worth.
    """

    data_dims = ("row", "feature")

    def __init__(
        self,
        components: int,
        features: int,
        *,
        covariance: str = "full",
        nonparametric: bool = False,
        concentration: float | None = None,
        scale: float = 1.0,
        strength: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(components, int) or components < 1:
            raise DataError(f"GMM: components must be a whole number of at least 1, got {components!r}")
        if nonparametric and components < 2:
            raise DataError("GMM: components must be at least 2 with nonparametric=True, got 1; one needs no stick")
        self.components, self.features, self.nonparametric = components, features, nonparametric
        self.emission = Gaussian(features, covariance=covariance, scale=scale, strength=strength)
        default = 1.0 if nonparametric else float(components)
        self.concentration = default if concentration is None else float(concentration)
        if not 0 < self.concentration < float("inf"):
            raise DataError(f"GMM: concentration must be positive, got {concentration}")

    @property
    def config(self) -> dict[str, Any]:
        return {
            "components": self.components,
            "features": self.features,
            "covariance": self.emission.covariance,
            "nonparametric": self.nonparametric,
            "concentration": self.concentration,
            "scale": self.emission.scale,
            "strength": self.emission.strength,
        }

    @property
    def exchangeable(self) -> tuple[str, ...]:
        """Components of a finite mixture; those of a Dirichlet process come in the order of their sticks."""
        return () if self.nonparametric else ("component",)

    @property
    def ordered(self) -> bool:
        return self.nonparametric

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        weights = {"stick": ("piece",)} if self.nonparametric else {"weights": ("component",)}
        return weights | {site: ("component", *axes) for site, axes in self.emission.dims.items()}

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        return {"component": range(self.components)}

    def natural_prior(self, **points: Tensor) -> dict[str, Factor]:
        ones = torch.ones(self.components, dtype=torch.float64)
        if self.nonparametric:
            broken = {"log_one": ones[1:], "log_zero": self.concentration * ones[1:]}
            weights = Factor(Beta("stick"), broken)
        else:
            weights = Factor(Dirichlet("weights"), {"log_probability": self.concentration / self.components * ones})
        return {"weights": weights, "emission": Factor(self.emission.family, self.emission.prior(self.components))}

    def model(self, x: Float[Tensor, "N D"], *, u: Inputs = None, total: int | None = None) -> None:
        """p(theta, x): the parameters, then rows with their components summed out."""
        if u is not None:
            raise DataError("GMM: takes no inputs u, got some; leave them out (they would be ignored)")
        s = self.statistics()
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            rows = EmissionMixture(self._log_weights(s["weights"]), self.emission, s["emission"], len(x))
            pyro.sample("x", rows, obs=x)

    def _log_weights(self, s: Natural) -> Float[Tensor, " K"]:
        if not self.nonparametric:
            return s["log_probability"]
        pad = torch.nn.functional.pad
        return pad(s["log_one"], (0, 1)) + pad(s["log_zero"].cumsum(-1), (1, 0))

    @property
    def starts(self) -> tuple[str, ...]:
        return ("kmeans", "random")

    def guess(
        self, batches: Sequence[Tensor], inputs: Sequence[Inputs], start: str
    ) -> list[dict[str, Int[Tensor, " N"]]]:
        """Components ``z``: by ``"kmeans"``, or of the nearest of K rows far from each other (``"random"``).

        Distances are in standard deviations of the features, whatever their units. Missing entries are replaced by the
        mean of their feature, for the start only.
        """
        count = sum(map(len, batches))
        if count < self.components and not self.nonparametric:
            raise DataError(
                f"GMM: x must have at least as many rows as components ({self.components}), got {count}; ask for fewer"
            )
        if start not in self.starts:
            raise DataError(f'GMM: a start is "kmeans" or "random", got {start!r}')
        check_units("GMM", self.emission, batches, self.components)
        mean = _mean(batches)
        chosen = _filled(_some(batches, CLUSTERED), mean)
        spread = np.where(np.ptp(chosen, 0) > 0, chosen.std(0), 1.0)
        chosen = chosen / spread
        centers = _centers(chosen, min(self.components, len(np.unique(chosen, axis=0))), start)
        return [{"z": _nearest(_filled(x, mean) / spread, centers)} for x in batches]

    def check(self, x: Tensor) -> None:
        with in_name_of("GMM"):
            self.emission.check(x, ("row",))


def _mean(batches: Sequence[Tensor]) -> Float[Tensor, " D"]:
    """Mean of each feature, zero where it was never observed."""
    total = torch.stack([x.nansum(0) for x in batches]).sum(0)
    count = torch.stack([(~torch.isnan(x)).sum(0) for x in batches]).sum(0)
    return total / count.clamp_min(1)


def _some(batches: Sequence[Tensor], most: int) -> Float[Tensor, "n D"]:
    """At most so many of the rows of all batches, in random order."""
    ends = torch.tensor([0, *(len(x) for x in batches)]).cumsum(0)
    chosen = torch.randperm(int(ends[-1]))[:most]
    rows = batches[0].new_empty(len(chosen), batches[0].shape[1])
    for x, first in zip(batches, ends[:-1], strict=True):
        inside = (chosen >= first) & (chosen < first + len(x))
        rows[inside] = x[chosen[inside] - first]
    return rows


def _filled(x: Tensor, mean: Tensor) -> np.ndarray:
    return torch.where(torch.isnan(x), mean, x).numpy()


def _centers(rows: np.ndarray, components: int, start: str) -> np.ndarray:
    seed = int(torch.randint(2**31 - 1, ()))
    if start == "random":
        return np.asarray(kmeans_plusplus(rows, components, random_state=seed)[0])
    return np.asarray(KMeans(components, n_init=1, random_state=seed).fit(rows).cluster_centers_)


def _nearest(rows: np.ndarray, centers: np.ndarray) -> Int[Tensor, " N"]:
    distance = (centers**2).sum(1) - 2 * rows @ centers.T
    return torch.from_numpy(distance.argmin(1)).long()
