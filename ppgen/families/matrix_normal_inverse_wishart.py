r"""Matrix-normal inverse-Wishart over the coefficients and precision of a linear regression y = A r + e.

.. math:: \Lambda \sim \mathcal W(\nu, \Psi^{-1}), \qquad A \mid \Lambda \sim \mathcal{MN}(M, \Lambda^{-1}, V^{-1})

With base measure :math:`|\Lambda|^{(R - D - 1)/2}` the natural parameters are
:math:`\eta = (\Psi + M V M', \; M V, \; V, \; \nu)`, to which an observation adds
:math:`(y y', \; y r', \; r r', \; 1)`, and

.. math:: A(\eta) = \tfrac{\nu D}{2} \log 2 - \tfrac{\nu}{2} \log|\Psi| + \log\Gamma_D(\tfrac{\nu}{2})
    + \tfrac{DR}{2} \log 2\pi - \tfrac{D}{2} \log|V|.

One factorisation gives everything. The second moments of (y, r) together,

.. math:: J = \begin{pmatrix} \Psi + M V M' & M V \\ V M' & V \end{pmatrix} = U U', \qquad
    U^{-1} = \begin{pmatrix} S' & -S' M \\ 0 & U_V^{-1} \end{pmatrix},

with upper-triangular :math:`U`, hold :math:`S`, the lower Cholesky factor of the Wishart's scale :math:`\Psi^{-1}`, and
:math:`\Psi` is never formed by a subtraction.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions.constraints import Constraint, greater_than, independent, positive_definite, real

from ppgen.constants import LOG_2PI
from ppgen.distributions.matrix_normal import MatrixNormal
from ppgen.distributions.wishart import (
    WishartCholesky,
    cholesky,
    expected_log_det,
    inverse_lower,
    log_multivariate_gamma,
)
from ppgen.errors import DataError
from ppgen.families.family import (
    Family,
    Natural,
    Sampler,
    as_tensors,
    common_batch,
    require,
    require_positive_definite,
)

__all__ = ["MatrixNormalInverseWishart"]


@final
@dataclass(frozen=True)
class MatrixNormalInverseWishart(Family):
    """Coefficients (D, R) and lower Cholesky factor (D, D) of the precision of a regression on R regressors."""

    coefficients: str = "coefficients"
    precision_cholesky: str = "precision_cholesky"

    event_dims: ClassVar[Mapping[str, int]] = {"precision": 2, "linear": 2, "quadratic": 2, "log_det": 0}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the parameters: the precision's factor first, then the coefficients given it."""
        return (self.precision_cholesky, self.coefficients)

    def natural(
        self,
        *,
        location: Float[Tensor, "*#batch D R"],
        column_precision: Float[Tensor, "*#batch R R"],
        scale: Float[Tensor, "*#batch D D"],
        degrees: Tensor | float,
    ) -> Natural:
        """Natural parameters of W(degrees, scale⁻¹) times MN(location, Λ⁻¹, column_precision⁻¹)."""
        m, v, psi, nu = as_tensors(location, column_precision, scale, degrees)
        linear = m @ v
        outer = linear @ m.mT
        # Rounding leaves the product a little asymmetric.
        values = {"precision": psi + (outer + outer.mT) / 2, "linear": linear, "quadratic": v, "log_det": nu}
        return common_batch(values, self.event_dims)

    def named(self, eta: Natural) -> dict[str, Tensor]:
        """``location`` (D, R), ``column_precision`` (R, R), ``scale`` (D, D) and ``degrees``, batch dims first."""
        parts = factorise(eta)
        scale_root = inverse_lower(parts.scale_cholesky)
        return {
            "location": parts.location(),
            "column_precision": eta["quadratic"],
            "scale": scale_root.mT @ scale_root,
            "degrees": eta["log_det"],
        }

    def constraints(self, eta: Natural) -> Mapping[str, Constraint]:
        """Textbook parameter -> its constraint."""
        return {
            "location": independent(real, 2),
            "column_precision": positive_definite,
            "scale": positive_definite,
            "degrees": greater_than(eta["linear"].shape[-2] - 1.0),
        }

    def log_normalizer(self, eta: Natural) -> Float[Tensor, "*batch"]:
        """Log-normaliser; see the module's formula."""
        nu, (rows, columns) = eta["log_det"], eta["linear"].shape[-2:]
        log_diagonal = _joint_factor(eta).diagonal(dim1=-2, dim2=-1).log()
        half_log_det_scale, half_log_det_columns = log_diagonal[..., :rows].sum(-1), log_diagonal[..., rows:].sum(-1)
        wishart = nu * (rows / 2 * math.log(2) - half_log_det_scale) + log_multivariate_gamma(nu / 2, rows)
        return wishart + rows * (columns / 2 * LOG_2PI - half_log_det_columns)

    def expected(self, eta: Natural) -> Natural:
        """Expectations of -Λ/2, ΛA, -A'ΛA/2 and ½ log|Λ|."""
        parts, nu = factorise(eta), eta["log_det"]
        df = nu[..., None, None]
        spread = eta["linear"].shape[-2] * parts.column_root.mT @ parts.column_root
        return {
            "precision": -df / 2 * (parts.scale_cholesky @ parts.scale_cholesky.mT),
            "linear": df * (parts.scale_cholesky @ parts.whitened),
            "quadratic": -(spread + df * (parts.whitened.mT @ parts.whitened)) / 2,
            "log_det": expected_log_det(nu, parts.scale_cholesky) / 2,
        }

    def statistic(self, theta: Mapping[str, Tensor]) -> Natural:
        """-Λ/2, ΛA, -A'ΛA/2 and ½ log|Λ|."""
        factor = theta[self.precision_cholesky]
        whitened = factor.mT @ theta[self.coefficients]
        return {
            "precision": -(factor @ factor.mT) / 2,
            "linear": factor @ whitened,
            "quadratic": -(whitened.mT @ whitened) / 2,
            "log_det": factor.diagonal(dim1=-2, dim2=-1).log().sum(-1),
        }

    def draw(self, eta: Natural, sample: Sampler) -> dict[str, Tensor]:
        """Draw the precision's factor, then the coefficients given it."""
        parts, events = factorise(eta), self.batch_dims(eta)
        wishart = WishartCholesky(eta["log_det"], parts.scale_cholesky)
        factor = sample(self.precision_cholesky, wishart.to_event(events))
        matrix_normal = MatrixNormal(parts.location(), factor, cholesky(eta["quadratic"]))
        return {
            self.precision_cholesky: factor,
            self.coefficients: sample(self.coefficients, matrix_normal.to_event(events)),
        }

    def _check_proper(self, eta: Natural) -> None:
        check_regression(self._name, "column_precision", eta)


