r"""Quadratic log-potentials :math:`w^\top N_k w + c_k`, linear in the packed products :math:`w_i w_j, i \le j`.

Every Gaussian emission is one: a plain Gaussian with ``w = (x, 1)``, an autoregression with
``w = (h_t, h_{t-1}, ..., h_{t-L}, 1)``. Packing turns K quadratic forms into one matrix product.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppgen.constants import LOG_2PI
from ppgen.messages._compiled import is_eager

__all__ = ["coefficients", "homogeneous", "marginalize", "pack", "pack_products", "scores", "solve_spd"]

ROWS_AT_ONCE = 1 << 13  # rows whose packed products are made together
ROWS_IN_CACHE = 1 << 11  # and where they are made in one piece of memory
Context = Any  # what torch hands to the methods of a function; it takes any attribute


def pack_products(w: Float[Tensor, "*n W"]) -> Float[Tensor, "*n F"]:
    """Products ``w_i w_j`` for ``i <= j``, F = W (W + 1) / 2."""
    i, j = torch.triu_indices(w.shape[-1], w.shape[-1], device=w.device)
    return w[..., i] * w[..., j]


def scores(w: Float[Tensor, "n W"], forms: Float[Tensor, "K W W"]) -> Float[Tensor, "n K"]:
    """``w' form w`` of every row under every symmetric form, as one matrix product of packed products.

    Rows are taken in parts whose products stay in the processor's cache, features first. Where nothing is traced they
    are made again for the gradient, which is faster than keeping them.
    """
    coefficient = coefficients(forms)
    return (_Scores.apply(w, coefficient) if is_eager() else _scores(w, coefficient)).mT


def _scores(w: Float[Tensor, "n W"], coefficient: Float[Tensor, "K F"]) -> Float[Tensor, "K n"]:
    i, j = torch.triu_indices(w.shape[-1], w.shape[-1], device=w.device)
    found = []
    for part in w.split(ROWS_AT_ONCE):
        features = part.mT.contiguous()
        found.append(coefficient @ (features.index_select(0, i) * features.index_select(0, j)))
    return torch.cat(found, -1)


class _Scores(torch.autograd.Function):
    """`_scores` with products made twice, in one small piece of memory."""

    @staticmethod
    def forward(ctx: Context, w: Tensor, coefficient: Tensor) -> Tensor:
        ctx.save_for_backward(w, coefficient)
        out = w.new_empty(len(coefficient), len(w))
        for rows, products in _product_parts(w):
            torch.mm(coefficient, products, out=out[:, rows])
        return out

    @staticmethod
    def backward(ctx: Context, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        w, coefficient = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.needs_input_grad[0]:
            with torch.enable_grad():
                inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in (w, coefficient)]
                to_w, total = torch.autograd.grad(_scores(*inputs), inputs, gradient, create_graph=True)
            return to_w, total
        total = torch.zeros_like(coefficient)
        for rows, products in _product_parts(w):
            total.addmm_(gradient[:, rows], products.mT)
        return None, total


def _product_parts(w: Float[Tensor, "n W"]) -> Iterator[tuple[slice, Float[Tensor, "F m"]]]:
    """Packed products of some rows at a time, features first, in memory that the next ones overwrite."""
    n, W = w.shape
    memory = w.new_empty(W * (W + 1) // 2, min(n, ROWS_IN_CACHE))
    for start in range(0, n, ROWS_IN_CACHE):
        rows = slice(start, min(start + ROWS_IN_CACHE, n))
        features = w[rows].mT.contiguous()
        products, at = memory[:, : features.shape[1]], 0
        for i in range(W):
            torch.mul(features[i:], features[i], out=products[at : at + W - i])
            at += W - i
        yield rows, products


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
