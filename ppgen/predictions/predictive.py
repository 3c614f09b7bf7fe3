"""Predictions of any Pyro model given a draw of its parameters; knows nothing of engines.

Each answer is about one draw, with the program run as its author wrote it; :mod:`ppgen.predictions.over_draws` makes it
one about all draws at once. Summed-out latents are found by protocol alone: an observed site whose distribution has
``latents``. Small discrete sites that the draw leaves out, because a sampler enumerated them, are summed out again, or
drawn from their posterior given the rest, or, in replicated data, from their prior where each row has its own.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro import poutine
from torch import Tensor

from ppgen.data.arrays import lengths
from ppgen.data.parts import Inputs, parts
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import latent_sites, name_of, observed_sites, run
from ppgen.predictions.data_sites import check_given, check_rows_owned, data_site, owned_by_rows, row_axis
from ppgen.predictions.discrete_sites import discrete
from ppgen.predictions.over_draws import Theta, at, gather, over_draws
from ppgen.predictions.summed_out import Latents, latents, summarized, unwrap
from ppgen.programs.isolated import isolated
from ppgen.programs.memory import memory
from ppgen.programs.scores import innermost

__all__ = [
    "Latents",
    "Theta",
    "at",
    "data_distribution",
    "exists",
    "forecast",
    "gather",
    "impute",
    "latent_sites",
    "latents",
    "log_joint",
    "log_likelihood",
    "missing_share",
    "over_draws",
    "prior",
    "priors",
    "recorded",
    "replicate",
    "summarized",
]


def log_joint(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Float[Tensor, ""]:
    """Log p(theta, x), latents summed out, in the units of the sites."""
    trace = run(model, theta, x, u)
    check_given(model, trace, theta, x)
    check_rows_owned(model, trace, theta, x)
    sites = discrete(model, theta, x, u, trace)
    if sites.plates:
        return sites.log_joint()
    with isolated():
        return torch.as_tensor(trace.log_prob_sum())


def log_likelihood(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Float[Tensor, " N"]:
    """Log p(x | theta) of each row of ``x``: every observed site inside the plate over rows.

    Discrete sites of a row are summed out. One that rows share is a parameter, drawn from its posterior given ``x``.
    """
    trace = run(model, theta, x, u)
    check_given(model, trace, theta, x)
    own = owned_by_rows(trace, theta, x) if memory(model).data is not None else []
    if own:  # of a fit, whose draws have seen the rows
        raise FitError(
            f"{name_of(model)}: log_likelihood must be of rows whose own latents are summed out, got draws of "
            f"site {own[0]!r} for each row, made knowing it; sum that site out (see ppgen.distributions)"
        )
    sites = discrete(model, theta, x, u, trace)
    if shared := sites.outside(len(x)):
        sites, _ = sites.draw(shared)
        trace = run(model, sites.theta, x, u)
    seen = observed_sites(trace, sites.theta).values()
    if all([row_axis(model, site, x) is None for site in seen]):
        raise FitError(
            f"{name_of(model)}: the data must be sampled in a plate over its {len(x)} rows, found none; "
            "write `with pyro.plate(..., len(x)):` around its site"
        )
    return sites.log_likelihood() if sites.plates else torch.stack(_scores(model, trace, sites.theta, x)).sum(0)


def exists(model: Model, x: Float[Tensor, "N *event"]) -> Bool[Tensor, "N *event"]:
    """Entries that are part of a sequence: trailing NaN is the end of one, where the data has time."""
    if "time" not in model.data_dims:
        return torch.ones_like(x, dtype=torch.bool)
    inside = torch.arange(x.shape[1], device=x.device) < lengths(x)[:, None]
    return inside.reshape(*inside.shape, *[1] * (x.ndim - 2)).expand_as(x)


def missing_share(model: Model, x: Float[Tensor, "N *event"]) -> float:
    """Share of entries not observed, among those that exist; NaN where none does."""
    return float(torch.isnan(x[exists(model, x)]).double().mean())


def impute(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Tensor:
    """``x`` with each NaN replaced by one draw given everything observed; the rest bit for bit, trailing NaN too."""
    fn = data_distribution(model, theta, x, u=u, prior_of_rows=False)
    if hasattr(fn, "impute"):
        with torch.no_grad():
            drawn = fn.impute(x)
    elif _factorises(fn):
        drawn = fn.sample()
    else:
        raise FitError(
            f"{name_of(model)}: the distribution of the data must say how missing entries follow from observed ones, "
            f"got {type(fn).__name__}; use one whose entries are independent given the parameters, or give it "
            "`impute(x)`"
        )
    return torch.where(torch.isnan(x) & exists(model, x), _reshape(model, drawn, x), x)


def replicate(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Tensor:
    """One replicated data set of the shape of ``x``, NaN past the end of a sequence."""
    drawn = data_distribution(model, theta, x, u=u).sample()
    return torch.where(exists(model, x), _reshape(model, drawn, x), torch.nan)


def forecast(model: Model, theta: Theta, x: Tensor, horizon: int, *, u: Inputs = None) -> Tensor:
    """One draw of the ``horizon`` steps that follow each sequence's last observation, (N, horizon, ...).

    Inputs (N, T + horizon, U) have a row for each step ahead; the program then sees so many steps, the new ones empty.
    """
    longer = x
    if any(part.ndim == 3 and part.shape[1] == x.shape[1] + horizon for part in parts(u)):
        longer = torch.cat([x, x.new_full((len(x), horizon, *x.shape[2:]), torch.nan)], 1)
    fn = data_distribution(model, theta, longer, u=u, prior_of_rows=False)
    if not hasattr(fn, "forecast"):
        raise FitError(
            f"{name_of(model)}: forecast needs a distribution over time series, got {type(fn).__name__}; "
            "it must have `forecast(x, horizon)`"
        )
    with torch.no_grad():
        return fn.forecast(x, horizon)


def recorded(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> dict[str, Tensor]:
    """Values of the program's ``pyro.deterministic`` sites; of discrete sites that were summed out one draw goes in."""
    trace = run(model, theta, x, u)
    if not _deterministic(trace):
        return {}
    sites = discrete(model, theta, x, u, trace)
    if sites.plates:
        sites, _ = sites.draw(list(sites.plates))
        trace = run(model, sites.theta, x, u)
    return _deterministic(trace)


