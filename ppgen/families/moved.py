r"""Parameters of a linear system whose latent space is stretched and shifted along one direction.

With :math:`G = I + (e^s - 1) v v^\top` and :math:`h' = G h + a v`, parameters follow so that nothing seen
becomes more or less likely, nor any step of h but the first, except by the measure of h:

.. math:: C' = C G^{-1}, \; c' = c - a C' v, \quad A' = G A G^{-1}, \; B' = G B, \; b' = G b + a (v - A' v), \quad
    \Lambda' = G^{-\top} \Lambda G^{-1}
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.families.regression import Regression

__all__ = ["Move", "moved"]


class Move(NamedTuple):
    """Moves along a unit vector: the logarithm of a factor, and what is added, of each of n."""

    direction: Float[Tensor, " L"]
    stretch: Float[Tensor, " n"]
    shift: Float[Tensor, " n"]

    def of(self, h: Float[Tensor, "*N L"]) -> Float[Tensor, "n *N L"]:
        """Latent vectors after each move."""
        v, y = self.direction, h @ self.direction
        stretch, shift = (amount.reshape(-1, *[1] * y.ndim) for amount in (self.stretch, self.shift))
        return h + (stretch.expm1() * y + shift)[..., None] * v

    def matrix(self, *, inverse: bool = False) -> Float[Tensor, "n L L"]:
        """What multiplies latent vectors, or undoes that."""
        v, amount = self.direction, -self.stretch if inverse else self.stretch
        return torch.eye(len(v), dtype=v.dtype, device=v.device) + amount.expm1()[:, None, None] * v[:, None] * v

    def one(self, number: int) -> "Move":
        """One of them."""
        return Move(self.direction, self.stretch[number, None], self.shift[number, None])


def moved(
    theta: Mapping[str, Tensor], dynamics: Regression, emission: Regression, move: Move, weights: str | None = None
) -> tuple[dict[str, Tensor], Float[Tensor, " n"]]:
    """The sites {site: (n, ...)} of one draw that follow moves of h, and the log Jacobian of this map.

    ``weights`` is a site whose last entries along its last axis weigh h, behind those of states of which one is one.
    """
    L, states = dynamics.outputs, dynamics.states or 1
    names = dynamics.family.coefficients, dynamics.family.sites[0], emission.family.coefficients
    A, root, C = (theta[site] for site in names)
    G, undo = _beside(move.matrix(), A), _beside(move.matrix(inverse=True), A)
    leaning = undo @ root
    new_root = torch.linalg.cholesky(leaning @ leaning.mT)
    new_A = G @ torch.cat([A[..., :L] @ undo, A[..., L:].expand(len(G), *A.shape[:-1], -1)], -1)
    off = move.direction - new_A[..., :L] @ move.direction
    new_A = torch.cat([new_A[..., :-1], (new_A[..., -1] + _beside(move.shift, off) * off)[..., None]], -1)
    found = {names[0]: new_A, names[1]: new_root, names[2]: _followed(C, slice(0, L), slice(-1, None), move)}
    powers = states * (A.shape[-1] - L) - C[..., 0].numel() - states * (L + 1)
    if weights is not None:
        w = theta[weights]
        found[weights] = _followed(w, slice(-L, None), slice(0, -L), move)
        powers -= w[..., 0].numel()
    order = torch.arange(L, 0, -1, dtype=C.dtype, device=C.device)
    ratio = root.diagonal(dim1=-2, dim2=-1).log() - new_root.diagonal(dim1=-2, dim2=-1).log()
    return found, powers * move.stretch + (order * ratio).flatten(1).sum(-1)


def _followed(C: Float[Tensor, "*D R"], own: slice, level: slice, move: Move) -> Float[Tensor, "n *D R"]:
    """Coefficients that say the same of moved h, which ``own`` columns weigh; ``level`` columns take the shift."""
    pull = C[..., own] @ _beside(move.matrix(inverse=True), C)
    along = pull @ move.direction
    found = C.expand(len(pull), *C.shape).clone()
    found[..., own] = pull
    found[..., level] -= (_beside(move.shift, along) * along)[..., None]
    return found


def _beside(value: Float[Tensor, "n *own"], like: Tensor) -> Tensor:
    """Values of moves, with axes of one in the place of the leading axes of what they multiply."""
    extra = like.ndim - 2 if value.ndim > 1 else like.ndim - 1
    return value.reshape(len(value), *[1] * extra, *value.shape[1:])
