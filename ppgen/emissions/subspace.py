r"""A fixed linear subspace in which a Gaussian emission lives, with exact evidence from partly observed rows.

.. math:: x = m + B\,(s \odot h) + r, \qquad r \sim \mathcal N(0, \sigma^2 (I - B B^\top))

with ``B`` (F, D) orthonormal. The latent ``h`` of a complete row *is* its projection. For a row with missing features,
with :math:`G = B_m^\top B_m` over the missing ones, the observed ones give :math:`s \odot h` a Gaussian likelihood of
precision :math:`(G^{-1} - I) / \sigma^2`: infinite where nothing is lost (:math:`G \to 0`), zero where everything is
(:math:`G = I`).
"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.emissions.emission import distinct_patterns
from ppgen.emissions.frames import RowEvidence
from ppgen.errors import DataError

__all__ = ["Subspace"]

SMALLEST_LOSS = 1e-4  # eigenvalues of G below it count as this: "exactly known" is kept finite


@final
@dataclass(frozen=True)
class Subspace:
    """``mean`` (F,), orthonormal ``basis`` (F, D), ``scale`` (D,) in units of x, residual variance ``noise`` in x²."""

    mean: Tensor
    basis: Tensor
    scale: Tensor
    noise: float

    def __post_init__(self) -> None:
        for name in ("mean", "basis", "scale"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
            if not getattr(self, name).isfinite().all():
                raise DataError(f"Subspace: {name} must be finite, got {getattr(self, name).tolist()}")
        if self.mean.ndim != 1 or self.scale.ndim != 1 or self.basis.shape != self.mean.shape + self.scale.shape:
            raise DataError(
                "Subspace: mean (F,), basis (F, D) and scale (D,) must agree, got "
                f"{tuple(self.mean.shape)}, {tuple(self.basis.shape)} and {tuple(self.scale.shape)}"
            )
        if not torch.allclose(self.basis.mT @ self.basis, torch.eye(len(self.scale), dtype=torch.float64), atol=1e-8):
            raise DataError("Subspace: the columns of basis must be orthonormal; use numpy.linalg.qr or an SVD")
        if not (0 < self.noise < math.inf and (self.scale > 0).all()):
            raise DataError(f"Subspace: noise and scale must be positive, got noise {self.noise}")

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this subspace."""
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale, "noise": float(self.noise)}

    def evidence(self, rows: Float[Tensor, "n F"]) -> RowEvidence:
        """The evidence of each row about its latent."""
        missing = torch.isnan(rows)
        centred = torch.where(missing, 0.0, rows - self.mean)
        whole = ~missing.any(-1)
        h, constant = self._complete_rows(centred)
        partial = (~whole & ~missing.all(-1)).nonzero()[:, 0]
        precision, information, partial_constant = self._partial_rows(centred[partial], missing[partial])
        constant = torch.where(whole, constant, 0.0)
        constant[partial] = partial_constant
        value = torch.where(whole[:, None], h, 0.0)
        return RowEvidence(value, whole[:, None].expand_as(h), partial, precision, information, constant)

    def fill(self, rows: Float[Tensor, "n F"], h: Float[Tensor, "n D"]) -> Float[Tensor, "n F"]:
        """Draw the missing features of each row given its latent and the observed features."""
        missing = torch.isnan(rows)
        fitted = self.mean + (h * self.scale) @ self.basis.mT
        g, U, inverse = self._losses(missing)
        kept = torch.where(g > SMALLEST_LOSS, 1 / g.clamp_min(SMALLEST_LOSS), 0.0)
        pseudo = ((U * kept[:, None]) @ U.mT)[inverse]
        noise = torch.randn(rows.shape, dtype=rows.dtype) * self.noise**0.5 * missing
        residual = torch.where(missing, 0.0, rows - fitted) @ self.basis
        bound = torch.einsum("nij,nj->ni", pseudo, residual + noise @ self.basis)
        return torch.where(missing, fitted + noise - bound @ self.basis.mT, rows)

    def _losses(self, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues and vectors of G for each pattern of missing features, and the pattern of each row."""
        patterns, inverse = distinct_patterns(missing)
        hidden = patterns.to(self.basis)[..., None] * self.basis
        g, U = torch.linalg.eigh(hidden.mT @ hidden)
        return g.clamp(0.0, 1.0), U, inverse

    def _complete_rows(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Projection, and the log-density of the residual with the Jacobian of the scaling."""
        h = centred @ self.basis
        F, D = self.basis.shape
        residual = (centred**2).sum(-1) - (h**2).sum(-1)
        constant = (
            -residual / (2 * self.noise) - (F - D) / 2 * (LOG_2PI + math.log(self.noise)) - self.scale.log().sum()
        )
        return h / self.scale, constant

    def _partial_rows(self, centred: Tensor, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Precision (n, D, D), information (n, D) and constant (n,) of each row's potential on h."""
        g, U, inverse = self._losses(missing)
        loss = g.clamp_min(SMALLEST_LOSS)
        weight = (U * ((1 - g) / (self.noise * loss))[:, None]) @ U.mT
        precision = (self.scale[:, None] * weight * self.scale)[inverse]
        projected = torch.einsum("ni,nij->nj", centred @ self.basis, U[inverse])
        information = torch.einsum("nij,nj->ni", U[inverse], projected / (self.noise * loss[inverse])) * self.scale
        # (1 / loss - 1) / (1 - g), which is 1 / g except where g was lifted to a larger loss
        surplus = torch.where(g > SMALLEST_LOSS, 1 / loss, (1 / loss - 1) / (1 - g))
        quadratic = ((centred**2).sum(-1) + (projected**2 * surplus[inverse]).sum(-1)) / self.noise
        seen = (~missing).sum(-1).to(centred)  # a whole number times a float would be single precision
        log_det = seen * math.log(self.noise) + loss.log().sum(-1)[inverse]
        return precision, information, -0.5 * (quadratic + seen * LOG_2PI + log_det)
