"""Second derivatives, and differentiable draws, of Gaussian chains in torch operations, on any device.

The formulas are those of :mod:`ppgen.messages.gaussian._tangent` and :mod:`ppgen.messages.gaussian._draws`, with all
blocks eliminated towards the last one. Roots are upper triangles, inverse factors of precisions.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ppgen.messages.gaussian._scan import eliminate

__all__ = ["draw", "gradient", "pull_back", "tangent"]


def tangent(
    J: Tensor, J_cross: Tensor, h: Tensor, dJ: Tensor, D: Tensor, dh: Tensor, strict: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the gradient of the log-normaliser in J, J_cross and h in direction (dJ, D, dh)."""
    _, factors, gains, offsets = eliminate(J, J_cross, h, strict)
    spreads = [torch.cholesky_inverse(factor) for factor in factors]
    precisions, linears = _inwards(0.5 * (dJ + dJ.mT), D, dh, gains, offsets)
    cov, m = spreads[-1], offsets[-1]
    dcov, dm = -cov @ precisions[-1] @ cov, _times(cov, linears[-1] - _times(precisions[-1], m))
    second, crosses, first = [_second(dcov, m, dm)], [], [dm]
    for t in range(h.shape[1] - 2, -1, -1):
        S, G, o, dP = spreads[t], gains[t], offsets[t], precisions[t]
        dG = -S @ (dP @ G + D[:, t])
        A = dG @ cov
        X = A + G @ dcov
        here, dhere = o + _times(G, m), _times(S, linears[t] - _times(dP, o)) + _times(dG, m) + _times(G, dm)
        crosses.append(-(X + _outer(dhere, m) + _outer(here, dm)))
        dcov = -S @ dP @ S + X @ G.mT + G @ A.mT
        cov, m, dm = S + G @ cov @ G.mT, here, dhere
        second.append(_second(dcov, m, dm))
        first.append(dm)
    cross = torch.stack(crosses[::-1], 1) if crosses else torch.empty_like(D)
    return torch.stack(second[::-1], 1), cross, torch.stack(first[::-1], 1)


def _inwards(
    dJ: Tensor, D: Tensor, dh: Tensor, gains: list[Tensor], offsets: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Derivatives of the precision and the linear term with which each block is eliminated."""
    precisions, linears = [dJ[:, 0]], [dh[:, 0]]
    for t, (G, o) in enumerate(zip(gains, offsets, strict=False)):
        K = precisions[-1] @ G + D[:, t]
        linears.append(dh[:, t + 1] + _times(G.mT, linears[-1]) - _times(K.mT, o))
        precisions.append(dJ[:, t + 1] + G.mT @ K + D[:, t].mT @ G)
    return precisions, linears


def draw(J: Tensor, J_cross: Tensor, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws (n, B, T, L), and the roots, gains and offsets (B, ...) they were made with."""
    _, factors, gains, offsets = eliminate(J, J_cross, h)
    eye = torch.eye(h.shape[2], dtype=h.dtype, device=h.device)
    roots = [torch.linalg.solve_triangular(factor.mT, eye, upper=True) for factor in factors]
    draws: list[Tensor] = []
    for t in range(h.shape[1] - 1, -1, -1):
        push = _times(gains[t], draws[-1]) if draws else 0.0
        draws.append(offsets[t] + _times(roots[t], noise[:, :, t]) + push)
    gain = torch.stack(gains, 1) if gains else J_cross.new_empty(len(h), *J_cross.shape[1:])
    return torch.stack(draws[::-1], 2), torch.stack(roots, 1), gain, torch.stack(offsets, 1)


def gradient(
    g: Tensor, x: Tensor, noise: Tensor, root: Tensor, gain: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in J, J_cross and h, with the rows of the last three, of what has gradient ``g`` (n, B, T, L)."""
    carried = [g[:, :, 0]]
    for t in range(1, g.shape[2]):
        carried.append(g[:, :, t] + _times(gain[:, t - 1].mT, carried[-1]))
    back = torch.einsum("btki,nbtk->nbti", root, torch.stack(carried, 2))
    u = torch.einsum("btik,nbtk->nbti", root, back)
    triangle = torch.einsum("nbti,nbtj->btij", noise, back).tril()  # turned over, as the roots are upper triangles
    triangle = triangle - 0.5 * torch.diag_embed(triangle.diagonal(dim1=-2, dim2=-1))
    own = -root @ triangle @ root.mT - _outer(u.sum(0), offset)
    links = -torch.einsum("nbti,nbtj->btij", u[:, :, :-1], x[:, :, 1:])
    w = _back(gain, u.sum(0))
    links = links - _outer(offset[:, :-1], w[:, 1:])
    P = 0.5 * (own[:, -1] + own[:, -1].mT)
    precisions, crosses = [P], []
    for t in range(g.shape[2] - 2, -1, -1):
        G = gain[:, t]
        K = G @ P + links[:, t]
        crosses.append(K + G @ P)
        P = own[:, t] + K @ G.mT
        P = 0.5 * (P + P.mT)
        precisions.append(P)
    cross = torch.stack(crosses[::-1], 1) if crosses else gain.expand(len(w), -1, -1, -1).clone()
    precision = torch.stack(precisions[::-1], 1)
    if len(root) < len(offset):
        precision, cross = precision.sum(0, keepdim=True), cross.sum(0, keepdim=True)
    return precision, cross, w


def _back(gain: Tensor, u: Tensor) -> Tensor:
    """w_t = u_t + G_t w_{t+1}, (B, T, L)."""
    w = [u[:, -1]]
    for t in range(u.shape[1] - 2, -1, -1):
        w.append(u[:, t] + _times(gain[:, t], w[-1]))
    return torch.stack(w[::-1], 1)


def pull_back(covariance: Tensor, cross: Tensor, mean: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the statistics (as `tangent` has them) from those in the moments, at the means ``at``."""
    ahead, behind = _times(cross, at[:, 1:]), _times(cross.mT, at[:, :-1])
    linear = mean - _times(covariance + covariance.mT, at) - pad(ahead, (0, 0, 0, 1)) - pad(behind, (0, 0, 1, 0))
    return -2 * covariance, -cross, linear


def _times(A: Tensor, v: Tensor) -> Tensor:
    return (A @ v[..., None])[..., 0]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def _second(dcov: Tensor, m: Tensor, dm: Tensor) -> Tensor:
    return -0.25 * (dcov + dcov.mT) - 0.5 * (_outer(dm, m) + _outer(m, dm))
