r"""Gaussian observations whose means are linear in inputs: a regression in each state.

.. math:: x_t \mid z_t = k \sim \mathcal N(A_k [u_t; 1],\; \Lambda_k^{-1})

with a matrix-normal inverse-Wishart prior in each state, of all features together or of each by itself. Missing
features are integrated out exactly. Reference: Bishop (2006), §3.3 and §14.5.1.
"""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ppgen.constants import LOG_2PI
from ppgen.emissions.emission import Emission
from ppgen.emissions.frames import Frames
from ppgen.emissions.hidden import hidden_draw, hidden_normalizer
from ppgen.emissions.quadratic import homogeneous, scores
from ppgen.errors import DataError
from ppgen.families.family import Natural
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart
from ppgen.families.regression import Regression

__all__ = ["DrivenGaussian"]


@final
class DrivenGaussian(Emission):
    """Regression of ``features`` D on ``inputs`` U and a one; :meth:`at` gives it their values.

    Parameters
    ----------
    features, inputs : D and U.
    covariance : ``"full"`` or ``"diagonal"``, of the residuals.
    noise : prior guess of their variance, in squared units of ``x``.
    strength : prior precision of the coefficients, in units of the precision of the residuals.
    """

    def __init__(
        self, features: int, inputs: int, *, covariance: str = "full", noise: float = 1.0, strength: float = 0.1
    ) -> None:
        if features < 1 or inputs < 1:
            raise DataError(f"DrivenGaussian: features and inputs must be at least 1, got {features} and {inputs}")
        if covariance not in ("full", "diagonal"):
            raise DataError(f'DrivenGaussian: covariance must be "full" or "diagonal", got {covariance!r}')
        if not (noise > 0 and strength > 0):
            raise DataError(f"DrivenGaussian: noise and strength must be positive, got {noise} and {strength}")
        self.features, self.inputs, self.covariance = features, inputs, covariance
        self.noise, self.strength = noise, strength
        self.family = self._regression(None).family
        self.known: Tensor | None = None

    def _regression(self, states: int | None) -> Regression:
        given = {"noise": self.noise, "strength": self.strength, "states": states}
        made = Regression(self.features, self.inputs + 1, "coefficients", self.covariance, **given)  # type: ignore[arg-type]
        made.family = MatrixNormalInverseWishart()
        return made

    @property
    def config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("features", "inputs", "covariance", "noise", "strength")}

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        return self._regression(None).dims("feature", "regressor")

    @property
    def apart(self) -> bool:
        return self.covariance == "diagonal"

    def prior(self, states: int, **scales: Tensor) -> Natural:
        return self._regression(states).prior().eta

    def at(self, u: Float[Tensor, "N *T U"]) -> "DrivenGaussian":
        """The same emission with the inputs of every step, and of steps to forecast; or (N, U) that stay the same."""
        found = DrivenGaussian(**self.config)
        found.known = u.to(torch.float64)
        return found

    def potential(self, x: Float[Tensor, "N T D"], s: Natural, frames: Frames | None = None) -> Float[Tensor, "N T K"]:
        inputs = self._inputs(x.shape[0], x.shape[1])
        if self.covariance == "diagonal":
            return self._apart(x, pad(inputs, (0, 1), value=1.0), s)
        rows = torch.cat([x, inputs], -1).flatten(0, 1)
        form = homogeneous(s["precision"], s["linear"], s["quadratic"])
        filled = pad(torch.nan_to_num(rows), (0, 1), value=1.0)
        total = scores(filled, form) + s["log_det"] - self.features * LOG_2PI / 2 + hidden_normalizer(rows, form)
        return torch.where(torch.isnan(x).all(-1, keepdim=True), 0.0, total.reshape(*x.shape[:2], -1))

    def _apart(self, x: Tensor, r: Float[Tensor, "N T R"], s: Natural) -> Tensor:
        """A missing feature drops out: its factor is one."""
        seen, value = (~torch.isnan(x)).to(r), torch.nan_to_num(x)
        outer = r[..., :, None] * r[..., None, :]
        square = torch.einsum("ntd,kd->ntk", value.square(), s["precision"][..., 0, 0])
        cross = torch.einsum("ntd,ntr,kdr->ntk", value, r, s["linear"][..., 0, :])
        rest = torch.einsum("ntd,ntrq,kdrq->ntk", seen, outer, s["quadratic"])
        return square + cross + rest + seen @ (s["log_det"] - LOG_2PI / 2).mT

    def sample(self, s: Natural, z: Int[Tensor, "N T"]) -> Float[Tensor, "N T D"]:
        return self._drawn(s, z, self._inputs(z.shape[0], z.shape[1]))

    def extend(self, past: Tensor, s: Natural, z: Int[Tensor, "N H"], lengths: Int[Tensor, " N"]) -> Tensor:
        known, (N, H) = self._inputs(len(past), past.shape[1] + z.shape[1]), z.shape
        ahead = lengths[:, None] + torch.arange(H, device=z.device)
        return self._drawn(s, z, known[torch.arange(N, device=z.device)[:, None], ahead])

    def fill(self, x: Float[Tensor, "N T D"], s: Natural, z: Int[Tensor, "N T"]) -> Float[Tensor, "N T D"]:
        if self.covariance == "diagonal":
            return torch.where(torch.isnan(x), self.sample(s, z), x)
        rows = torch.cat([x, self._inputs(x.shape[0], x.shape[1])], -1).flatten(0, 1)
        form = homogeneous(s["precision"], s["linear"], s["quadratic"])
        return hidden_draw(rows, form, z.flatten())[:, : self.features].reshape(x.shape)

    def _drawn(self, s: Natural, z: Tensor, inputs: Tensor) -> Tensor:
        coefficients, precision = self._regression(len(s["linear"])).mean_and_precision(s)
        root = torch.linalg.cholesky(precision).mT[z]
        noise = torch.linalg.solve_triangular(root, torch.randn(*z.shape, self.features, 1).to(root), upper=True)
        return (coefficients[z] @ pad(inputs, (0, 1), value=1.0)[..., None] + noise)[..., 0]

    def _inputs(self, rows: int, steps: int) -> Float[Tensor, "N T U"]:
        """Inputs of so many rows (each again, where data are replicated) and steps."""
        known = self.known
        if known is None or (known.ndim == 3 and known.shape[1] < steps):
            raise DataError(
                f"HMM: inputs must have a row for each step, and for each step ahead of a forecast, {steps}, got "
                f"{'none' if known is None else known.shape[1]}; pass u with so many steps"
            )
        known = known[:, :steps] if known.ndim == 3 else known[:, None].expand(-1, steps, -1)
        return known.repeat(rows // len(known), 1, 1)
