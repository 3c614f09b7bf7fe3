"""A fit in the ArviZ schema.

Beside the groups of the schema, ``sample_stats`` of a variational fit holds ``log_q`` and, with the data, ``lp``: the
log densities of each draw under q and under the model, which ``arviz_stats.loo_approximate_posterior`` takes. The unit
of leave-one-out is a row of the data: a whole sequence of a time series, whose steps are not independent given the
parameters. A row without observations has no log-likelihood. See `by_entry` for tools that need one per entry.
"""

import logging
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import arviz_base
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.arguments import require_memory
from ppgen.collapsed.estimated import estimates
from ppgen.data.inputs import INPUT, input_dims
from ppgen.data.parts import Inputs
from ppgen.errors import DataError, FitError
from ppgen.families.regression import OF_ONE
from ppgen.predictions import predictive
from ppgen.predictions.local_sites import for_rows
from ppgen.predictions.over_draws import NOTHING
from ppgen.predictions.weights import watched
from ppgen.programs.memory import memory
from ppgen.results.answers import outcome_dims, outcomes, shares_nothing
from ppgen.results.checks import with_rows
from ppgen.results.numbering import names
from ppgen.results.posterior import Draws, Factors
from ppgen.results.reading import Read

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["to_arviz"]

Group = dict[str, np.ndarray]
Chains = tuple[dict[str, Tensor], dict[str, Tensor]]

log = logging.getLogger(__name__)

PRIOR_DRAWS = 500
OTHER = "other_"  # begins the name of the second axis of a square matrix


def to_arviz(fit: "Fit", read: Read | None, draws: int) -> xr.DataTree:
    """DataTree of ``fit``, with at most ``draws`` draws of each chain; ``read`` holds the data, if it is at hand."""
    shared = fit.posterior.chains(draws)
    theta, stats = _with_rows(fit, read, shared, _records(fit, draws))
    _check_names(list(theta), {axis for axes in fit.model.dims.values() for axis in axes})
    groups = {"posterior": _numpy({**theta, **_recorded(fit, theta, read)})}
    stats = _sample_stats(fit, theta, read, stats)
    groups |= {"sample_stats": _numpy(stats)} if stats else {}
    dims = {site: list(names) for site, names in fit.model.dims.items()}
    coords: dict[str, Any] = names(fit)
    coords |= {
        axis: labels for axis, labels in fit.labels.items() if axis not in (fit.model.data_dims[0], "time", INPUT)
    }
    notes: dict[str, str] = {}
    if read is not None:
        observations, x, u = read
        others = outcomes(fit, x, u)
        with estimates() as note, watched("to_arviz"):
            groups |= _data_groups(fit, shared, x, u, others)
        notes = note.attrs
        rows = list(map(str, observations.dims[:1]))
        dims |= dict.fromkeys(groups.get("log_likelihood", {}), rows)
        dims |= {name: list(outcome_dims(fit.model, name, value, observations)) for name, value in others.items()}
        dims |= {"x": list(map(str, observations.dims))}
        dims |= input_dims(u, fit.model.data_dims)
        _check_names(list(u) if isinstance(u, Mapping) else [], set(map(str, observations.dims)))
        coords |= {str(dim): observations[dim].values for dim in observations.dims if dim in observations.coords}
    tree = _tree(groups, dims, coords, {"engine": str(fit.attrs.get("engine", "")), **notes})
    if fit.params:
        tree["params"] = _params(fit.params, dims, coords)
    _name_inputs(fit, tree)
    _tidy(tree, coords)
    if read is None or "log_likelihood" not in tree:
        return tree
    return _without_empty_rows(tree, str(read[0].dims[0]))


def _name_inputs(fit: "Fit", tree: xr.DataTree) -> None:
    """Label inputs, and parameters along them, by the names of the columns that the fit had."""
    names = fit.labels.get(INPUT)
    for group in ("constant_data", "posterior", "prior"):
        own = group != "constant_data" and INPUT in fit.model.coords
        if names is not None and group in tree and tree[group].sizes.get(INPUT) == len(names) and not own:
            tree[group] = xr.DataTree(tree[group].to_dataset().assign_coords({INPUT: names}))


def _tidy(tree: xr.DataTree, coords: Mapping[str, Any]) -> None:
    """Name the other axis of square matrices over labels as the first, and drop axes that are one long by design."""
    for group in tree.children.keys() & {"posterior", "prior", "params"}:
        found = tree[group].to_dataset()
        found = found.squeeze([axis for axis in OF_ONE if found.sizes.get(axis) == 1], drop=True)
        first = {str(dim): str(dim).removeprefix(OTHER) for dim in found.dims if str(dim).startswith(OTHER)}
        alike = [dim for dim, own in first.items() if dim not in coords and found.sizes.get(own) == found.sizes[dim]]
        found = found.assign_coords({dim: found[first[dim]].values for dim in alike})
        tree[group] = xr.DataTree(_in_order(found))


