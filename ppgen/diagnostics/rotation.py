r"""Latent spaces that may be turned: the draws of their loadings, turned to be alike.

Where the prior of a latent space is isotropic, :math:`C` and :math:`C Q'` say the same of data for every orthogonal
:math:`Q`, and chains (or draws) that differ by it disagree in nothing but axes. Each draw gets the :math:`Q` for which
:math:`\lVert C Q' - M \rVert_F` is least, where :math:`M` is the mean of the loadings so turned (generalised Procrustes
analysis); its axes are the principal ones of M, longest first, each with its largest loading positive.

References: Schoenemann (1966); Gower (1975); Assmann, Boysen-Hogrefe & Pape (2016) for posteriors of factor models.
"""

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["exchanges", "turns"]

SWEEPS, CLOSE = 50, 1e-8  # turns of all draws at most; relative change of their mean that ends them


def turns(loadings: Float[Tensor, "n D L"]) -> Float[Tensor, "n L L"]:
    """Orthogonal matrices Q of every draw, for which the ``loadings @ Q.mT`` are alike."""
    middle = loadings[0]
    for _ in range(SWEEPS):
        turned = loadings @ _nearest(loadings, middle).mT
        before, middle = middle, turned.mean(0)
        if (middle - before).norm() <= CLOSE * before.norm():
            break
    return _nearest(loadings, middle @ _principal(middle).mT)


def _nearest(loadings: Float[Tensor, "n D L"], middle: Float[Tensor, "D L"]) -> Float[Tensor, "n L L"]:
    """Orthogonal Q that bring ``loadings @ Q.mT`` nearest to ``middle``."""
    U, _, V = torch.linalg.svd(middle.mT @ loadings)
    return U @ V


def _principal(middle: Float[Tensor, "D L"]) -> Float[Tensor, "L L"]:
    """Orthogonal Q for which the columns of ``middle @ Q.mT`` are orthogonal, longest first, and mostly positive."""
    _, _, rows = torch.linalg.svd(middle.mT @ middle)
    along = middle @ rows.mT
    largest = along.gather(0, along.abs().argmax(0, keepdim=True))[0]
    return rows * torch.where(largest < 0, -1.0, 1.0)[:, None]


def exchanges(loadings: Float[Tensor, "n D L"]) -> Float[Tensor, "n L L"]:
    """Signed permutations Q of every draw, for which the ``loadings @ Q.mT`` are alike; longest columns first.

    For latent numbers whose priors differ, which may be exchanged with them but not turned.
    """
    middle = loadings[0]
    for _ in range(SWEEPS):
        found = _nearest_exchange(loadings, middle)
        before, middle = middle, (loadings @ found.mT).mean(0)
        if (middle - before).norm() <= CLOSE * before.norm():
            break
    order = middle.square().sum(0).argsort(descending=True)
    largest = middle.gather(0, middle.abs().argmax(0, keepdim=True))[0]
    sign = torch.where(largest < 0, -1.0, 1.0)
    return (sign[:, None] * found)[:, order]


def _nearest_exchange(loadings: Float[Tensor, "n D L"], middle: Float[Tensor, "D L"]) -> Float[Tensor, "n L L"]:
    """Signed permutations that bring ``loadings @ Q.mT`` nearest to ``middle``, by assignment."""
    alike = middle.mT @ loadings
    found = torch.zeros_like(alike)
    for own, q in zip(alike, found, strict=True):
        rows, columns = linear_sum_assignment(-own.abs().numpy())
        q[rows, columns] = torch.where(own[rows, columns] < 0, -1.0, 1.0).to(q)
    return found