def _deterministic(trace: poutine.Trace) -> dict[str, Tensor]:
    sites: dict[str, Any] = dict(trace.nodes)
    return {
        name: site["value"]
        for name, site in sites.items()
        if site["type"] == "sample" and site["infer"].get("_deterministic") and isinstance(site["value"], Tensor)
    }


def prior(model: Model, x: Tensor, *, u: Inputs = None) -> dict[str, Tensor]:
    """One draw of every parameter from the prior."""
    return {name: site["value"] for name, site in latent_sites(run(model, {}, x, u)).items()}


def priors(model: Model, x: Tensor, n: int, *, u: Inputs = None) -> dict[str, Tensor]:
    """``n`` draws of every parameter from the prior, {site: (n, ...)}."""
    return gather(lambda _: prior(model, x, u=u), {"": torch.empty(n)})


def data_distribution(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None, prior_of_rows: bool = True) -> Any:  # noqa: ANN401
    """Distribution of the data: that of site ``"x"``, else of the one observed site of the shape of ``x``.

    Discrete sites that ``theta`` leaves out are drawn from their posterior given ``x``, those of a row from their
    prior if ``prior_of_rows``.
    """
    trace = run(model, theta, x, u)
    sites = discrete(model, theta, x, u, trace)
    if names := sites.outside(len(x)) if prior_of_rows else list(sites.plates):
        sites, _ = sites.draw(names)
        trace = run(model, sites.theta, x, u)
    check_rows_owned(model, trace, theta, x)
    return unwrap(data_site(model, trace, sites.theta, x)["fn"])


def _scores(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor) -> list[Tensor]:
    """Log-probability of each observed site in the plate over rows, per row."""
    with isolated():
        trace.compute_log_prob()
    scores = []
    for site in observed_sites(trace, theta).values():
        axis = row_axis(model, site, x)
        if axis is not None:
            score = site["log_prob"]
            score = score.expand(torch.broadcast_shapes(score.shape, (len(x),) + (1,) * (-axis - 1)))
            scores.append(score.movedim(axis, 0).flatten(1).sum(-1) if score.ndim > 1 else score)
    return scores


def _factorises(fn: Any) -> bool:  # noqa: ANN401
    """Whether entries are independent given the parameters."""
    return len(innermost(fn).event_shape) == 0


def _reshape(model: Model, drawn: Tensor, x: Tensor) -> Tensor:
    if drawn.numel() != x.numel():
        raise FitError(
            f"{name_of(model)}: a replicate must have the shape of the data {tuple(x.shape)}, got {tuple(drawn.shape)}"
        )
    return drawn.reshape(x.shape).to(x.dtype)