class Parts(NamedTuple):
    """Blocks of the inverse joint factor: S (D, D) lower, S'M (D, R), U_V⁻¹ (R, R) upper."""

    scale_cholesky: Tensor
    whitened: Tensor
    column_root: Tensor

    def location(self) -> Tensor:
        """M (*batch, D, R)."""
        return torch.linalg.solve_triangular(self.scale_cholesky.mT, self.whitened, upper=True)


def factorise(eta: Natural) -> Parts:
    """Factorise ``eta`` once; the blocks give every expectation and draw."""
    rows = eta["linear"].shape[-2]
    inverse = inverse_lower(_joint_factor(eta).mT).mT
    return Parts(inverse[..., :rows, :rows].mT, -inverse[..., :rows, rows:], inverse[..., rows:, rows:])


def check_regression(who: str, column_name: str, eta: Natural) -> None:
    """Raise `DataError` unless ``eta`` has fitting shapes, positive-definite V and Ψ, and degrees above D - 1."""
    rows, columns = eta["linear"].shape[-2:]
    shapes = (eta["precision"].shape[-2:], eta["quadratic"].shape[-2:])
    if shapes != ((rows, rows), (columns, columns)):
        raise DataError(
            f"{who}: precision and {column_name} must be {(rows, rows)} and {(columns, columns)} "
            f"beside linear {(rows, columns)}, got {tuple(shapes[0])} and {tuple(shapes[1])}"
        )
    require_positive_definite(who, column_name, eta["quadratic"])
    scale = eta["precision"] - eta["linear"] @ torch.linalg.solve(eta["quadratic"], eta["linear"].mT)
    require_positive_definite(who, "scale", scale)
    require(who, "degrees", eta["log_det"], eta["log_det"] > rows - 1, f"above {rows - 1} (D - 1)")


def _joint_factor(eta: Natural) -> Tensor:
    """Upper-triangular U with UU' the second moments of (y, r) together, (*batch, D + R, D + R)."""
    upper = torch.cat([eta["precision"], eta["linear"]], -1)
    lower = torch.cat([eta["linear"].mT, eta["quadratic"]], -1)
    # The lower factor of the reversed matrix, reversed back, is the upper one.
    return cholesky(torch.cat([upper, lower], -2).flip(-2, -1)).flip(-2, -1)