def _in_order(found: xr.Dataset) -> xr.Dataset:
    """The same, with variables in an order that brings up axes as every variable has them, as far as there is one.

    ``arviz_stats.summary`` labels entries by the order in which axes come up. Where ``dynamics`` (latent, regressor)
    came first, entries of ``loading`` (feature, regressor) got each other's names.
    """
    axes = {str(name): list(map(str, value.dims)) for name, value in found.data_vars.items()}
    before: dict[str, set[str]] = {}
    for own in axes.values():
        for first, second in pairwise(own):
            before.setdefault(second, set()).add(first)
    placed, order, left = list[str](), list[str](), list(axes)
    while left:
        ready = (name for name in left if _fits(axes[name], placed, before))
        name = next(ready, left[0])
        placed += [axis for axis in axes[name] if axis not in placed]
        order.append(name)
        left.remove(name)
    return found[order]


def _fits(own: list[str], placed: list[str], before: Mapping[str, set[str]]) -> bool:
    """Whether all that must come before the new ones among ``own`` axes is placed, or comes before them there."""
    return all(axis in placed or before.get(axis, set()) <= {*placed, *own[:number]} for number, axis in enumerate(own))


def _check_names(sites: list[str], axes: set[str]) -> None:
    """Names that would become groups or coordinates of the tree, instead of variables."""
    bad = [name for name in sites if "/" in name or name in {"chain", "draw", *axes}]
    if bad:
        raise DataError(
            f'to_arviz: sites and inputs must have names without "/" that no axis has, got {bad}; rename them'
        )


def _records(fit: "Fit", draws: int) -> dict[str, Tensor]:
    return fit.posterior.chain_stats(draws) if isinstance(fit.posterior, Draws) else {}


def _with_rows(fit: "Fit", read: Read | None, theta: dict[str, Tensor], stats: dict[str, Tensor]) -> Chains:
    """Draws and records, with those of what rows own where a guide knows of it."""
    if read is None or memory(fit.model).guide is None:
        return theta, stats
    sites = memory(fit.model).row_sites or {}
    numbers = sum(site.free_shape.numel() for site in sites.values()) * len(read[1])
    require_memory("to_arviz", len(next(iter(stats.values()))[0]), numbers, "pass fewer draws")
    flat, records = ({name: value[0] for name, value in part.items()} for part in (theta, stats))  # of one chain
    whole, records = with_rows(fit, read, (flat, records))
    return {name: value[None] for name, value in whole.items()}, {name: value[None] for name, value in records.items()}


