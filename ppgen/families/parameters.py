"""Conjugate factors with trainable parameters: what a gradient-based guide is made of.

A factor's textbook parameters are held unconstrained: positive numbers by their logarithm, positive-definite matrices
by a Cholesky factor with a log diagonal, degrees of freedom by the logarithm of what they exceed D - 1 by.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from ppgen.distributions.wishart import cholesky
from ppgen.families.family import Factor, Family, Natural

__all__ = ["VariationalFactor"]

# Textbook names that are not plain positive numbers, over all families.
REAL, POSITIVE_DEFINITE, DEGREES = ("location",), ("scale", "column_precision"), ("degrees",)


@final
class VariationalFactor(nn.Module):
    """A trainable copy of a factor (a family and its natural parameters): ``VariationalFactor(factor).factor()``.

    Raises
    ------
    DataError : the factor is not proper.
    """

    def __init__(self, factor: tuple[Family, Natural]) -> None:
        super().__init__()
        self.family, eta = factor
        self.family.check(eta)
        named = self.family.named(eta)
        self.smallest = named["scale"].shape[-1] - 1.0 if "degrees" in named else 0.0
        self.free = nn.ParameterDict({name: nn.Parameter(self._free(name, value)) for name, value in named.items()})

    def factor(self) -> Factor:
        """The factor at the present parameters, differentiable with respect to them."""
        named = {name: self._constrained(name, value) for name, value in self.free.items()}
        return Factor(self.family, self.family.natural(**named))

    def _free(self, name: str, value: Tensor) -> Tensor:
        value = value.detach().clone()
        if name in REAL:
            return value
        if name in POSITIVE_DEFINITE:
            return _map_diagonal(cholesky(value), torch.log)
        return (value - self.smallest).log() if name in DEGREES else value.log()

    def _constrained(self, name: str, value: Tensor) -> Tensor:
        if name in REAL:
            return value
        if name in POSITIVE_DEFINITE:
            factor = _map_diagonal(value, torch.exp)
            return factor @ factor.mT
        return value.exp() + self.smallest if name in DEGREES else value.exp()


def _map_diagonal(lower: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``function`` to the diagonal of a lower-triangular matrix, zeros above it."""
    return lower.tril(-1) + torch.diag_embed(function(lower.diagonal(dim1=-2, dim2=-1)))
