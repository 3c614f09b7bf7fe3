r"""Gaussian emissions, full or diagonal covariance.

.. math::
    \Lambda_k \sim \mathcal W(\nu, \Psi^{-1}), \quad \mu_k \sim \mathcal N(0, (\kappa \Lambda_k)^{-1}), \quad
    x_t \mid z_t = k \sim \mathcal N(\mu_k, \Lambda_k^{-1})

and the same per feature with a gamma prior for ``covariance="diagonal"``. Missing dimensions are integrated out
exactly. Scale your features to about unit variance; the priors assume it. References: Bishop (2006), §2.3.6 and §10.2.
"""

from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppgen.emissions.completion import Completion
from ppgen.emissions.emission import Emission, rows_by_pattern
from ppgen.emissions.quadratic import LOG_2PI, coefficients, homogeneous, marginalize, pack_products, solve_spd
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.normal_gamma import NormalGamma
from ppgen.families.normal_inverse_wishart import NormalInverseWishart

__all__ = ["Gaussian"]


@final
class Gaussian(Emission):
    """Gaussian observations of ``features`` dimensions.

    Parameters
    ----------
    features : number of dimensions D.
    covariance : ``"full"`` (normal-inverse-Wishart prior) or ``"diagonal"`` (normal-gamma prior).
    scale : prior guess of the variance within a state, in squared units of ``x``.
    strength : how many observations the prior mean (zero) is worth.
    """

    prior_scales: ClassVar[tuple[str, ...]] = ("scale", "strength")

    def __init__(self, features: int, *, covariance: str = "full", scale: float = 1.0, strength: float = 0.1) -> None:
        if features < 1:
            raise DataError(f"Gaussian: features must be at least 1, got {features}")
        if covariance not in ("full", "diagonal"):
            raise DataError(f'Gaussian: covariance must be "full" or "diagonal", got {covariance!r}')
        if not (scale > 0 and strength > 0):
            raise DataError(f"Gaussian: scale and strength must be positive, got {scale} and {strength}")
        self.features, self.covariance, self.scale, self.strength = features, covariance, scale, strength
        self.family = NormalInverseWishart() if covariance == "full" else NormalGamma()

    @property
    def config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "covariance", "scale", "strength")}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        if self.covariance == "full":
            return {"location": ("feature",), "precision_cholesky": ("feature", "other_feature")}
        return {"location": ("feature",), "precision": ("feature",)}

    @property
    def prior_units(self) -> tuple[float, float]:
        return self.scale, self.strength

    def prior(self, states: int, **scales: Tensor) -> Natural:
        scale, strength = scales.get("scale", self.scale), scales.get("strength", self.strength)
        D, dtype = self.features, torch.float64
        location = torch.zeros(states, D, dtype=dtype)
        if self.covariance == "diagonal":
            ones = torch.ones(states, D, dtype=dtype)
            return self.family.natural(
                location=location, strength=strength * ones, shape=1.5 * ones, rate=0.5 * scale * ones
            )
        return self.family.natural(
            location=location,
            strength=strength * torch.ones(states, dtype=dtype),
            scale=scale * torch.eye(D, dtype=dtype).expand(states, D, D),
            degrees=torch.full((states,), D + 2.0, dtype=dtype),
        )

    def potential(self, x: Tensor, s: Natural, completion: Completion | None = None) -> Tensor:
        rows = x.reshape(-1, self.features)
        scores = self._diagonal(rows, s) if self.covariance == "diagonal" else self._full(rows, s)
        return scores.reshape(*x.shape[:-1], -1)

    def sample(self, s: Natural, z: Tensor) -> Tensor:
        x = torch.full((*z.shape, self.features), torch.nan, dtype=torch.float64, device=z.device)
        return self.fill(x, s, z)

    def fill(self, x: Tensor, s: Natural, z: Tensor) -> Tensor:
        rows, states = x.reshape(-1, self.features), z.reshape(-1)
        form = self._form(s)
        places, drawn = [], []
        for hidden, seen, index in rows_by_pattern(torch.isnan(rows)):
            if hidden:
                places.append(index[:, None] * self.features + torch.tensor(hidden, device=index.device))
                drawn.append(_conditional_draw(form, hidden, seen, rows[index], states[index]).flatten())
        if not places:
            return x.clone()
        where = torch.cat([place.flatten() for place in places])
        return rows.flatten().index_put((where,), torch.cat(drawn).to(rows)).reshape(x.shape)

    def _form(self, s: Natural) -> Tensor:
        """(K, D+1, D+1): the quadratic form over (x, 1)."""
        if self.covariance == "full":
            return homogeneous(s["precision"], s["linear"][..., None], s["quadratic"][..., None, None])
        precision, quadratic = torch.diag_embed(s["precision"]), s["quadratic"].sum(-1)[..., None, None]
        return homogeneous(precision, s["linear"][..., None], quadratic)

    def _diagonal(self, rows: Tensor, s: Natural) -> Tensor:
        """A missing dimension drops out: its factor is one."""
        seen, filled = (~torch.isnan(rows)).to(rows), torch.nan_to_num(rows)
        constant = s["quadratic"] + s["log_det"] - LOG_2PI / 2
        return torch.cat([filled**2, filled, seen], -1) @ torch.cat([s["precision"], s["linear"], constant], -1).mT

    def _full(self, rows: Tensor, s: Natural) -> Tensor:
        form, log_det = self._form(s), s["log_det"] - self.features * LOG_2PI / 2
        scores, order = [], []
        for hidden, seen, index in rows_by_pattern(torch.isnan(rows)):
            order.append(index)
            if not seen:
                scores.append(0 * log_det.expand(len(index), -1))
                continue
            w = torch.nn.functional.pad(rows[index][:, seen], (0, 1), value=1.0)
            reduced, constant = marginalize(form, hidden, [*seen, self.features])
            scores.append(pack_products(w) @ coefficients(reduced).mT + (log_det + constant))
        return torch.cat(scores)[torch.argsort(torch.cat(order))]


def _conditional_draw(form: Tensor, hidden: list[int], seen: list[int], rows: Tensor, states: Tensor) -> Tensor:
    """Draw the missing dimensions of rows that share a pattern, given the others and the states."""
    precision = -2 * form[:, hidden][:, :, hidden]
    regression, _ = solve_spd(precision, 2 * form[:, hidden][:, :, [*seen, rows.shape[-1]]])
    w = torch.nn.functional.pad(rows[:, seen], (0, 1), value=1.0)
    identity = torch.eye(len(hidden), dtype=rows.dtype, device=rows.device)
    root = torch.linalg.solve_triangular(torch.linalg.cholesky(precision).mT, identity, upper=True)
    noise = torch.randn(len(rows), len(hidden), dtype=rows.dtype, device=rows.device)
    return _apply(regression, states, w) + _apply(root, states, noise)


def _apply(matrices: Float[Tensor, "K m o"], states: Int[Tensor, " n"], vectors: Float[Tensor, "n o"]) -> Tensor:
    """Each vector times the matrix of its state, (n, m)."""
    return (matrices[states] * vectors[:, None, :]).sum(-1)
