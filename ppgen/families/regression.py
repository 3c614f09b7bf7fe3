r"""Conjugate linear regression of outputs on known or latent regressors, from second moments.

.. math:: y = A r + e, \quad e \sim \mathcal N(0, \Lambda^{-1})

with a matrix-normal inverse-Wishart prior on :math:`(A, \Lambda)` together (``"full"``), one for each output
(``"diagonal"``), or a matrix-normal gamma prior with one precision for all outputs (``"spherical"``). The log density
is linear in :math:`(y y', y r', r r')`, so expectations of these serve where y or r are latent.

References: Beal (2003), §5; Bishop (2006), §3.3.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.errors import DataError
from ppgen.families.family import Factor, Natural
from ppgen.families.matrix_normal_gamma import MatrixNormalGamma
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart

__all__ = ["OF_ONE", "Regression"]

DEGREES = 3.0  # of the prior of a precision: the mean of the variance is then the prior guess
OF_ONE = ("row_of_one", "column_of_one")  # axes of a regression for each output, always of length one


@final
class Regression:
    """``outputs`` numbers D on ``regressors`` numbers R, the parameters drawn at sites that begin with ``site``.

    Parameters
    ----------
    outputs, regressors : D and R.
    site : the coefficients are called so, the factor of the precision ``<site>_precision_cholesky``,
        or one precision of all outputs ``<site>_precision``.
    covariance : ``"full"``, ``"diagonal"`` or ``"spherical"``, of the residuals.
    noise : prior guess of their variance.
    strength : prior precision of the coefficients, in units of the precision of the residuals.
    walk : if true, the prior mean of the coefficients is the identity instead of zero.
    states : number K of regressions, one for each state; None for one alone, without that axis.
    """

    def __init__(
        self,
        outputs: int,
        regressors: int,
        site: str,
        covariance: str = "full",
        *,
        noise: float = 1.0,
        strength: float = 1.0,
        walk: bool = False,
        states: int | None = None,
    ) -> None:
        if covariance not in ("full", "diagonal", "spherical"):
            raise DataError(f'Regression: covariance must be "full", "diagonal" or "spherical", got {covariance!r}')
        self.outputs, self.regressors, self.full = outputs, regressors, covariance == "full"
        self.noise, self.strength, self.walk, self.states = noise, strength, walk, states
        self.spherical = covariance == "spherical"
        self.family = (
            MatrixNormalGamma(site, f"{site}_precision")
            if self.spherical
            else MatrixNormalInverseWishart(site, f"{site}_precision_cholesky")
        )

    def prior(self, relevance: Float[Tensor, " R"] | None = None) -> Factor:
        """The prior of the parameters; ``relevance`` is a strength for each regressor instead of one for all."""
        D, R = self.outputs, self.regressors
        size = D if self.full else 1
        batch = () if self.full else (D,)
        mean = torch.eye(D, R, dtype=torch.float64) * float(self.walk)
        eye = torch.eye(max(size, R), dtype=torch.float64)
        strength = self.strength * eye[:R, :R] if relevance is None else torch.diag(relevance)
        location, strength = mean if self.full else mean[:, None], strength.expand(*batch, R, R)
        if isinstance(self.family, MatrixNormalGamma):
            eta = self.family.natural(
                location=location, column_precision=strength, shape=DEGREES / 2, rate=self.noise / 2
            )
        else:
            eta = self.family.natural(
                location=location,
                column_precision=strength,
                scale=(self.noise * eye[:size, :size]).expand(*batch, size, size),
                degrees=torch.full(batch, size - 1 + DEGREES, dtype=torch.float64),
            )
        if self.states is not None:
            eta = {name: value.expand(self.states, *value.shape).clone() for name, value in eta.items()}
        return Factor(self.family, eta)

    def dims(self, output: str, regressor: str) -> dict[str, tuple[str, ...]]:
        """Site -> its axes, for the names of the axes of outputs and regressors."""
        precision, coefficients = self.family.sites
        found: dict[str, tuple[str, ...]] = {coefficients: (output, regressor), precision: (output, f"other_{output}")}
        if not self.full:
            alone = () if self.spherical else (output, *OF_ONE)
            found = {coefficients: (output, OF_ONE[0], regressor), precision: alone}
        states = () if self.states is None else ("state",)
        return {site: (*states, *axes) for site, axes in found.items()}

    def each(self, s: Natural) -> Natural:
        """Statistics laid out as those of one regression for each output, where they are not of all together."""
        if not self.spherical:
            return s
        log_det = s["log_det"][..., None].expand(*s["log_det"].shape, self.outputs)
        precision = s["precision"][..., None, None, None].expand(*log_det.shape, 1, 1)
        return {**s, "precision": precision, "log_det": log_det}

    def form(self, s: Natural) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log density as ``<P, yy'> + <L, yr'> + <Q, rr'> + c``: P (D, D), L (D, R), Q (R, R) and c, of each state."""
        if self.full:
            constant = s["log_det"] - self.outputs / 2 * LOG_2PI
            return s["precision"], s["linear"], s["quadratic"], constant
        s = self.each(s)
        constant = s["log_det"].sum(-1) - self.outputs / 2 * LOG_2PI
        return torch.diag_embed(s["precision"][..., 0, 0]), s["linear"][..., 0, :], s["quadratic"].sum(-3), constant

    def mean_and_precision(self, s: Natural) -> tuple[Float[Tensor, "*K D R"], Float[Tensor, "*K D D"]]:
        """Coefficients A and precision of the residuals that the statistics stand for."""
        s = self.each(s)
        precision = -2 * s["precision"]
        coefficients = torch.linalg.solve(precision, s["linear"])
        if self.full:
            return coefficients, precision
        return coefficients[..., 0, :], torch.diag_embed(precision[..., 0, 0])
