"""Discrete sites that rows share: drawn once given the data of a fit, for questions about other rows."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ppgen.data.parts import Inputs
from ppgen.model import Model
from ppgen.predictions.discrete_sites import draw_shared
from ppgen.programs.rows import remember_row_plates
from ppgen.results.posterior import Draws, Factors
from ppgen.rng import private_stream

__all__ = ["with_shared"]

LEAST = 1000  # draws of them that a fit keeps, however few it has of its other sites

log = logging.getLogger(__name__)


def with_shared(model: Model, posterior: Draws | Factors, x: object, u: Inputs, seed: int) -> Draws | Factors:
    """The posterior with draws of the discrete sites that rows share, which an engine summed out, given its data.

    Without any where the program has no such site, or what it sums out cannot be drawn so; then a fit that is asked
    about other rows says so.
    """
    if not isinstance(posterior, Draws) or not posterior.sites or not isinstance(x, Tensor) or not x.ndim:
        return posterior
    remember_row_plates(model, x, u)
    times = -(-LEAST // posterior.size)
    theta = {site: value.flatten(0, 1).repeat_interleave(times, 0) for site, value in posterior.sites.items()}
    try:
        with private_stream(seed), torch.no_grad():
            drawn = draw_shared(model, theta, x, u)
    except Exception as error:  # noqa: BLE001 (whatever it is, the fit is worth more than these draws)
        log.warning("fit: no draws are kept of discrete sites that rows share: %s", error)
        return posterior
    return replace(
        posterior, discrete={site: value.unflatten(0, (posterior.shape[0], -1)) for site, value in drawn.items()}
    )
