r"""Gaussian emissions, full, diagonal or spherical covariance.

.. math::
    \Lambda_k \sim \mathcal W(\nu, \Psi^{-1}), \quad \mu_k \sim \mathcal N(0, (\kappa \Lambda_k)^{-1}), \quad
    x_t \mid z_t = k \sim \mathcal N(\mu_k, \Lambda_k^{-1})

and the same per feature with a gamma prior for ``covariance="diagonal"``, or with one precision for all features of a
state for ``"spherical"``. Missing dimensions are integrated out exactly, each row its own. Scale your features to about
unit variance; the priors assume it. References: Bishop (2006), §2.3.6 and §10.2.
"""

from typing import Any, ClassVar, final

import torch
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.emissions.emission import Emission, distinct_patterns, holds_somewhere
from ppgen.emissions.frames import Frames
from ppgen.emissions.hidden import hidden_draw, hidden_normalizer
from ppgen.emissions.quadratic import homogeneous, marginalize, scores, solve_spd
from ppgen.errors import DataError
from ppgen.families.family import Family, Natural
from ppgen.families.normal_gamma import NormalGamma, SphericalNormalGamma
from ppgen.families.normal_inverse_wishart import NormalInverseWishart

__all__ = ["Gaussian"]

FAMILIES: dict[str, type[Family]] = {
    "full": NormalInverseWishart,
    "diagonal": NormalGamma,
    "spherical": SphericalNormalGamma,
}

ROWS_PER_PATTERN = 256  # with so many on average, a form for each pattern is quicker than an integral for each row


