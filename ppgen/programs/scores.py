"""Checks of a trace before a run is paid for: each value is scored once, and none of them is NaN.

Pyro's own validation asks for the same shapes, but it is off where a program is mapped over draws, and for samplers.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppgen.errors import DataError

__all__ = ["NOTHING_OBSERVED", "WRAPPERS", "check_sites", "innermost", "is_mapped", "observes"]

WRAPPERS = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution)


NOTHING_OBSERVED = (
    '{who}: the program of {model} must observe its data, got latent sites only; write `pyro.sample("x", ..., obs=x)`'
)


def observes(sites: Mapping[str, Any]) -> bool:
    """Tell whether any of the nodes of a trace is observed."""
    return any(site["type"] == "sample" and site["is_observed"] for site in sites.values())


def check_sites(who: str, sites: Mapping[str, Any]) -> None:
    """Refuse observed values that are NaN, and sites whose values or distribution are broadcast against the other.

    ``sites`` are the nodes of a trace in which no site was enumerated.

    Raises
    ------
    DataError : names the site, what came, and what to write.
    """
    for name, site in sites.items():
        if site["type"] != "sample" or site_is_subsample(site) or not isinstance(site["value"], Tensor):
            continue
        _check_shape(who, name, site)
        if site["is_observed"]:
            _check_numbers(who, name, site)


def _check_shape(who: str, name: str, site: Any) -> None:  # noqa: ANN401 (a node of a trace)
    """Refuse a value that would be broadcast against its distribution, and so be scored more than once."""
    fn, value = site["fn"], site["value"].shape
    event, batch = torch.Size(fn.event_shape), torch.Size(fn.batch_shape)  # tuples of some distributions
    plates = {int(frame.dim): int(frame.size) for frame in site["cond_indep_stack"] if frame.vectorized}
    own = value[: max(0, len(value) - len(event))]
    fits = _event_fits(event, value) and _batch_fits(batch, own, plates, whole=len(value) == 0)
    if fits and _weighted_once(batch, own, site):
        return
    inside = f" in plates of shape {_shape_of(plates)}" if plates else ""
    few = any(dim >= -len(own) and own[dim] < size for dim, size in plates.items())
    behind = "; where they are part of the rows, write the plate with `subsample_size=len(x)`" if few else ""
    raise DataError(
        f"{who}: every value of site {name!r} must be scored once, got values of shape {tuple(value)} for a "
        f"distribution of shape {tuple(batch + event)}{inside}, which would be broadcast against each other; "
        f"bring both to one shape (as `y[:, 0]` does), and add `.to_event(1)` or a plate for a further axis{behind}"
    )


def _event_fits(event: torch.Size, value: torch.Size) -> bool:
    """Values have every axis of one event; a distribution of series of any length says 1 for it."""
    if len(value) == 0:
        return True
    return len(value) >= len(event) and all(
        size in (1, given) for size, given in zip(event, value[len(value) - len(event) :], strict=True)
    )


def _batch_fits(batch: torch.Size, own: torch.Size, plates: Mapping[int, int], *, whole: bool) -> bool:
    """Each axis is that of a plate, or one of values and distribution alike.

    One distribution may stand for all values, and one number (``whole``) be observed of all distributions.
    """
    depth = max(len(batch), len(own), -min(plates, default=0))
    for axis in range(-depth, 0):
        f, v = _size(batch, axis), _size(own, axis)
        if axis in plates:
            if max(f, v) != plates[axis] or min(f, v) not in (1, plates[axis]):
                return False
        elif f != v and not (v == 1 and whole) and not (f == 1 and batch.numel() == 1):
            return False
    return True


def _weighted_once(batch: torch.Size, own: torch.Size, site: Any) -> bool:  # noqa: ANN401 (a node of a trace)
    """A mask or scale of the program around a site has no axis of its own."""
    shape = torch.broadcast_shapes(batch, own)
    weights = [site[key].shape for key in ("mask", "scale") if isinstance(site[key], Tensor)]
    try:
        return all(torch.broadcast_shapes(shape, weight).numel() == shape.numel() for weight in weights)
    except RuntimeError:
        return False


def _check_numbers(who: str, name: str, site: Any) -> None:  # noqa: ANN401 (a node of a trace)
    """Refuse NaN that reaches a distribution which has no place for it, masked or not: its gradient is NaN."""
    value, fn = site["value"], innermost(site["fn"])
    if hasattr(fn, "latents"):  # a collapsed distribution takes NaN, and its density is dear
        return
    if not value.is_floating_point() or is_mapped(value) or not bool(torch.isnan(value).any()):
        return
    with torch.no_grad():
        try:
            score = fn.log_prob(value)
        except ValueError:  # arguments are checked where the program says so
            score = torch.full((1,), torch.nan)
    if is_mapped(score) or not bool(torch.isnan(score).any()):
        return
    place, own = tuple(torch.isnan(value).nonzero()[0].tolist()), name.removesuffix("_observed")
    raise DataError(
        f"{who}: site {own!r} must observe numbers, got NaN at {place}; where NaN stands for not observed, let the "
        "distribution take it:\n"
        "    from ppgen.distributions import observed\n"
        f'    pyro.sample("{own}", observed(dist.Normal(...)), obs={own})\n'
        "or, where it cannot, fill NaN by a value that the distribution can have, and mask it"
    )


def is_mapped(value: Tensor) -> bool:
    """Tell whether a value differs between the draws that a program is mapped over, so that it is not known."""
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(value):
        value = functorch.get_unwrapped(value)
    return bool(functorch.is_batchedtensor(value))


def innermost(fn: Any) -> Any:  # noqa: ANN401
    """The distribution inside all of Pyro's wrappers."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn


def _size(shape: torch.Size, axis: int) -> int:
    return shape[axis] if len(shape) >= -axis else 1


def _shape_of(plates: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(plates.get(axis, 1) for axis in range(min(plates), 0))
