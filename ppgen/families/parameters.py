"""Conjugate factors with trainable parameters: what a gradient-based guide is made of.

A factor's textbook parameters are held unconstrained, by the transform onto what its family constrains each to:
positive numbers by their logarithm, positive-definite matrices by a Cholesky factor with a log diagonal, degrees of
freedom by the logarithm of what they exceed D - 1 by.
"""

from typing import final

from torch import nn
from torch.distributions import transform_to

from ppgen.errors import DataError
from ppgen.families.family import Factor, Family, Natural

__all__ = ["VariationalFactor"]


@final
class VariationalFactor(nn.Module):
    """A trainable copy of a factor (a family and its natural parameters): ``VariationalFactor(factor).factor()``.

    Raises
    ------
    DataError : the factor is not proper, or its family does not say what its textbook parameters are constrained to.
    """

    def __init__(self, factor: tuple[Family, Natural]) -> None:
        super().__init__()
        self.family, eta = factor
        self.family.check(eta)
        named, constraints = self.family.named(eta), self.family.constraints(eta)
        if unknown := sorted(set(named) - set(constraints)):
            who = type(self.family).__name__
            raise DataError(
                f"{who}: constraints must give the constraint of each textbook parameter, {unknown} are missing; "
                f"give {who} `constraints(eta)`, a dict such as {{{unknown[0]!r}: "
                "torch.distributions.constraints.positive}"
            )
        self.transforms = {name: transform_to(constraints[name]) for name in named}
        free = {name: self.transforms[name].inv(value.detach()).clone() for name, value in named.items()}
        self.free = nn.ParameterDict({name: nn.Parameter(value) for name, value in free.items()})

    def factor(self) -> Factor:
        """The factor at the present parameters, differentiable with respect to them."""
        named = {name: self.transforms[name](value) for name, value in self.free.items()}
        return Factor(self.family, self.family.natural(**named))