@final
class Gaussian(Emission):
    """Gaussian observations of ``features`` dimensions.

    Parameters
    ----------
    features : number of dimensions D.
    covariance : ``"full"`` (normal-inverse-Wishart prior), ``"diagonal"`` (normal-gamma prior) or ``"spherical"`` (one
        precision for all features of a state).
    scale : prior guess of the variance within a state, in squared units of ``x``.
    strength : number of observations that the prior mean (zero) is worth.
    """

    prior_scales: ClassVar[tuple[str, ...]] = ("scale", "strength")

    def __init__(self, features: int, *, covariance: str = "full", scale: float = 1.0, strength: float = 0.1) -> None:
        if features < 1:
            raise DataError(f"Gaussian: features must be at least 1, got {features}")
        if covariance not in FAMILIES:
            raise DataError(f'Gaussian: covariance must be "full", "diagonal" or "spherical", got {covariance!r}')
        if not (scale > 0 and strength > 0):
            raise DataError(f"Gaussian: scale and strength must be positive, got {scale} and {strength}")
        self.features, self.covariance, self.scale, self.strength = features, covariance, scale, strength
        self.family = FAMILIES[covariance]()

    @property
    def config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "covariance", "scale", "strength")}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        if self.covariance == "full":
            return {"location": ("feature",), "precision_cholesky": ("feature", "other_feature")}
        return {"location": ("feature",), "precision": ("feature",) if self.covariance == "diagonal" else ()}

    @property
    def prior_units(self) -> tuple[float, float]:
        return self.scale, self.strength

    @property
    def apart(self) -> bool:
        return self.covariance != "full"

    def prior(self, states: int, **scales: Tensor) -> Natural:
        scale, strength = scales.get("scale", self.scale), scales.get("strength", self.strength)
        D, dtype = self.features, torch.float64
        location = torch.zeros(states, D, dtype=dtype)
        if self.covariance != "full":
            ones = torch.ones(location.shape if self.covariance == "diagonal" else (states,), dtype=dtype)
            each = strength * torch.ones_like(location)
            return self.family.natural(location=location, strength=each, shape=1.5 * ones, rate=0.5 * scale * ones)
        return self.family.natural(
            location=location,
            strength=strength * torch.ones(states, dtype=dtype),
            scale=scale * torch.eye(D, dtype=dtype).expand(states, D, D),
            degrees=torch.full((states,), D + 2.0, dtype=dtype),
        )

    def potential(self, x: Tensor, s: Natural, frames: Frames | None = None) -> Tensor:
        rows = x.reshape(-1, self.features)
        score = {"full": self._full, "diagonal": self._diagonal, "spherical": self._spherical}[self.covariance]
        return score(rows, s).reshape(*x.shape[:-1], -1)

    def sample(self, s: Natural, z: Tensor) -> Tensor:
        noise = torch.randn(*z.shape, self.features, dtype=s["linear"].dtype, device=z.device)
        if self.covariance != "full":
            precision = -2 * (s["precision"] if self.covariance == "diagonal" else s["precision"][:, None])
            return (s["linear"] / precision)[z] + precision.rsqrt().expand_as(s["linear"])[z] * noise
        precision = -2 * s["precision"]
        mean, _ = solve_spd(precision, s["linear"][..., None])
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        return mean[..., 0][z] + (root[z] * noise[..., None, :]).sum(-1)

    def fill(self, x: Tensor, s: Natural, z: Tensor) -> Tensor:
        if self.covariance != "full":
            return torch.where(torch.isnan(x), self.sample(s, z).to(x), x)
        if holds_somewhere(torch.isnan(x)) is False:
            return x.clone()
        return hidden_draw(x.reshape(-1, self.features), self._form(s), z.reshape(-1)).reshape(x.shape)

    def _form(self, s: Natural) -> Tensor:
        """(K, D+1, D+1): the quadratic form over (x, 1)."""
        return homogeneous(s["precision"], s["linear"][..., None], s["quadratic"][..., None, None])

    def _diagonal(self, rows: Tensor, s: Natural) -> Tensor:
        """A missing dimension drops out: its factor is one."""
        seen, filled = (~torch.isnan(rows)).to(rows), torch.nan_to_num(rows)
        constant = s["quadratic"] + s["log_det"] - LOG_2PI / 2
        return torch.cat([filled**2, filled, seen], -1) @ torch.cat([s["precision"], s["linear"], constant], -1).mT

    def _spherical(self, rows: Tensor, s: Natural) -> Tensor:
        """As with a diagonal, but squares are summed before they meet their common precision."""
        seen, filled = (~torch.isnan(rows)).to(rows), torch.nan_to_num(rows)
        constant = s["quadratic"] + s["log_det"][..., None] - LOG_2PI / 2
        squares = filled.square().sum(-1, keepdim=True)
        return (
            torch.cat([squares, filled, seen], -1)
            @ torch.cat([s["precision"][..., None], s["linear"], constant], -1).mT
        )

    def _full(self, rows: Tensor, s: Natural) -> Tensor:
        """One product with the packed form, and what the integral over hidden features adds to it."""
        form, log_det = self._form(s), s["log_det"] - self.features * LOG_2PI / 2
        hides = torch.isnan(rows)
        somewhere = holds_somewhere(hides)
        if somewhere:
            patterns, inverse = distinct_patterns(hides)
            if len(patterns) * ROWS_PER_PATTERN <= len(rows):
                return _by_pattern(rows, form, log_det, patterns, inverse)
        filled = torch.nn.functional.pad(torch.where(hides, 0.0, rows), (0, 1), value=1.0)
        total = scores(filled, form) + log_det
        if somewhere is False:
            return total
        return torch.where(hides.all(-1, keepdim=True), 0.0, total + hidden_normalizer(rows, form))


def _by_pattern(rows: Tensor, form: Tensor, log_det: Tensor, patterns: Tensor, inverse: Tensor) -> Tensor:
    """Scores where few patterns have many rows each: one reduced form a pattern."""
    reduced, constant = marginalize(form, patterns)
    order = torch.argsort(inverse, stable=True)
    groups = rows[order].split(torch.bincount(inverse, minlength=len(patterns)).tolist())
    found = []
    for group, pattern, one, offset in zip(groups, patterns, reduced, constant + log_det, strict=True):
        seen = (~pattern).nonzero()[:, 0]
        kept = torch.nn.functional.pad(seen, (0, 1), value=len(pattern))
        whole = torch.nn.functional.pad(group[:, seen], (0, 1), value=1.0)
        score = scores(whole, one[:, kept[:, None], kept]) + offset
        found.append(score if len(seen) else 0 * score)
    return torch.cat(found)[torch.argsort(order)]
