r"""Probabilities of jumps: each row of a matrix is a distribution over the other states, zero on the diagonal.

.. math:: J_{k \cdot} \text{ without } J_{kk} \sim \mathrm{Dir}(\alpha_k), \qquad J_{kk} = 0

for K states that a process changes between and never repeats, at least three of them: with two there is nothing to
draw. The constraint is a type of our own, with the bijection that samplers move by.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from pyro.distributions import Dirichlet, TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to

from ppgen.distributions.shape import Shape

__all__ = ["Jumps", "jump_rows", "off_diagonal", "with_diagonal"]


def off_diagonal(matrix: Float[Tensor, "*B K K"]) -> Float[Tensor, "*B K J"]:
    """The entries beside the diagonal, K - 1 of each row in their order."""
    K = matrix.shape[-1]
    flat = matrix.flatten(-2)[..., 1:].reshape(*matrix.shape[:-2], K - 1, K + 1)
    return flat[..., :-1].reshape(*matrix.shape[:-2], K, K - 1)


def with_diagonal(rows: Float[Tensor, "*B K J"]) -> Float[Tensor, "*B K K"]:
    """The square matrix with these entries beside a diagonal of zeros: the inverse of `off_diagonal`."""
    K = rows.shape[-2]
    flat = rows.reshape(*rows.shape[:-2], K - 1, K)
    padded = torch.nn.functional.pad(flat, (0, 1)).flatten(-2)
    return torch.nn.functional.pad(padded, (1, 0)).reshape(*rows.shape[:-2], K, K)


class _JumpRows(constraints.Constraint):
    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Whether rows are probabilities and the diagonal is zero."""
        rows = constraints.simplex.check(off_diagonal(value)).all(-1)
        return rows & (value.diagonal(dim1=-2, dim2=-1) == 0).all(-1)


jump_rows = _JumpRows()


class JumpBijection(Transform):
    """Stick-breaking of each row, around a diagonal of zeros."""

    domain = constraints.independent(constraints.real, 2)
    codomain = jump_rows
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JumpBijection)

    def __hash__(self) -> int:
        return hash(JumpBijection)

    def _call(self, x: Tensor) -> Tensor:
        return with_diagonal(biject_to(constraints.simplex)(x))

    def _inverse(self, y: Tensor) -> Tensor:
        return biject_to(constraints.simplex).inv(off_diagonal(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant over the free entries: that of the rows."""
        return biject_to(constraints.simplex).log_abs_det_jacobian(x, off_diagonal(y)).sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(*batch, K, K - 2) to (*batch, K, K)."""
        return torch.Size((*shape[:-1], shape[-2]))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(*batch, K, K) to (*batch, K, K - 2)."""
        return torch.Size((*shape[:-1], shape[-1] - 2))


@biject_to.register(_JumpRows)
@transform_to.register(_JumpRows)
def _to_jump_rows(_constraint: constraints.Constraint) -> JumpBijection:
    return JumpBijection()


@final
class Jumps(TorchDistribution):
    """Rows of (*B, K, K), each Dirichlet over the other states; ``concentration`` (*B, K, K) has a diagonal that does
    not count.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = jump_rows
    has_rsample = True

    def __init__(self, concentration: Float[Tensor, "*B K K"]) -> None:
        self.concentration = concentration
        self.rows = Dirichlet(off_diagonal(concentration), validate_args=False)
        super().__init__(concentration.shape[:-2], concentration.shape[-2:], validate_args=False)

    def expand(self, batch_shape: Shape, _instance: object = None) -> "Jumps":
        return Jumps(self.concentration.expand(*batch_shape, *self.event_shape))

    def log_prob(self, value: Float[Tensor, "*B K K"]) -> Float[Tensor, "*B"]:
        """Log density over the free entries."""
        return self.rows.log_prob(off_diagonal(value)).sum(-1)

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*S K K"]:
        return with_diagonal(self.rows.rsample(torch.Size(sample_shape)))
