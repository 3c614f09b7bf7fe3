r"""Gaussian vectors and matrices given by factors of their precisions.

.. math:: X \sim \mathcal{MN}(M, \Lambda^{-1}, V^{-1}), \qquad
    -2 \log p(X) = \mathrm{tr}(V (X - M)' \Lambda (X - M)) - R \log|\Lambda| - D \log|V| + DR \log 2\pi

with the rows' precision :math:`\Lambda = LL'` (D, D) and the columns' precision :math:`V = FF'` (R, R). Both are used
as they come: no matrix is inverted or factorised.
"""

from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppgen.constants import LOG_2PI
from ppgen.distributions.shape import Shape

__all__ = ["MatrixNormal", "PrecisionNormal"]


class MatrixNormal(TorchDistribution):
    """Gaussian over matrices, event (D, R).

    Parameters
    ----------
    location : mean M (*batch, D, R).
    row_precision_cholesky : lower Cholesky factor (*batch, D, D) of the rows' precision.
    column_precision_cholesky : lower Cholesky factor (*batch, R, R) of the columns' precision.
    """

    arg_constraints = {
        "location": constraints.independent(constraints.real, 2),
        "row_precision_cholesky": constraints.lower_cholesky,
        "column_precision_cholesky": constraints.lower_cholesky,
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        location: Float[Tensor, "*#batch D R"],
        row_precision_cholesky: Float[Tensor, "*#batch D D"],
        column_precision_cholesky: Float[Tensor, "*#batch R R"],
        validate_args: bool | None = None,
    ) -> None:
        parts = (location, row_precision_cholesky, column_precision_cholesky)
        batch = torch.broadcast_shapes(*(part.shape[:-2] for part in parts))
        expanded = [part.expand(*batch, *part.shape[-2:]) for part in parts]
        self.location, self.row_precision_cholesky, self.column_precision_cholesky = expanded
        super().__init__(batch, location.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "MatrixNormal":  # noqa: ANN401
        """Expand to a larger batch shape."""
        location = self.location.expand(*batch_shape, *self.event_shape)
        factors = self.row_precision_cholesky, self.column_precision_cholesky
        rows, columns = (factor.expand(*batch_shape, *factor.shape[-2:]) for factor in factors)
        return MatrixNormal(location, rows, columns, validate_args=False)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """M + L'⁻¹ Z F⁻¹ with standard normal Z."""
        like = self.location
        noise = torch.randn(self._extended_shape(sample_shape), dtype=like.dtype, device=like.device)
        noise = torch.linalg.solve_triangular(self.row_precision_cholesky.mT, noise, upper=True)
        return like + torch.linalg.solve_triangular(self.column_precision_cholesky, noise, upper=False, left=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        rows, columns = self.event_shape
        whitened = self.row_precision_cholesky.mT @ (value - self.location) @ self.column_precision_cholesky
        log_det = columns * _log_det(self.row_precision_cholesky) + rows * _log_det(self.column_precision_cholesky)
        return log_det - (whitened.square().sum((-2, -1)) + rows * columns * LOG_2PI) / 2

    @property
    def mean(self) -> Tensor:
        """Mean, (*batch, D, R)."""
        return self.location

    @property
    def variance(self) -> Tensor:
        """Variance of every entry, (*batch, D, R)."""
        rows, columns = (
            torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
            for factor in (self.row_precision_cholesky, self.column_precision_cholesky)
        )
        return rows[..., :, None] * columns[..., None, :]


class PrecisionNormal(TorchDistribution):
    """Gaussian over vectors, event (D,), with precision ``strength * LL'``.

    Parameters
    ----------
    location : mean (*batch, D).
    precision_cholesky : lower Cholesky factor L (*batch, D, D).
    strength : positive multiplier of the precision; batch shape.
    """

    arg_constraints = {
        "location": constraints.real_vector,
        "precision_cholesky": constraints.lower_cholesky,
        "strength": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        location: Float[Tensor, "*#batch D"],
        precision_cholesky: Float[Tensor, "*#batch D D"],
        strength: Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        strength = torch.as_tensor(strength, dtype=location.dtype, device=location.device)
        batch = torch.broadcast_shapes(location.shape[:-1], precision_cholesky.shape[:-2], strength.shape)
        self.location = location.expand(*batch, -1)
        self.precision_cholesky = precision_cholesky.expand(*batch, -1, -1)
        self.strength = strength.expand(batch)
        super().__init__(batch, location.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "PrecisionNormal":  # noqa: ANN401
        """Expand to a larger batch shape."""
        size = self.event_shape[0]
        location = self.location.expand(*batch_shape, size)
        factor = self.precision_cholesky.expand(*batch_shape, size, size)
        return PrecisionNormal(location, factor, self.strength.expand(batch_shape), validate_args=False)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Location plus L'⁻¹ z / √strength with standard normal z."""
        return self._matrix().rsample(sample_shape)[..., 0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        return self._matrix().log_prob(value[..., None])

    @property
    def mean(self) -> Tensor:
        """Mean, (*batch, D)."""
        return self.location

    @property
    def variance(self) -> Tensor:
        """Variance of every entry, (*batch, D)."""
        return self._matrix().variance[..., 0]

    def _matrix(self) -> MatrixNormal:
        """Express the same density over matrices of one column."""
        strength_root = self.strength.sqrt()[..., None, None]
        return MatrixNormal(self.location[..., None], self.precision_cholesky, strength_root, validate_args=False)


def _log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
