r"""Quadratic log-potentials :math:`w^\top N_k w + c_k`, linear in the packed products :math:`w_i w_j, i \le j`.

Every Gaussian emission is one: a plain Gaussian with ``w = (x, 1)``, an autoregression with
``w = (h_t, h_{t-1}, ..., h_{t-L}, 1)``. Packing turns K quadratic forms into one matrix product.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["coefficients", "homogeneous", "marginalize", "pack", "pack_products", "scores", "solve_spd"]

ROWS_AT_ONCE = 1 << 13  # rows whose packed products are made together
LOG_2PI = math.log(2 * math.pi)


def pack_products(w: Float[Tensor, "*n W"]) -> Float[Tensor, "*n F"]:
    """Products ``w_i w_j`` for ``i <= j``, F = W (W + 1) / 2."""
    i, j = torch.triu_indices(w.shape[-1], w.shape[-1], device=w.device)
    return w[..., i] * w[..., j]


def scores(w: Float[Tensor, "n W"], forms: Float[Tensor, "K W W"]) -> Float[Tensor, "n K"]:
    """``w' form w`` of every row under every symmetric form, as one matrix product of packed products.

    Rows are taken in parts whose products stay in the processor's cache, features first.
    """
    i, j = torch.triu_indices(w.shape[-1], w.shape[-1], device=w.device)
    coefficient, found = coefficients(forms), []
    for part in w.split(ROWS_AT_ONCE):
        features = part.mT.contiguous()
        found.append(coefficient @ (features.index_select(0, i) * features.index_select(0, j)))
    return torch.cat(found, -1).mT


def pack(matrix: Float[Tensor, "*n W W"]) -> Float[Tensor, "*n F"]:
    """Upper triangle of symmetric matrices, in the order of :func:`pack_products`."""
    i, j = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], device=matrix.device)
    return matrix[..., i, j]


def coefficients(form: Float[Tensor, "*n W W"]) -> Float[Tensor, "*n F"]:
    """Coefficients ``c`` with ``pack_products(w) @ c = w' form w``."""
    i, j = torch.triu_indices(form.shape[-1], form.shape[-1], device=form.device)
    both = form + form.transpose(-1, -2)
    return both[..., i, j] * torch.where(i == j, 0.5, 1.0).to(form)


def homogeneous(
    precision: Float[Tensor, "*n D D"], linear: Float[Tensor, "*n D R"], quadratic: Float[Tensor, "*n R R"]
) -> Float[Tensor, "*n W W"]:
    """Stack the statistics of ``y = A r + e`` into one symmetric form over ``(y, r)``."""
    top = torch.cat([precision, linear / 2], -1)
    bottom = torch.cat([linear.transpose(-1, -2) / 2, quadratic], -1)
    return torch.cat([top, bottom], -2)


def solve_spd(matrix: Float[Tensor, "*n M M"], right: Float[Tensor, "*n M B"]) -> tuple[Tensor, Tensor]:
    """Solve with a symmetric positive-definite matrix; also its log-determinant."""
    factor = torch.linalg.cholesky(matrix)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.cholesky_solve(right, factor), log_det


def marginalize(form: Float[Tensor, "K W W"], hides: Bool[Tensor, "P D"]) -> tuple[Tensor, Tensor]:
    """Integrate what each pattern hides of ``x`` out of ``exp(w' form w)``: all patterns in one batch.

    ``w`` begins with x: (x, 1), or (x, r) with regressors. What a pattern does not hide is pinned to the identity.
    Returns forms (P, K, W, W), zero where something is hidden, and the log-constants (P, K) of the integrals.
    """
    D = hides.shape[-1]
    hidden = torch.nn.functional.pad(hides, (0, form.shape[-1] - D))[:, None]
    rows, columns = hidden[..., :, None], hidden[..., None, :]
    cross = torch.where(rows[..., :D, :] & ~columns, form[..., :D, :], 0.0)
    pins = torch.diag_embed((~hidden[..., :D]).to(form))
    both = rows[..., :D, :] & columns[..., :D]
    solved, log_det = solve_spd(torch.where(both, -2 * form[..., :D, :D], pins), 2 * cross)
    reduced = torch.where(rows | columns, 0.0, form) + cross.mT @ solved
    return reduced, hidden.sum(-1).to(form) * (LOG_2PI / 2) - log_det / 2
