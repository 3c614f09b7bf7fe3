r"""Ascent by limited-memory BFGS, of many functions at once or of one: each row of a tensor climbs its own.

With a step s, the change y of the negative gradient over it and :math:`\rho = 1 / y's`, the inverse Hessian H becomes

.. math:: (I - \rho s y')\, H\, (I - \rho y s') + \rho s s' ,

from a diagonal D that is learnt by

.. math:: D_i^{-1} \leftarrow \rho\, a D_i^{-1} + \rho\, y_i^2 - \rho\, a s_i^2 D_i^{-2} / c, \qquad
    a = y'Dy, \quad c = s'D^{-1}s .

References: Nocedal & Wright (2006), ch. 7; Gilbert & Lemarechal (1989) for the diagonal.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Ascent", "Gradient", "Pair", "dot"]

Gradient = Callable[[Tensor], tuple[Tensor, Tensor]]

MOST_PAIRS, HALVINGS, SHRINK = 6, 12, 0.4
ARMIJO, CURVED = 1e-4, 1e-10


class Pair(NamedTuple):
    """A step s, the change y of the negative gradient, and 1 / y's; zeros in rows whose curvature was not positive."""

    s: Float[Tensor, "C P"]
    y: Float[Tensor, "C P"]
    rho: Float[Tensor, " C"]


@final
@dataclass
class Ascent:
    """L-BFGS on every row; rows that cannot go on stay where they are."""

    v: Float[Tensor, "C P"]
    value: Float[Tensor, " C"]
    gradient: Float[Tensor, "C P"]
    memory: int = MOST_PAIRS
    pairs: list[Pair] = field(default_factory=list)
    diagonal: Float[Tensor, "C P"] = field(init=False)

    def __post_init__(self) -> None:
        self.diagonal = torch.ones_like(self.v)

    def step(self, gradient_of: Gradient) -> Float[Tensor, " C"]:
        """Make one step uphill with backtracking; return what each row gained."""
        direction = self.times(self.gradient)
        slope = dot(direction, self.gradient)
        downhill = ~(slope > 0)
        direction = torch.where(downhill[:, None], self.gradient, direction)
        slope = torch.where(downhill, dot(self.gradient, self.gradient), slope)
        first = 1.0 if self.pairs else 1 / slope.sqrt().clamp_min(1.0)
        size = torch.ones_like(slope) * first
        found, v, value, gradient = torch.zeros_like(downhill), self.v, self.value, self.gradient
        for _ in range(HALVINGS):
            trial = self.v + torch.where(found, 0.0, size)[:, None] * direction
            new_value, new_gradient = gradient_of(trial)
            gained = new_value >= self.value + ARMIJO * size * slope
            good = ~found & gained & torch.isfinite(new_gradient).all(-1) & torch.isfinite(new_value)
            row = good[:, None]
            v, gradient = torch.where(row, trial, v), torch.where(row, new_gradient, gradient)
            value, found = torch.where(good, new_value, value), found | good
            if found.all():
                break
            size = torch.where(found, size, size * SHRINK)
        gain = value - self.value
        self._remember(v - self.v, self.gradient - gradient)
        self.v, self.value, self.gradient = v, value, gradient
        return gain

    def times(self, w: Float[Tensor, "C P"]) -> Float[Tensor, "C P"]:
        """The inverse Hessian times ``w``, by two loops."""
        weights = []
        for pair in reversed(self.pairs):
            weights.append(pair.rho * dot(pair.s, w))
            w = w - weights[-1][:, None] * pair.y
        w = self.diagonal * w
        for pair, weight in zip(self.pairs, reversed(weights), strict=True):
            w = w + (weight - pair.rho * dot(pair.y, w))[:, None] * pair.s
        return w

    def _remember(self, s: Tensor, y: Tensor) -> None:
        """Keep the newest pairs, and learn the diagonal of the inverse Hessian (Gilbert & Lemarechal 1989)."""
        b = dot(s, y)
        good = b > CURVED * dot(y, y)
        row, safe = good[:, None], torch.where(good, b, 1.0)[:, None]
        s, y = torch.where(row, s, 0.0), torch.where(row, y, 0.0)
        a, c = dot(y, self.diagonal * y)[:, None], dot(s, s / self.diagonal)[:, None]
        inverse = a / (safe * self.diagonal) + y**2 / safe - a * s**2 / (safe * c.clamp_min(1e-300) * self.diagonal**2)
        usable = row & torch.isfinite(inverse).all(-1, keepdim=True) & (inverse > 0).all(-1, keepdim=True)
        self.diagonal = torch.where(usable, 1 / inverse, self.diagonal)
        rho = torch.where(good, 1 / safe[:, 0], 0.0)
        self.pairs = [*self.pairs[1 - self.memory :], Pair(s, y, rho)]


def dot(a: Tensor, b: Tensor) -> Float[Tensor, " *B"]:
    """Inner product of the last axis."""
    return (a * b).sum(-1)
