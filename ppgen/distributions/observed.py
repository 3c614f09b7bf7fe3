r"""Distributions of independent entries, and multivariate normals and Student's t, whose observed values may hold NaN.

``pyro.sample("y", observed(dist.Normal(mu, 1.0)), obs=y)`` scores what was seen of ``y``. For independent entries the
factor of a NaN is one. For a vector :math:`x \sim \mathcal N(\mu, \Sigma)` with the entries O seen it is the marginal
:math:`\mathcal N(x_O; \mu_O, \Sigma_{OO})`, and of Student's t the same with its degrees of freedom. Rows and columns
of what is missing are pinned to those of the identity, so that one batch of factorisations serves every pattern, and a
traced graph is right for other patterns than that at which it was traced.

References: Little & Rubin (2019) for factors that are one; Ding (2016) for the conditional Student's t.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, final

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions import MaskedDistribution, TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppgen.constants import LOG_2PI
from ppgen.distributions.shape import Shape
from ppgen.errors import DataError

__all__ = ["observed"]


def observed(distribution: Any) -> Any:  # noqa: ANN401 (Pyro's distributions have no common class that types know)
    """The same distribution, whose observed values may hold NaN.

    Parameters
    ----------
    distribution : one of independent entries, also made by ``to_event``, ``expand`` or ``mask``; or a
        ``MultivariateNormal``, ``LowRankMultivariateNormal`` or ``MultivariateStudentT``. One that takes NaN already
        comes back as it is.

    Returns
    -------
    A distribution of the same shapes, support and draws. ``impute(value)`` fills the NaN of a value by a draw given the
    rest of it.

    Raises
    ------
    DataError : another joint distribution (a multinomial, a Dirichlet), for which no marginal of some entries is known.
    """
    if hasattr(distribution, "impute"):
        return distribution
    if isinstance(distribution, torch.distributions.Independent):
        return observed(distribution.base_dist).to_event(distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, MaskedDistribution):
        return observed(distribution.base_dist).mask(distribution._mask)
    if isinstance(distribution, ExpandedDistribution):
        return observed(distribution.base_dist).expand(distribution.batch_shape)
    if isinstance(distribution, torch.distributions.Distribution):
        if not distribution.event_shape:
            return _Independent(distribution)
        if isinstance(distribution, NORMAL | dist.MultivariateStudentT):
            return _Joint(distribution)
    raise DataError(
        "observed: the distribution must be of independent entries, or a MultivariateNormal or MultivariateStudentT, "
        f"got {type(distribution).__name__}, whose density of some entries is not known; drop the events that are not "
        "whole, or write the distribution with `log_prob(x)` and `impute(x)` of its own"
    )


class _Observed(TorchDistribution, ABC):
    """Everything but the density, which is that of the distribution inside."""

    arg_constraints = {}  # noqa: RUF012 (torch's name)

    def __init__(self, base: Any) -> None:  # noqa: ANN401 (a distribution)
        self.base = base
        self.has_rsample, self.has_enumerate_support = base.has_rsample, base.has_enumerate_support
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:  # noqa: ANN401 (a constraint)
        return self.base.support

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        return self.base.variance

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base.enumerate_support(expand=expand)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "_Observed":
        return type(self)(self.base.expand(torch.Size(batch_shape)))

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the observed part of each event."""

    @abstractmethod
    def impute(self, value: Tensor) -> Tensor:
        """``value`` with each NaN drawn given the rest of its event."""


@final
class _Independent(_Observed):
    """Entries that are events of their own."""

    def log_prob(self, value: Tensor) -> Tensor:
        seen = ~torch.isnan(value)
        found: Tensor = self.base.log_prob(torch.where(seen, value, _inside(self.base).to(value)))
        return torch.where(seen, found, 0.0)

    def impute(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        return torch.where(torch.isnan(value), self.base.expand(shape).sample().to(value), value)


@final
class _Joint(_Observed):
    """A multivariate normal, or Student's t."""

    def log_prob(self, value: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
        seen, root, _ = self._seen(value)
        count = seen.sum(-1).to(root)
        square = self._solve(root, torch.where(seen, value - self.base.loc, 0.0))[1]
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if isinstance(self.base, NORMAL):
            return -0.5 * (square + count * LOG_2PI) - log_det
        df = self.base.df
        constant = torch.lgamma((df + count) / 2) - torch.lgamma(df / 2) - 0.5 * count * (df * math.pi).log()
        return constant - log_det - 0.5 * (df + count) * torch.log1p(square / df)

    def impute(self, value: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """A draw of everything, moved by what the seen entries say of it (Matheron's rule)."""
        seen, root, covariance = self._seen(value)
        noise = torch.linalg.cholesky(covariance) @ torch.randn_like(value)[..., None]
        if not isinstance(self.base, NORMAL):
            square = self._solve(root, torch.where(seen, value - self.base.loc, 0.0))[1]
            df = self.base.df
            noise = noise / dist.Gamma((df + seen.sum(-1)) / 2, (df + square) / 2).sample().sqrt()[..., None, None]
        drawn = self.base.loc + noise[..., 0]
        moved = covariance @ self._solve(root, torch.where(seen, value - drawn, 0.0))[0][..., None]
        return torch.where(seen, value, (drawn + moved[..., 0]).to(value))

    def _seen(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The observed part; the factor of its covariance or scale, missing entries pinned; the whole covariance."""
        seen, covariance = ~torch.isnan(value), _covariance(self.base)
        both = seen[..., :, None] & seen[..., None, :]
        identity = torch.eye(value.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return seen, torch.linalg.cholesky(torch.where(both, covariance, identity)), covariance

    @staticmethod
    def _solve(root: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
        """Difference over the covariance of this factor, and its square over it."""
        half = torch.linalg.solve_triangular(root, difference.to(root)[..., None], upper=False)
        whole = torch.linalg.solve_triangular(root.mT, half, upper=True)
        return whole[..., 0], half.square().sum((-2, -1))


NORMAL = torch.distributions.MultivariateNormal | torch.distributions.LowRankMultivariateNormal


def _covariance(base: Any) -> Float[Tensor, "*B D D"]:  # noqa: ANN401 (a distribution)
    """Covariance (of Student's t its scale), without the batch dimensions that it is only repeated along."""
    if isinstance(base, torch.distributions.LowRankMultivariateNormal):
        factor = base._unbroadcasted_cov_factor
        return factor @ factor.mT + torch.diag_embed(base._unbroadcasted_cov_diag)
    root = getattr(base, "_unbroadcasted_scale_tril", base.scale_tril)
    return root @ root.mT


def _inside(base: Any) -> Tensor:  # noqa: ANN401 (a distribution)
    """A value inside the support, at which the density has a gradient, to stand for missing entries."""
    support = base.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support.is_discrete:
        bound = getattr(support, "lower_bound", getattr(support, "upper_bound", 0))
        return torch.as_tensor(bound)
    try:
        return biject_to(support)(torch.zeros(()))
    except NotImplementedError as error:
        raise DataError(
            f"observed: the support of {type(base).__name__} must be one that a bijection reaches, got {support}; fill "
            "what is missing by a value that it can have, and mask it"
        ) from error
