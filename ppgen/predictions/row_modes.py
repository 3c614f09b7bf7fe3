r"""Proposals for the values of many rows at once: Student's t distributions around the mode of each row.

The density of every row is a function of its own values alone, so one gradient of the sum over rows is that of each,
and a Hessian of all takes as many as one row has values. Newton steps are damped row by row (Levenberg & Marquardt).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad, vjp, vmap

__all__ = ["Peaks", "peaks"]

STEPS = 12
FIRST_DAMPING, LESS, MORE = 1e-2, 0.2, 8.0
FREEDOM = 5.0  # of the t distribution, whose tails are to be heavier than those of the posterior
FLATTEST = 1e-6  # least curvature, as a share of the largest of its row

Target = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Peaks:
    """A t distribution for each row: its mode (N, d), and the factor ``root`` of the inverse of its scale matrix."""

    mode: Float[Tensor, "N d"]
    root: Float[Tensor, "N d d"]

    def draw(self, n: int) -> Float[Tensor, "n N d"]:
        """``n`` draws for each row."""
        noise = torch.randn(n, *self.mode.shape, dtype=self.mode.dtype, device=self.mode.device)
        chi_square = 2 * torch._standard_gamma(torch.full_like(noise[..., 0], FREEDOM / 2))
        scaled = noise * (FREEDOM / chi_square).sqrt()[..., None]
        return self.mode + torch.linalg.solve_triangular(self.root.mT, scaled[..., None], upper=True)[..., 0]

    def log_density(self, value: Float[Tensor, "n N d"]) -> Float[Tensor, "n N"]:
        """Log density of values of each row."""
        scaled = (self.root.mT @ (value - self.mode)[..., None])[..., 0]
        d = scaled.shape[-1]
        half = (FREEDOM + d) / 2
        constant = math.lgamma(half) - math.lgamma(FREEDOM / 2) - d / 2 * math.log(FREEDOM * math.pi)
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant + log_det - half * torch.log1p(scaled.square().sum(-1) / FREEDOM)


def peaks(target: Target, start: Float[Tensor, "N d"]) -> Peaks:
    """The mode and the curvature there of each row.

    Parameters
    ----------
    target : log density (N,) of values (N, d), each row's of its own values only; twice differentiable.
    start : where the search begins.
    """
    here = _look(target, start)
    damping = torch.full_like(start[:, 0], FIRST_DAMPING)
    for _ in range(STEPS):
        there = _look(target, here.value + here.move(damping))
        taken = there.height >= here.height
        here = View(*(_chosen(taken, new, old) for new, old in zip(there, here, strict=True)))
        damping = torch.where(taken, damping * LESS, damping * MORE)
    values, vectors = torch.linalg.eigh(-here.curvature)
    precision = (vectors * _bent(values)[:, None]) @ vectors.mT
    return Peaks(here.value, torch.linalg.cholesky(precision))


class View(NamedTuple):
    """Values of each row, its log density there, and the first and second derivatives of that."""

    value: Float[Tensor, "N d"]
    height: Float[Tensor, " N"]
    slope: Float[Tensor, "N d"]
    curvature: Float[Tensor, "N d d"]

    def move(self, damping: Float[Tensor, " N"]) -> Float[Tensor, "N d"]:
        """A damped Newton step, which goes up also where a row is not concave."""
        values, vectors = torch.linalg.eigh(-self.curvature)
        bent = _bent(values) * (1 + damping[:, None])
        return (vectors @ ((vectors.mT @ self.slope[..., None]) / bent[..., None]))[..., 0]


def _bent(curvatures: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
    """Curvatures as those of a peak, none far flatter than the row's largest: in whatever units the values are."""
    size = curvatures.abs()
    return size.clamp_min(torch.finfo(size.dtype).tiny).maximum(FLATTEST * size.amax(-1, keepdim=True))


def _look(target: Target, value: Float[Tensor, "N d"]) -> View:
    def total(v: Tensor) -> tuple[Tensor, Tensor]:
        height = target(v)
        return height.sum(), height

    looked: Any = vjp(grad(total, has_aux=True), value, has_aux=True)
    slope, pull, height = looked
    basis = torch.eye(value.shape[1], dtype=value.dtype, device=value.device)[:, None].expand(-1, *value.shape)
    rows = vmap(lambda direction: pull(direction)[0])(basis).movedim(0, -2)
    return View(value, height, slope, (rows + rows.mT) / 2)


def _chosen(taken: Bool[Tensor, " N"], new: Tensor, old: Tensor) -> Tensor:
    return torch.where(taken.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
