"""Labels without a meaning of their own, named and numbered after the fit by what they turned out to be."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ppgen.data.inputs import INPUT
from ppgen.diagnostics.relabel import label_axes
from ppgen.errors import DataError
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.jumps import JumpDirichlet
from ppgen.model import Factor, Model
from ppgen.results.posterior import Draws, Factors
from ppgen.rng import private_stream

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["arbitrary_names", "names", "ordered", "renamed", "warn"]

ORDERING_DRAWS = 1000  # of variational factors, whose mean labels are ordered by
REMARKED = 100  # draws of the posterior of which a model may have something to say
NUMBERED = "numbered_by"  # attribute of a fit: axis -> what its labels were named or numbered by

log = logging.getLogger(__name__)


def names(fit: "Fit") -> dict[str, list[Any]]:
    """Labels of the axes of parameters and latents: those given to the fit, else those of its model."""
    own = {axis: labels.tolist() for axis, labels in fit.labels.items() if axis not in (*fit.model.data_dims, INPUT)}
    known = dict(fit.model.coords)
    if INPUT in fit.labels:
        known |= fit.model.input_coords(fit.labels[INPUT].tolist())
    found = {axis: list(labels) for axis, labels in known.items()} | own
    return found | {axis: list(labels) for axis, labels in fit.model.composed(found).items()} | own


def arbitrary_names(model: Model, attrs: Mapping[str, Any]) -> list[str]:
    """Warn of names that a model had before the fit for labels that it calls exchangeable."""
    known = attrs.get(NUMBERED, {})
    return [
        f"Names of {axis} ({', '.join(map(str, model.coords[axis]))}) were given before the fit and are arbitrary: "
        "look which is which, then use fit.rename, or fit.order."
        for axis in model.exchangeable
        if axis not in known and any(isinstance(label, str) for label in model.coords.get(axis, ()))
    ]


def warn(model: Model, posterior: Factors | Draws) -> None:
    """Say in the log which names are arbitrary, and what the model has to say of its posterior."""
    remarks: list[str] = []
    if type(model).remarks is not Model.remarks:
        with private_stream(0):
            remarks = model.remarks(posterior.draws(REMARKED))
    for words in [*arbitrary_names(model, {}), *remarks]:
        log.warning(words)


def renamed(fit: "Fit", names: Mapping[str, Sequence[str]]) -> "Fit":
    """The fit with names for the labels of some axes; see `Fit.rename`."""
    fit = fit.relabel()
    sizes = _sizes(fit)
    labels = dict(fit.labels)
    for axis, wanted in names.items():
        if axis not in sizes or axis in (*fit.model.data_dims, INPUT):
            free = sorted(set(sizes) - {*fit.model.data_dims, INPUT})
            raise DataError(
                f"rename: axes must be those of parameters, {free}, got {axis!r}; data brings its own labels"
            )
        new = [str(name) for name in wanted] if not isinstance(wanted, str) else [wanted]
        if len(new) != sizes[axis] or len(set(new)) < len(new):
            raise DataError(f"rename: {axis} must have {sizes[axis]} different names, got {new}; name every one")
        labels |= {name: np.asarray(new, dtype=str) for name in (axis, f"next_{axis}") if name in sizes}
    return replace(fit, labels=labels, attrs=_numbered(fit, {axis: "rename" for axis in names}))


def ordered(
    fit: "Fit", axis: str, by: str, where: Mapping[str, object], *, x: object, u: object, descending: bool
) -> "Fit":
    """The fit with the labels of one axis in another order; see `Fit.order`."""
    if axis not in fit.model.exchangeable:
        raise DataError(
            f"order: axis must be one whose labels {type(fit.model).__name__} calls exchangeable, "
            f"{list(fit.model.exchangeable)}, got {axis!r}; others keep their order, but fit.rename names them"
        )
    fit = fit.relabel()
    array = _by_site(fit, by) if x is None else _by_latent(fit, by, x, u)
    if axis not in array.dims:
        raise DataError(f"order: {by} must have the axis {axis}, got {tuple(array.dims)}; choose another")
    score = _selected(fit, array, axis, by, where)
    found = np.argsort(-score if descending else score, kind="stable")
    chosen = "".join(f", {dim}={value}" for dim, value in where.items())
    words = f"{'descending ' if descending else ''}{by}{chosen}"
    return _permuted(fit, axis, torch.as_tensor(found), words)


def _by_site(fit: "Fit", by: str) -> xr.DataArray:
    """Posterior mean of a site, with its axes named."""
    if by not in fit.model.dims:
        raise DataError(
            f"order: by must be a site of the fit, {sorted(fit.model.dims)}, got {by!r}; with x, a variable of "
            "latents(x)"
        )
    if isinstance(fit.posterior, Draws):
        mean = fit.posterior.sites[by].double().mean((0, 1))
    else:
        with private_stream(0):
            mean = fit.posterior.draws(ORDERING_DRAWS)[by].double().mean(0)
    return xr.DataArray(mean.numpy(force=True), dims=fit.model.dims[by])


def _by_latent(fit: "Fit", by: str, x: object, u: object) -> xr.DataArray:
    """Posterior probability or mean of a latent, averaged over the data."""
    found = fit.latents(x, u=u, random_seed=0)
    if by not in found or found[by].dtype.kind != "f":
        usable = [name for name, value in found.data_vars.items() if value.dtype.kind == "f"]
        raise DataError(
            f"order: by must be a variable of latents(x), {usable}, got {by!r}; without x, a site of the fit"
        )
    return found[by].drop_vars(list(found[by].coords)).mean([d for d in found[by].dims if d in fit.model.data_dims])


def _selected(fit: "Fit", array: xr.DataArray, axis: str, by: str, where: Mapping[str, object]) -> np.ndarray:
    """One number per label: ``array`` at the places ``where`` says along its other axes."""
    others = [str(dim) for dim in array.dims if dim != axis]
    known = names(fit) | {dim: labels.tolist() for dim, labels in fit.labels.items()}
    strange = sorted(set(where) - set(others))
    if strange:
        raise DataError(
            f"order: labels to select must be along the other axes of {by}, {others}, got {strange}; leave them out"
        )
    for dim in others:
        labels = list(known.get(dim, range(array.sizes[dim])))
        if dim not in where and len(labels) > 1:
            raise DataError(f"order: {by} also has the axis {dim}; choose a label of it, {dim}= one of {labels[:8]}")
        if dim in where and where[dim] not in labels:
            raise DataError(f"order: {dim} must be one of {labels[:8]}, got {where[dim]!r}; choose one")
        array = array.isel({dim: labels.index(where[dim]) if dim in where else 0})
    return array.values


def _permuted(fit: "Fit", axis: str, order: Tensor, words: str) -> "Fit":
    """Label k of the answer is label ``order[k]`` of ``fit``, in everything that it holds."""
    axes = label_axes(fit.model.dims, axis)
    own = {name: fit.labels[name][order.numpy()] for name in (axis, f"next_{axis}") if name in fit.labels}
    return replace(
        fit,
        model=fit.model.renumbered(axis, order),
        posterior=_permuted_posterior(fit.posterior, axes, order),
        labels={**fit.labels, **own},
        attrs=_numbered(fit, {axis: words}),
    )


def _permuted_posterior(
    posterior: Factors | Draws, axes: Mapping[str, tuple[int, ...]], order: Tensor
) -> Factors | Draws:
    if isinstance(posterior, Draws):
        return posterior.renumbered(
            {site: _along(v, axes.get(site, ()), order, 2) for site, v in posterior.sites.items()}
        )
    factors = {name: _permuted_factor(name, factor, axes, order) for name, factor in posterior.factors.items()}
    return Factors(factors, {site: _along(v, axes.get(site, ()), order, 0) for site, v in posterior.points.items()})


def _permuted_factor(name: str, factor: Factor, axes: Mapping[str, tuple[int, ...]], order: Tensor) -> Factor:
    """Natural parameters with their labels in another order: batch axes, and the probabilities of a Dirichlet."""
    family, eta = factor
    batch = family.batch_dims(eta)
    found = {axes.get(site, ()) for site in family.sites}
    if len(found) > 1 or any(
        axis >= batch and not isinstance(family, Dirichlet | JumpDirichlet) for axis in next(iter(found))
    ):
        raise DataError(f"order: every site of factor {name!r} must have the labels along its batch axes, got {axes}")
    moved = {}
    for key, value in eta.items():
        ahead = value.ndim - family.event_dims[key] - batch  # batch axes that a shared statistic lacks are negative
        here = tuple(axis + ahead for axis in next(iter(found)) if axis + ahead >= 0)
        moved[key] = _along(value, tuple(axis for axis in here if value.shape[axis] > 1), order, 0)
    return Factor(family, moved)


def _along(value: Tensor, axes: tuple[int, ...], order: Tensor, start: int) -> Tensor:
    for axis in axes:
        value = value.index_select(start + axis, order.to(value.device))
    return value


def _sizes(fit: "Fit") -> dict[str, int]:
    """Axis -> number of its labels, of all axes of parameters."""
    posterior = fit.posterior
    with private_stream(0):
        theta = posterior.draws(1)
    return {
        axis: size
        for site, axes in fit.model.dims.items()
        if site in theta
        for axis, size in zip(axes, theta[site].shape[1:], strict=True)
    }


def _numbered(fit: "Fit", words: Mapping[str, str]) -> dict[str, Any]:
    return {**fit.attrs, NUMBERED: {**fit.attrs.get(NUMBERED, {}), **words}}
