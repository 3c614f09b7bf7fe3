r"""The Wishart distribution, carried by its lower Cholesky factor.

.. math:: \Lambda = L L' \sim \mathcal W(\nu, V), \qquad
    p(L) = \mathcal W(LL' \mid \nu, V) \; 2^D \textstyle\prod_{i=1}^{D} L_{ii}^{D - i + 1}

torch has no bijection onto positive-definite matrices, and every use of a precision needs its factor.

References: Bartlett (1933) for sampling; Muirhead (1982), theorem 2.1.9, for the Jacobian.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, constraints

from ppgen.distributions.cholesky_factor import lower_cholesky_factor
from ppgen.distributions.shape import Shape

__all__ = ["WishartCholesky", "cholesky", "expected_log_det", "inverse_lower", "log_multivariate_gamma"]


class WishartCholesky(TorchDistribution):
    """Lower Cholesky factor of a Wishart matrix.

    Parameters
    ----------
    df : degrees of freedom, above D - 1; batch shape.
    scale_cholesky : lower Cholesky factor (*batch, D, D) of the scale V; the Wishart's mean is ``df * V``.
    """

    support = lower_cholesky_factor
    has_rsample = True

    def __init__(
        self, df: Tensor | float, scale_cholesky: Float[Tensor, "*batch D D"], validate_args: bool | None = None
    ) -> None:
        df = torch.as_tensor(df, dtype=scale_cholesky.dtype, device=scale_cholesky.device)
        batch = torch.broadcast_shapes(df.shape, scale_cholesky.shape[:-2])
        self.df = df.expand(batch)
        self.scale_cholesky = scale_cholesky.expand(*batch, *scale_cholesky.shape[-2:])
        super().__init__(batch, scale_cholesky.shape[-2:], validate_args=validate_args)

    @property
    def arg_constraints(self) -> dict[str, constraints.Constraint]:
        """Degrees above D - 1 and a lower Cholesky factor."""
        return {"df": constraints.greater_than(self._event_shape[-1] - 1), "scale_cholesky": constraints.lower_cholesky}

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "WishartCholesky":  # noqa: ANN401
        """Expand to a larger batch shape."""
        scale = self.scale_cholesky.expand(*batch_shape, *self.event_shape)
        return WishartCholesky(self.df.expand(batch_shape), scale, validate_args=False)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Bartlett's decomposition: chi variables on the diagonal, normals below, times the scale's factor."""
        shape = self._extended_shape(sample_shape)
        halves = self._halves()
        gamma = Gamma(halves, torch.ones_like(halves), validate_args=False).rsample(sample_shape)
        normal = torch.randn(shape, dtype=self.df.dtype, device=self.df.device)
        return self.scale_cholesky @ (normal.tril(-1) + torch.diag_embed((2 * gamma).sqrt()))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density with respect to the entries on and below the diagonal."""
        if self._validate_args:
            self._validate_sample(value)
        size = self.event_shape[-1]
        whitened = torch.linalg.solve_triangular(self.scale_cholesky, value, upper=False)
        log_diagonal = _diagonal(value).log()
        log_normalizer = (
            self.df * (size / 2 * math.log(2) + _diagonal(self.scale_cholesky).log().sum(-1))
            + log_multivariate_gamma(self.df / 2, size)
            - size * math.log(2)
        )
        # (df - D - 1) log|L| from the Wishart and D - i + 1 from the Jacobian: df - i for i = 1 ... D.
        powers = self.df[..., None] - torch.arange(1, size + 1, dtype=self.df.dtype, device=self.df.device)
        return (powers * log_diagonal).sum(-1) - whitened.square().sum((-2, -1)) / 2 - log_normalizer

    @property
    def mean(self) -> Tensor:
        """Mean of the factor (not the factor of the mean)."""
        halves = self._halves()
        chi = math.sqrt(2) * (torch.lgamma(halves + 0.5) - torch.lgamma(halves)).exp()
        return self.scale_cholesky * chi[..., None, :]

    def _halves(self) -> Tensor:
        return _halves(self.df / 2, self.event_shape[-1])


def cholesky(matrix: Float[Tensor, "*batch D D"]) -> Float[Tensor, "*batch D D"]:
    """Lower Cholesky factor of the symmetric part; NaN for a matrix that is not positive definite.

    It never raises and never waits for the device: one bad matrix does not spoil a batch, and a NaN cannot pass unseen
    as the unfinished factor that LAPACK leaves behind would.
    """
    factor, info = torch.linalg.cholesky_ex((matrix + matrix.mT) / 2)
    return torch.where((info > 0)[..., None, None], torch.nan, factor)


def inverse_lower(factor: Float[Tensor, "*batch D D"]) -> Float[Tensor, "*batch D D"]:
    """Inverse of a lower-triangular matrix."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    # Not every device's solver leaves exact zeros above the diagonal.
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False).tril()


def log_multivariate_gamma(half_df: Float[Tensor, "*batch"], size: int) -> Float[Tensor, "*batch"]:
    """Log of the multivariate gamma function Γ_D; NaN or infinite outside its domain, never an error."""
    return torch.lgamma(_halves(half_df, size)).sum(-1) + size * (size - 1) / 4 * math.log(math.pi)


def expected_log_det(
    df: Float[Tensor, "*batch"], scale_cholesky: Float[Tensor, "*batch D D"]
) -> Float[Tensor, "*batch"]:
    """E[log|Λ|] of the Wishart."""
    size = scale_cholesky.shape[-1]
    log_det_scale = 2 * _diagonal(scale_cholesky).log().sum(-1)
    return torch.digamma(_halves(df / 2, size)).sum(-1) + size * math.log(2) + log_det_scale


def _halves(half_df: Tensor, size: int) -> Tensor:
    """Half the degrees of freedom of each Bartlett diagonal, (*batch, D)."""
    return half_df[..., None] - torch.arange(size, dtype=half_df.dtype, device=half_df.device) / 2


def _diagonal(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1)
