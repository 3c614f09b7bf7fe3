r"""Draws of the Cholesky factor of an LKJ-distributed correlation matrix, by the onion method.

Row :math:`i` of the factor (from 0) is :math:`(\sqrt{y}\, w, \sqrt{1 - y})` with :math:`w` uniform on the sphere in
:math:`i` dimensions and

.. math:: y \sim \mathrm{Beta}\left(\tfrac{i}{2},\; \eta + \tfrac{D - 1 - i}{2}\right).

torch's own sampler (2.13, and earlier) takes :math:`i - \tfrac12` for the first parameter, which is right for
:math:`D = 2` only.

References: Lewandowski, Kurowicka & Joe (2009), section 3.2.
"""

import torch
from torch import Tensor

__all__ = ["draw_cholesky"]


def draw_cholesky(concentration: Tensor, dim: int) -> Tensor:
    """One lower-triangular factor, D by D, for each entry of ``concentration``, from torch's generator."""
    row = torch.arange(1, dim, dtype=concentration.dtype, device=concentration.device)
    shape = (*concentration.shape, dim - 1)
    beta = torch.distributions.Beta(
        (row / 2).expand(shape), concentration[..., None] + (dim - 1 - row) / 2, validate_args=False
    )
    length = torch.cat([concentration.new_zeros(*concentration.shape, 1), beta.sample()], -1)
    normal = torch.distributions.Normal(concentration.new_zeros(*concentration.shape, dim, dim), 1.0).sample().tril(-1)
    direction = normal / normal.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(normal.dtype).tiny)
    smallest = torch.finfo(normal.dtype).tiny
    return length.sqrt()[..., None] * direction + torch.diag_embed((1 - length).clamp_min(smallest).sqrt())
