"""Predictions of any Pyro model given a draw of its parameters; knows nothing of engines.

Each answer is about one draw, with the program run as its author wrote it; :mod:`ppgen.predictions.over_draws` makes it
one about all draws at once. Summed-out latents are found by protocol alone: an observed site whose distribution has
``latents``. Small discrete sites that the draw leaves out, because a sampler enumerated them, are summed out again, or
drawn from their posterior given the rest, or, in replicated data, from their prior where each row has its own.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro import poutine
from torch import Tensor

from ppgen.data.arrays import exists as step_exists
from ppgen.data.parts import Inputs, parts
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import latent_sites, name_of, observed_sites, run
from ppgen.predictions.data_sites import check_given, check_rows_owned, data_site, owned_by_rows, row_axis
from ppgen.predictions.discrete_sites import discrete
from ppgen.predictions.local_sites import PROPOSALS, local, proposals_of, with_local, with_prior
from ppgen.predictions.outcomes import Outcome, filled, joined, outcomes
from ppgen.predictions.over_draws import Theta, at, gather, nothing, over_draws
from ppgen.predictions.summed_out import Latents, latents, summarized, unwrap
from ppgen.programs.isolated import isolated
from ppgen.programs.memory import memory

__all__ = [
    "PROPOSALS",
    "proposals_of",
    "Latents",
    "Theta",
    "at",
    "data_distribution",
    "exists",
    "forecast",
    "gather",
    "impute",
    "imputed",
    "latent_sites",
    "latents",
    "log_joint",
    "log_likelihood",
    "log_likelihoods",
    "missing_share",
    "other_outcomes",
    "over_draws",
    "prior",
    "priors",
    "recorded",
    "replicate",
    "replicates",
    "summarized",
]


def log_joint(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Float[Tensor, ""]:
    """Log p(theta, x), latents summed out, in the units of the sites; rows' own latents must be in ``theta``."""
    trace = run(model, theta, x, u)
    check_given(model, trace, theta, x)
    check_rows_owned(model, trace, theta, x)
    sites = discrete(model, theta, x, u, trace)
    if sites.plates:
        return sites.log_joint()
    with isolated():
        return torch.as_tensor(trace.log_prob_sum())


def log_likelihood(
    model: Model, theta: Theta, x: Tensor, *, u: Inputs = None, proposals: int = PROPOSALS
) -> Float[Tensor, " N"]:
    """Log p(x | theta) of each row of ``x``: every observed site inside the plate over rows.

    Discrete sites of a row are summed out, its own continuous ones integrated out by so many weighted ``proposals``. A
    discrete site that rows share is a parameter, drawn from its posterior given ``x``.
    """
    own = local(model, theta, x, u)
    if own is not None:
        return own.log_likelihood(proposals)
    trace = run(model, theta, x, u)
    check_given(model, trace, theta, x)
    seen_rows = owned_by_rows(model, trace, theta, x) if memory(model).data is not None else []
    if seen_rows:  # of a fit whose program cannot be run with other rows
        raise FitError(
            f"{name_of(model)}: log_likelihood must be of rows whose own latents are summed out, got draws of "
            f"site {seen_rows[0]!r} for each row, made knowing it; let the plate over rows take len(x) of them, or sum "
            "that site out (see ppgen.distributions)"
        )
    sites = discrete(model, theta, x, u, trace)
    sites.check_shared()
    if shared := sites.outside():
        sites, _ = sites.draw(shared)
        trace = run(model, sites.theta, x, u)
    seen = observed_sites(trace, sites.theta).values()
    if all([row_axis(model, site, x) is None for site in seen]):
        raise FitError(
            f"{name_of(model)}: the data must be sampled in a plate over its {len(x)} rows, found none; "
            "write `with pyro.plate(..., len(x)):` around its site"
        )
    return (
        sites.log_likelihood()
        if sites.plates
        else torch.stack(list(_scores(model, trace, sites.theta, x).values())).sum(0)
    )


