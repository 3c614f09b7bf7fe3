r"""Proposals for the values of many rows at once: Student's t distributions around the modes of each row.

The density of every row is a function of its own values alone, so one gradient of the sum over rows is that of each,
and a Hessian of all takes as many as one row has values. Newton steps are damped row by row (Levenberg & Marquardt):
with the slope g and minus the Hessian :math:`Q \mathrm{diag}(\lambda) Q'`, a row moves by

.. math:: Q\, \mathrm{diag}\bigl((1 + \delta) |\lambda|\bigr)^{-1} Q' g ,

and its damping :math:`\delta` falls after a step that went up and grows after any other. The t distribution at the mode
has the inverse scale matrix :math:`Q\, \mathrm{diag}(|\lambda|)\, Q' = LL'`.
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
    """A mixture of M t distributions for each row: modes, and factors ``root`` of the inverse scale matrices."""

    mode: Float[Tensor, "M N d"]
    root: Float[Tensor, "M N d d"]

    def draw(self, n: int) -> Float[Tensor, "n N d"]:
        """``n`` draws for each row, from its distributions in turn."""
        kind = torch.arange(n, device=self.mode.device) % len(self.mode)
        mode, root = self.mode[kind], self.root[kind]
        noise = torch.randn(mode.shape, dtype=mode.dtype, device=mode.device)
        chi_square = 2 * torch._standard_gamma(torch.full_like(noise[..., 0], FREEDOM / 2))
        scaled = noise * (FREEDOM / chi_square).sqrt()[..., None]
        return mode + torch.linalg.solve_triangular(root.mT, scaled[..., None], upper=True)[..., 0]

    def log_density(self, value: Float[Tensor, "n N d"]) -> Float[Tensor, "n N"]:
        """Log density of values of each row under the mixture."""
        parts = [self._log_density(mode, root, value) for mode, root in zip(self.mode, self.root, strict=True)]
        return torch.stack(parts).logsumexp(0) - math.log(len(parts))

    def _log_density(self, mode: Tensor, root: Tensor, value: Float[Tensor, "n N d"]) -> Float[Tensor, "n N"]:
        scaled = (root.mT @ (value - mode)[..., None])[..., 0]
        d = scaled.shape[-1]
        half = (FREEDOM + d) / 2
        constant = math.lgamma(half) - math.lgamma(FREEDOM / 2) - d / 2 * math.log(FREEDOM * math.pi)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant + log_det - half * torch.log1p(scaled.square().sum(-1) / FREEDOM)


def peaks(target: Target, starts: Float[Tensor, "M N d"]) -> Peaks:
    """A mode of each row, and the curvature there, from each of M starts: a row may have several modes.

    Parameters
    ----------
    target : log density (M * N,) of values (M * N, d) of all rows M times over, each row's of its own values only;
        twice differentiable.
    starts : points at which the searches begin.
    """
    here = _look(target, starts.flatten(0, 1))
    damping = torch.full_like(here.height, FIRST_DAMPING)
    for _ in range(STEPS):
        there = _look(target, here.value + here.move(damping))
        taken = there.height >= here.height
        here = View(*(_chosen(taken, new, old) for new, old in zip(there, here, strict=True)))
        damping = torch.where(taken, damping * LESS, damping * MORE)
    values, vectors = torch.linalg.eigh(-here.curvature)
    precision = (vectors * _bent(values)[:, None]) @ vectors.mT
    root = torch.linalg.cholesky(precision)
    return Peaks(here.value.reshape(starts.shape), root.reshape(*starts.shape, -1))


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
    """Height, slope and curvature of every row; the pull of direction i on the slope is row i of each Hessian."""

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
