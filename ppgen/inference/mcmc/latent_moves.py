r"""Moves of a Gibbs sampler along which a latent space, and the parameters that go with it, change at once.

Drawn in turn, the scale of h and that of its coefficients hold each other where they are, and so do its level and
theirs. A stretch :math:`e^s` or a shift a along a random direction leaves all that is seen as it is; one of both at a
time is drawn from

.. math:: p(s, a) \propto p(\theta')\, \Big|\frac{\partial \theta'}{\partial \theta}\Big|
    \prod_n e^s\, \mathcal N(h'_{n1} \mid 0, I)

(the factors of the other steps cancel) among equally spaced values, a window of which is laid around zero at random:
from the value that is chosen the same window would be laid as often, so that the posterior stays as it is.

Reference: Liu & Sabatti (2000), "Generalised Gibbs sampler and multigrid Monte Carlo for Bayesian computation".
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.families.moved import Move
from ppgen.model import Conjugate

__all__ = ["drawn_moves"]

WINDOW = 32  # values to choose among
NARROW, WIDE = 0.01, 0.5  # between neighbours; each time another space, as likely at every scale

Sites = dict[str, Tensor]


def drawn_moves(
    model: Conjugate,
    theta: Sites,
    first: Float[Tensor, "N L"],
    log_prior: Callable[[Mapping[str, Tensor]], Tensor],
) -> tuple[Sites, list[Move]]:
    """Parameters after a stretch and a shift for each dimension of the latent space, and the moves of h.

    ``first`` are the latent vectors of the first step of each sequence, whose prior is standard normal. ``log_prior``
    is the log prior density of n values of some sites, all of their factors.
    """
    moves: list[Move] = []
    for number in range(2 * model.latent_width):
        move = _window(first, stretches=number % 2 == 0)
        found, jacobian = model.moved(theta, move)
        score = log_prior({**theta, **found}) + jacobian + len(first) * move.stretch
        score = score - move.of(first).square().flatten(1).sum(-1) / 2
        chosen = int(torch.multinomial((score - score.max()).exp(), 1))
        moves.append(move.one(chosen))
        theta = theta | {site: value[chosen] for site, value in found.items()}
        first = moves[-1].of(first)[0]
    return theta, moves


def _window(like: Float[Tensor, "N L"], *, stretches: bool) -> Move:
    """Equally spaced moves along a random direction, zero somewhere among them."""
    v = torch.randn(like.shape[-1], dtype=like.dtype, device=like.device)
    space = NARROW * (WIDE / NARROW) ** torch.rand((), dtype=like.dtype, device=like.device)
    amounts = space * (torch.arange(WINDOW, device=like.device) - torch.randint(WINDOW, (), device=like.device))
    zeros = torch.zeros_like(amounts)
    return Move(v / v.norm(), amounts, zeros) if stretches else Move(v / v.norm(), zeros, amounts)
