r"""Expected information of entries that were not observed: what one of them, measured next, would teach of others.

For parameters :math:`\theta`, a candidate entry c, targets T and the observed entries s of its row,

.. math::
    I(x_c; x_T \mid x_s, \theta) = \mathrm E \left[\log p(x_c, x_T, x_s) - \log p(x_c, x_s) - \log p(x_T, x_s)
    + \log p(x_s)\right],

where c and T are drawn given s. Each density is that of a row with the other entries left out, so one draw of all
hidden entries gives one term for every candidate, and their mean has no bias where densities are exact. A nested
average, which is biased, is not needed, for the parameters stand fixed.

Reference: Lindley (1956), "On a measure of the information provided by an experiment".
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppgen.data.parts import Inputs, each
from ppgen.model import Model
from ppgen.predictions.over_draws import Theta
from ppgen.predictions.predictive import impute, log_likelihood
from ppgen.programs.memory import memory
from ppgen.programs.program import Function

__all__ = ["looks", "terms"]


def looks(candidates: Bool[Tensor, "N *event"]) -> list[Bool[Tensor, "N *event"]]:
    """Split candidates into as few parts as can be that hold at most one entry of each row."""
    number = candidates.flatten(1).long().cumsum(1).reshape(candidates.shape)
    return [candidates & (number == look + 1) for look in range(int(number.max()))]


def terms(
    model: Model, theta: Theta, x: Tensor, parts: list[Tensor], targets: Bool[Tensor, "N *event"], u: Inputs = None
) -> Float[Tensor, "looks N"]:
    """Terms of the expectation at one draw, of the candidate that each row has in each of ``parts``.

    ``targets`` are entries that were not observed; a candidate is no target of its own.
    """
    drawn = impute(model, theta, x, u=u)
    seen = ~torch.isnan(x)
    kept = [seen, *[seen | part for part in parts], *[seen | (targets & ~part) for part in parts]]
    kept += [seen | targets | part for part in parts]
    scores = _scores(model, theta, [torch.where(which, drawn, torch.nan) for which in kept], u)
    alone, others = scores[0], scores[1:].unflatten(0, (3, len(parts)))
    return others[2] - others[1] - others[0] + alone


def _scores(model: Model, theta: Theta, data: list[Tensor], u: Inputs) -> Float[Tensor, "data N"]:
    """Densities of several sets of the same rows: in one run, unless rows have arguments or latents of their own."""
    if isinstance(model, Function) or memory(model).of_rows:
        return torch.stack([log_likelihood(model, theta, one, u=u) for one in data])
    repeated = each(u, lambda part: torch.cat([part] * len(data)))
    return log_likelihood(model, theta, torch.cat(data), u=repeated).unflatten(0, (len(data), -1))
