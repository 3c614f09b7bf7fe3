r"""A fixed linear subspace in which a Gaussian emission lives, with exact evidence from partly observed rows.

.. math:: x = m + B\,(s \odot h) + r, \qquad r \sim \mathcal N(0, \sigma^2 (I - B B^\top))

with ``B`` (F, D) orthonormal. The latent ``h`` of a complete row *is* its projection. For a row with missing features, with
:math:`G = B_m^\top B_m` over the missing ones, the observed ones give ``h / s`` a Gaussian likelihood of precision
:math:`(G^{-1} - I) / \sigma^2`: infinite where nothing is lost (:math:`G \to 0`), zero where everything is (:math:`G = I`).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppgen.errors import DataError
from ppgen.families.emission import rows_by_pattern
from ppgen.families.quadratic import LOG_2PI

__all__ = ["RowEvidence", "Subspace"]

SMALLEST_LOSS = 1e-4  # eigenvalues of G below it count as this: "exactly known" is kept finite


class RowEvidence(NamedTuple):
    """What rows of data say about the latent: exact values, and Gaussian potentials for some rows."""

    value: Float[Tensor, "n D"]
    known: Bool[Tensor, "n D"]
    partial: Int[Tensor, " p"]  # rows with a Gaussian potential exp(-½ h' precision h + information' h)
    precision: Float[Tensor, "p D D"]
    information: Float[Tensor, "p D"]
    constant: Float[Tensor, " n"]  # log-density that does not depend on h


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
        F, D = self.basis.shape
        if self.mean.shape != (F,) or self.scale.shape != (D,) or D > F:
            raise DataError(
                "Subspace: mean (F,), basis (F, D) and scale (D,) must agree, got "
                f"{tuple(self.mean.shape)}, {tuple(self.basis.shape)} and {tuple(self.scale.shape)}"
            )
        if not torch.allclose(self.basis.mT @ self.basis, torch.eye(D, dtype=torch.float64), atol=1e-8):
            raise DataError("Subspace: the columns of basis must be orthonormal; use numpy.linalg.qr or an SVD")
        if not (self.noise > 0 and (self.scale > 0).all()):
            raise DataError(f"Subspace: noise and scale must be positive, got noise {self.noise}")

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that rebuild this subspace."""
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale, "noise": float(self.noise)}

    def evidence(self, rows: Float[Tensor, "n F"]) -> RowEvidence:
        """What each row says about its latent."""
        n, D = len(rows), self.basis.shape[1]
        centred = rows - self.mean
        value, known, constant = rows.new_zeros(n, D), torch.zeros(n, D, dtype=torch.bool), rows.new_zeros(n)
        partial, precision, information = [], [], []
        for missing, index in rows_by_pattern(torch.isnan(rows)):
            if missing.all():
                continue
            if not missing.any():
                value[index], constant[index] = self._complete_rows(centred[index])
                known[index] = True
                continue
            matrix, vector, constant[index] = self._partial_rows(centred[index][:, ~missing], missing)
            partial.append(index)
            precision.append(matrix.expand(len(index), D, D))
            information.append(vector)
        if not partial:
            empty = torch.zeros(0, dtype=torch.long)
            return RowEvidence(value, known, empty, rows.new_zeros(0, D, D), rows.new_zeros(0, D), constant)
        return RowEvidence(value, known, torch.cat(partial), torch.cat(precision), torch.cat(information), constant)

    def fill(self, rows: Float[Tensor, "n F"], h: Float[Tensor, "n D"]) -> Float[Tensor, "n F"]:
        """Draw the missing features of each row given its latent and the observed features."""
        filled = rows.clone()
        fitted = self.mean + (h * self.scale) @ self.basis.mT
        for missing, index in rows_by_pattern(torch.isnan(rows)):
            if missing.any():
                lost, seen = self.basis[missing], self.basis[~missing]
                g, U = torch.linalg.eigh(lost.mT @ lost)
                inverse = U @ torch.diag(torch.where(g > SMALLEST_LOSS, 1 / g.clamp_min(SMALLEST_LOSS), 0.0)) @ U.mT
                residual = (rows[index] - fitted[index])[:, ~missing] @ seen
                noise = torch.randn(len(index), len(lost), dtype=rows.dtype) * self.noise**0.5
                free = noise - noise @ lost @ inverse @ lost.mT
                filled[index[:, None], missing] = fitted[index][:, missing] - residual @ inverse @ lost.mT + free
        return filled

    def _complete_rows(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Projection, and the log-density of the residual with the Jacobian of the scaling."""
        h = centred @ self.basis
        F, D = self.basis.shape
        residual = (centred**2).sum(-1) - (h**2).sum(-1)
        log_noise = torch.tensor(self.noise, dtype=centred.dtype).log()
        constant = -residual / (2 * self.noise) - (F - D) / 2 * (LOG_2PI + log_noise) - self.scale.log().sum()
        return h / self.scale, constant

    def _partial_rows(self, seen: Tensor, missing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Precision (D, D), information (n, D) and constant (n,) of the potential on h of rows with one pattern."""
        lost, kept = self.basis[missing], self.basis[~missing]
        g, U = torch.linalg.eigh(lost.mT @ lost)
        g = g.clamp(0.0, 1.0)
        loss = g.clamp_min(SMALLEST_LOSS)
        projected = seen @ kept @ U
        precision = self.scale[:, None] * (U @ torch.diag((1 - g) / (self.noise * loss)) @ U.mT) * self.scale
        information = (projected / (self.noise * loss)) @ U.mT * self.scale
        quadratic = ((seen**2).sum(-1) + (projected**2 / loss).sum(-1)) / self.noise
        log_noise = torch.tensor(self.noise, dtype=seen.dtype).log()
        log_det = seen.shape[1] * log_noise + (loss / (loss + 1 - g)).log().sum()
        return precision, information, -0.5 * (quadratic + seen.shape[1] * LOG_2PI + log_det)