def log_likelihoods(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> dict[str, Float[Tensor, " N"]]:
    """The terms of `log_likelihood`, one for each observed site in the plate over rows.

    Raises
    ------
    FitError : rows have latents of their own, so that their density is no sum over sites.
    """
    trace, theta = _run_with_discrete(model, theta, x, u, prior_of_rows=True)
    check_given(model, trace, theta, x)
    own = [
        *memory(model).of_rows,
        *latent_sites(trace),
        *(owned_by_rows(model, trace, theta, x) if memory(model).data is not None else []),
    ]
    if own:
        raise FitError(
            f"{name_of(model)}: the density of each site is known only if rows share all latents, but each row has "
            f"its own {own[0]!r}; ask for the density of rows"
        )
    return _scores(model, trace, theta, x)


def exists(model: Model, x: Float[Tensor, "N *event"]) -> Bool[Tensor, "N *event"]:
    """Entries that are part of a sequence: trailing NaN is the end of one, where the data has time."""
    if "time" not in model.data_dims:
        return torch.ones_like(x, dtype=torch.bool)
    inside = step_exists(x)
    return inside.reshape(*inside.shape, *[1] * (x.ndim - 2)).expand_as(x)


def missing_share(model: Model, x: Float[Tensor, "N *event"]) -> float:
    """Share of entries not observed, among those that exist; NaN where none does."""
    inside = exists(model, x)
    count = int(inside.sum())
    return int((torch.isnan(x) & inside).sum()) / count if count else float("nan")


def impute(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Tensor:
    """``x`` with each NaN replaced by one draw given everything observed; the rest bit for bit, trailing NaN too."""
    return imputed(model, theta, x, u=u)["x"]


def imputed(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> dict[str, Tensor]:
    """`impute` of the data, as ``"x"``, and of each outcome that is another argument, by its site."""
    found = _observed(model, theta, x, u, prior_of_rows=False)
    drawn = {name: filled(model, one) for name, one in found.items()}
    return _named(found, drawn, torch.where(exists(model, x), joined(found, drawn, x), x))


def other_outcomes(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> dict[str, Tensor]:
    """Values of the outcomes that are other arguments of a plain function, NaN and all, by their site."""
    theta = with_prior(model, theta, x, u)
    found = outcomes(model, run(model, theta, x, u), theta, x, u)
    return {name: one.value for name, one in found.items() if one.entries is None}


def replicate(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> Tensor:
    """One replicated data set of the shape of ``x``, NaN past the end of a sequence."""
    return replicates(model, theta, x, u=u)["x"]


def replicates(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None) -> dict[str, Tensor]:
    """`replicate` of the data, as ``"x"``, and of each outcome that is another argument, by its site."""
    found = _observed(model, theta, x, u, prior_of_rows=True)
    drawn = {name: _sampled(model, name, one) for name, one in found.items()}
    return _named(found, drawn, torch.where(exists(model, x), joined(found, drawn, x), torch.nan))


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
    theta = with_local(model, theta, x, u)
    trace = run(model, theta, x, u)
    if not _deterministic(trace):
        return {}
    sites = discrete(model, theta, x, u, trace)
    sites.check_shared()
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
    return gather(lambda _: prior(model, x, u=u), nothing(n))


def data_distribution(model: Model, theta: Theta, x: Tensor, *, u: Inputs = None, prior_of_rows: bool = True) -> Any:  # noqa: ANN401
    """Distribution of all of the data, which one site observes; see `_run_with_discrete` for discrete sites."""
    trace, theta = _run_with_discrete(model, theta, x, u, prior_of_rows=prior_of_rows)
    return unwrap(data_site(model, trace, theta, x)["fn"])


def _observed(model: Model, theta: Theta, x: Tensor, u: Inputs, *, prior_of_rows: bool) -> dict[str, Outcome]:
    """The values that the program observes; see `_run_with_discrete` for discrete sites."""
    trace, theta = _run_with_discrete(model, theta, x, u, prior_of_rows=prior_of_rows)
    return outcomes(model, trace, theta, x, u)


def _run_with_discrete(
    model: Model, theta: Theta, x: Tensor, u: Inputs, *, prior_of_rows: bool
) -> tuple[poutine.Trace, Theta]:
    """A run and its draw: latents that ``theta`` leaves out are drawn from their posterior given ``x``.

    What a row owns comes from its prior if ``prior_of_rows``.
    """
    theta = (with_prior if prior_of_rows else with_local)(model, theta, x, u)
    trace = run(model, theta, x, u)
    sites = discrete(model, theta, x, u, trace)
    sites.check_shared()
    if names := sites.outside() if prior_of_rows else list(sites.plates):
        sites, _ = sites.draw(names)
        trace = run(model, sites.theta, x, u)
    if not memory(model).row_sites:
        check_rows_owned(model, trace, theta, x)
    return trace, sites.theta


def _scores(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor) -> dict[str, Tensor]:
    """Log-probability of each observed site in the plate over rows, per row."""
    with isolated():
        trace.compute_log_prob()
    scores = {}
    for name, site in observed_sites(trace, theta).items():
        axis = row_axis(model, site, x)
        if axis is not None:
            score = site["log_prob"]
            score = score.expand(torch.broadcast_shapes(score.shape, (len(x),) + (1,) * (-axis - 1)))
            scores[name] = score.movedim(axis, 0).flatten(1).sum(-1) if score.ndim > 1 else score
    return scores


def _named(found: Mapping[str, Outcome], drawn: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The data and the other outcomes, by name."""
    return {"x": x, **{name: drawn[name] for name, one in found.items() if one.entries is None}}


def _sampled(model: Model, name: str, one: Outcome) -> Tensor:
    drawn: Tensor = one.fn.sample()
    if drawn.numel() != one.value.numel():
        raise FitError(
            f"{name_of(model)}: a replicate must have the shape of the data {tuple(one.value.shape)}, got "
            f"{tuple(drawn.shape)} from site {name!r}"
        )
    return drawn.reshape(one.value.shape)
