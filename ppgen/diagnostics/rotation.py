r"""Latent spaces that may be turned: the draws of their loadings, turned to be alike.

Where the prior of a latent space is isotropic, :math:`C` and :math:`C Q'` say the same of data for every orthogonal
:math:`Q`, and chains (or draws) that differ by it disagree in nothing but axes. Each draw gets the :math:`Q` for which
:math:`\lVert C Q' - M \rVert_F` is least, where :math:`M` is the mean of the loadings so turned (generalised Procrustes
analysis); its axes are the principal ones of M, longest first, each with its largest loading positive.

References: Schoenemann (1966); Gower (1975); Assmann, Boysen-Hogrefe & Pape (2016) for posteriors of factor models.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["turns"]

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
