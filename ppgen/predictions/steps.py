"""The predictive density of each step of a time series given the steps before it."""

import torch
from jaxtyping import Float
from torch import Tensor

from ppgen.data.parts import Inputs
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import name_of, observed_sites, run
from ppgen.predictions.discrete_sites import discrete
from ppgen.predictions.over_draws import Theta
from ppgen.programs.memory import memory

__all__ = ["averaged", "log_steps"]


def log_steps(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Float[Tensor, "N T"]:
    """Log p(x_t | x_1, ..., x_{t-1}, theta) of each step of each row of ``x``; zero past the end of a sequence.

    Raises
    ------
    FitError : the data does not come from one distribution that knows.
    """
    if own := memory(model).of_rows:
        raise FitError(
            f"{name_of(model)}: densities of steps need rows without latents of their own, but each row has its own "
            f"{own[0]!r}; ask for densities of rows"
        )
    trace = run(model, theta, x, u)
    seen = observed_sites(trace, theta)
    fns = [site["fn"] for site in seen.values()]
    if len(fns) != 1 or not hasattr(fns[0], "log_prob_steps") or discrete(model, theta, x, u, trace).plates:
        found = ", ".join(f"{name} from {type(fn).__name__}" for name, fn in zip(seen, fns, strict=True)) or "none"
        raise FitError(
            f'{name_of(model)}: per="step" must be of one site whose latents are summed out exactly, as in an HMM or '
            f'an LDS, got {found}; ask for per="row", or give a distribution of your own `log_prob_steps(x)`'
        )
    with torch.no_grad():
        return torch.as_tensor(fns[0].log_prob_steps(x))


def averaged(draws: Float[Tensor, "S N T"]) -> Float[Tensor, "N T"]:
    r"""Log of the predictive density of each step over draws of the parameters.

    .. math:: \log p(x_t \mid x_{<t}) = \log \textstyle\sum_s p(x_{\le t} \mid \theta_s)
              - \log \sum_s p(x_{<t} \mid \theta_s)

    so that the steps of a row sum to the log of the mean of p(x | theta_s): the steps seen so far weigh the draws.
    """
    log_sum = torch.logsumexp(draws.cumsum(-1), 0)
    before = torch.cat([torch.full_like(log_sum[..., :1], len(draws)).log(), log_sum[..., :-1]], -1)
    return torch.where(before == -torch.inf, 0.0, log_sum - before)
