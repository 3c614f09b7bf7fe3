r"""Lower Cholesky factors: their constraint, and the bijection from flat space that samplers move in.

torch maps onto lower Cholesky factors from D x D numbers of which it drops the upper triangle. That is no bijection,
and a sampler that believed it would wander in directions without a density. Here D (D + 1) / 2 numbers fill the lower
triangle row by row, and the diagonal is their exponential. The constraint is a type of our own, so that the transforms
of torch's `lower_cholesky` stay as they are.
"""

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to

__all__ = ["LowerCholeskyBijection", "lower_cholesky_factor"]


class _LowerCholeskyFactor(type(constraints.lower_cholesky)):  # type: ignore[misc]  # torch names no public class
    pass


lower_cholesky_factor = _LowerCholeskyFactor()


class LowerCholeskyBijection(Transform):
    """Fill the lower triangle from a vector of D (D + 1) / 2 numbers, logarithms on the diagonal."""

    domain = constraints.real_vector
    codomain = lower_cholesky_factor
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LowerCholeskyBijection)

    def __hash__(self) -> int:
        return hash(LowerCholeskyBijection)

    def _call(self, x: Tensor) -> Tensor:
        matrix = x[..., _positions(_size(x.shape[-1]), x.device)]
        return matrix.tril(-1) + torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1).exp())

    def _inverse(self, y: Tensor) -> Tensor:
        matrix = y.tril(-1) + torch.diag_embed(y.diagonal(dim1=-2, dim2=-1).log())
        rows, columns = torch.tril_indices(y.shape[-1], y.shape[-1], device=y.device)
        return matrix[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """Log-determinant over the free entries: the sum of the logarithms on the diagonal."""
        return y.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(*batch, D (D + 1) / 2) to (*batch, D, D)."""
        return torch.Size((*shape[:-1], _size(shape[-1]), _size(shape[-1])))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """(*batch, D, D) to (*batch, D (D + 1) / 2)."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


@biject_to.register(_LowerCholeskyFactor)
@transform_to.register(_LowerCholeskyFactor)
def _to_lower_cholesky_factor(_constraint: constraints.Constraint) -> LowerCholeskyBijection:
    return LowerCholeskyBijection()


def _size(entries: int) -> int:
    """D from D (D + 1) / 2."""
    size = int((2 * entries) ** 0.5)
    if size * (size + 1) // 2 != entries:
        raise ValueError(f"LowerCholeskyBijection: the vector must have D (D + 1) / 2 entries, got {entries}")
    return size


def _positions(size: int, device: torch.device) -> Tensor:
    """Positions of the entries of the lower triangle in the vector, (D, D)."""
    row = torch.arange(size, device=device)[:, None]
    return (row * (row + 1) // 2 + torch.arange(size, device=device)).clamp(max=size * (size + 1) // 2 - 1)