def _sample_stats(
    fit: "Fit", theta: dict[str, Tensor], read: Read | None, stats: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The sampler's records; of a variational fit the log densities of ``theta`` under q, and under the model."""
    summed = fit.posterior.discrete if isinstance(fit.posterior, Draws) else {}
    flat = {site: value.flatten(0, 1) for site, value in theta.items() if site not in summed}
    if isinstance(fit.posterior, Factors):
        stats = {"log_q": fit.posterior.log_prob(flat)[None]}
    if read is None or "log_q" not in stats:
        return stats
    _, x, u = read
    joint = predictive.gather(lambda one: predictive.log_joint(fit.model, one, x, u=u), flat)
    return {**stats, "lp": joint.reshape(stats["log_q"].shape)}


def _without_empty_rows(tree: xr.DataTree, row: str) -> xr.DataTree:
    """Leave rows in which nothing was observed out of the log-likelihood: they have none, and break PSIS."""
    observed = [value for value in tree["observed_data"].data_vars.values() if row in value.dims]
    some = [value.notnull().any([dim for dim in value.dims if dim != row]).values for value in observed]
    seen = np.flatnonzero(np.any(some, axis=0))
    tree["log_likelihood"] = xr.DataTree(tree["log_likelihood"].to_dataset().isel({row: seen}))
    return tree


def _data_groups(
    fit: "Fit", theta: dict[str, Tensor], x: Tensor, u: Inputs, others: Mapping[str, Tensor]
) -> dict[str, Group]:
    """Likelihood, predictive and prior groups."""
    shape = next(iter(theta.values())).shape[:2]
    count = shape.numel()
    size = x.numel() + sum(value.numel() for value in others.values())
    require_memory("to_arviz", count + PRIOR_DRAWS, size, "pass fewer draws, or no x")
    flat = for_rows(fit.model, {site: value.flatten(0, 1) for site, value in theta.items()}, x, u)
    prior = predictive.priors(fit.model, x, min(count, PRIOR_DRAWS), u=u)

    def likelihood(theta: predictive.Theta) -> dict[str, Tensor]:
        return {"x": predictive.log_likelihood(fit.model, theta, x, u=u)}

    def likely_rows() -> Group:
        if not shares_nothing(fit):
            return _answers(likelihood, flat, shape)
        once = predictive.log_likelihood(fit.model, {}, x, u=u, proposals=predictive.proposals_of(count))
        return _numpy({"x": once.expand(*shape, len(x))})

    def of_sites(theta: predictive.Theta) -> dict[str, Tensor]:
        return predictive.log_likelihoods(fit.model, theta, x, u=u)

    def replicate(theta: predictive.Theta) -> dict[str, Tensor]:
        return predictive.replicates(fit.model, theta, x, u=u)

    constant = {} if u is None else {"constant_data": _numpy(u if isinstance(u, Mapping) else {"u": u})}
    likely = _unless_refused("log_likelihood", likely_rows)
    if likely and _has_several_sites(of_sites, flat):
        likely["log_likelihood"] = {**_answers(of_sites, flat, shape), **likely["log_likelihood"]}
    prior_of_all = {**prior, **_deterministic(fit, prior, x, u)}
    return (
        likely
        | {
            "posterior_predictive": _answers(replicate, flat, shape),
            "prior": _numpy({site: value[None] for site, value in prior_of_all.items()}),
            "prior_predictive": _answers(replicate, prior, torch.Size([1, min(count, PRIOR_DRAWS)])),
            "observed_data": _numpy({"x": x, **others}),
        }
        | constant
    )


def _recorded(fit: "Fit", theta: Mapping[str, Tensor], read: Read | None) -> dict[str, Tensor]:
    """Values of ``pyro.deterministic`` at each draw (C, S, ...): the program is run again, which takes the data."""
    shape = next(iter(theta.values())).shape[:2]
    flat = {site: value.flatten(0, 1) for site, value in theta.items()}
    if read is not None:
        _, x, u = read
        flat = for_rows(fit.model, flat, x, u)
    elif not getattr(fit.model, "takes_data", True):
        x, u = torch.zeros(0, dtype=torch.float64), None
    else:
        return {}
    return {name: value.unflatten(0, shape) for name, value in _deterministic(fit, flat, x, u).items()}


def _deterministic(fit: "Fit", draws: Mapping[str, Tensor], x: Tensor, u: Inputs) -> dict[str, Tensor]:
    """Values of ``pyro.deterministic`` at draws {site: (S, ...)}; an empty dict where the program has none."""

    def answer(theta: predictive.Theta) -> dict[str, Tensor]:
        return predictive.recorded(fit.model, theta, x, u=u)

    if not answer(predictive.at(draws, 0)):
        return {}
    found: dict[str, Tensor] = predictive.gather(answer, draws)
    return found


def _params(params: Mapping[str, Tensor], dims: dict[str, list[str]], coords: dict[str, Any]) -> xr.DataTree:
    """Values that the program's own parameters learnt, without draws."""
    values = {name: value[None, None] for name, value in params.items()}
    labelled = _tree({"posterior": _numpy(values)}, dims, coords, {})["posterior"].to_dataset()
    return xr.DataTree(labelled.isel(chain=0, draw=0, drop=True))


def _unless_refused(group: str, answer: Callable[[], Group]) -> dict[str, Group]:
    """A group of the tree; nothing, and a warning in the log, if the program has no such answer."""
    try:
        return {group: answer()}
    except FitError as error:
        log.warning("to_arviz: the group %s is left out: %s", group, error)
        return {}


def _has_several_sites(of_sites: Callable[[predictive.Theta], dict[str, Tensor]], draws: Mapping[str, Tensor]) -> bool:
    """Tell whether a row's density is that of several sites whose densities are known."""
    try:
        return len(of_sites(predictive.at(draws, 0))) > 1
    except FitError:
        return False


def _answers(
    answer: Callable[[predictive.Theta], dict[str, Tensor]], draws: Mapping[str, Tensor], shape: torch.Size
) -> Group:
    found: dict[str, Tensor] = predictive.gather(answer, draws)
    return _numpy({name: value.unflatten(0, shape) for name, value in found.items()})


def _tree(
    groups: dict[str, Group], dims: dict[str, list[str]], coords: dict[str, Any], attrs: dict[str, str]
) -> xr.DataTree:
    """Groups with named axes; every axis without labels of its own is numbered from 0."""
    return arviz_base.from_dict(
        groups,
        dims=dims,
        coords=coords,
        index_origin=0,
        check_conventions=False,
        attrs={name: attrs for name in groups} if attrs else None,
    )


def _numpy(values: Mapping[str, Tensor]) -> Group:
    return {name: value.numpy(force=True) for name, value in values.items() if name != NOTHING}
