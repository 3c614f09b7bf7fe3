"""Outcomes of a program: which site holds which entries of the data, and outcomes that are other arguments.

One site may observe all of the data, or several may share them, each a column or a block (``obs=x[:, 0]``,
``obs=x[:, 1:]``). The gradient of its values by the data tells which entries a site holds: it is one at the entry
that a value is, whatever stands there, so that equal columns and columns without observations are told apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from pyro import poutine
from torch import Tensor
from torch.func import vjp

from ppgen.data.parts import Inputs
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import name_of, run
from ppgen.predictions.data_sites import argument_of, data_site, is_data, of_data
from ppgen.predictions.over_draws import Theta
from ppgen.predictions.summed_out import unwrap
from ppgen.programs.scores import innermost, is_mapped

__all__ = ["Outcome", "filled", "joined", "outcomes", "without_gaps"]


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """A distribution that was observed, its values (NaN where it was not), and their entries of the flat data.

    ``entries`` is None of an outcome that is another argument of a plain function.
    """

    fn: Any
    value: Tensor
    entries: Tensor | None


def outcomes(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor, u: Inputs) -> dict[str, Outcome]:
    """The outcomes of the program by site: all that is part of the data ``x``, and all that is another argument.

    Raises
    ------
    FitError : no site observes the data, or one that does depends on entries that are an outcome themselves.
    """
    observed = of_data(trace, theta)
    alike = [name for name, site in observed.items() if isinstance(site["value"], Tensor) and _holds_all(name, site, x)]
    if len(observed) == 1 and alike:
        return {alike[0]: _whole(data_site(model, trace, theta, x), x)}
    places = _entries_by_site(model, theta, x, u, list(observed))
    if not places:
        site = data_site(model, trace, theta, x)  # says what is wrong, where it does not find it
        places = {site["name"]: torch.arange(x.numel(), device=x.device).reshape(x.shape)}
    found = {name: _part(observed[name], place, x) for name, place in places.items()}
    for name, site in observed.items():
        argument = None if name in found else argument_of(model, site["value"])
        if argument is not None:
            found[name] = Outcome(unwrap(site["fn"]), argument.reshape(site["value"].shape), None)
    return found


def filled(model: Model, outcome: Outcome) -> Tensor:
    """Values of an outcome with each NaN drawn given what was observed of it.

    Raises
    ------
    FitError : the distribution does not say how missing entries follow from observed ones.
    """
    fn, value = outcome.fn, outcome.value
    gaps = torch.isnan(value)
    if hasattr(fn, "impute"):
        with torch.no_grad():
            drawn = fn.impute(value)
    elif _whole_events(fn, gaps):
        drawn = fn.sample()
    else:
        raise FitError(
            f"{name_of(model)}: the distribution of the data must say how missing entries follow from observed ones, "
            f"got {type(innermost(fn)).__name__}; use one whose entries are independent given the parameters, or give "
            "it `impute(x)`"
        )
    return torch.where(gaps, drawn.reshape(value.shape).to(value.dtype), value)


def joined(found: Mapping[str, Outcome], drawn: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Data with the values ``drawn`` of each outcome in its entries; entries that no site observes stay as they are."""
    index = torch.arange(x.numel(), device=x.device)
    flat, start = [x.reshape(-1)], x.numel()
    for name, one in found.items():
        if one.entries is not None:
            index[one.entries.reshape(-1)] = start + torch.arange(one.entries.numel(), device=x.device)
            flat.append(drawn[name].reshape(-1).to(x.dtype))
            start += one.entries.numel()
    return torch.cat(flat)[index].reshape(x.shape)


def without_gaps(x: Tensor) -> Tensor:
    """Data whose gaps hold a value that was observed in their column, zero where there was none."""
    columns = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x[:, None]
    seen = ~torch.isnan(columns)
    first = columns.gather(0, seen.double().argmax(0, keepdim=True))
    return torch.where(seen, columns, first.nan_to_num(0.0)).reshape(x.shape)


def _holds_all(name: str, site: Mapping[str, Any], x: Tensor) -> bool:
    return site["value"].shape == x.shape or (name == "x" and site["value"].numel() == x.numel())


def _whole(site: Mapping[str, Any], x: Tensor) -> Outcome:
    return Outcome(unwrap(site["fn"]), x, torch.arange(x.numel(), device=x.device).reshape(x.shape))


def _part(site: Mapping[str, Any], place: Tensor, x: Tensor) -> Outcome:
    return Outcome(unwrap(site["fn"]), x.reshape(-1)[place], place)


def _whole_events(fn: Any, gaps: Tensor) -> bool:  # noqa: ANN401 (a distribution)
    """Tell whether events are missing as a whole or not at all; always true where entries are independent."""
    axes = len(innermost(fn).event_shape)
    if not axes:
        return True
    events = gaps.flatten(-axes)
    return bool((events.any(-1) == events.all(-1)).all())


def _entries_by_site(model: Model, theta: Theta, x: Tensor, u: Inputs, names: list[str]) -> dict[str, Tensor]:
    """Site -> the entry of the flat data that each of its values is, of sites that observe entries of the data."""
    data = without_gaps(x)

    def marked(data: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        sites: dict[str, Any] = dict(run(model, theta, data, u, tracked=True).nodes)
        values = {name: sites[name]["value"] for name in names}
        return {name: (value * _numbers(value)).sum().to(data.dtype) for name, value in values.items()}, values

    mapped = any(is_mapped(value) for value in theta.values())
    try:
        tangent: Any = vjp(marked, data, has_aux=True)
    except (RuntimeError, TypeError, NotImplementedError):
        if mapped:
            raise  # each draw by itself may do
        return {}  # a program that leaves torch has no gradient: one site must observe all of the data
    marks, pull, values = tangent
    slopes = {name: pull(_only(name, marks))[0].reshape(-1) for name in names}
    places = {name: _entries(slopes[name], values[name], data) for name in names}
    found = {name: place for name, place in places.items() if place is not None}
    _check_all_found(model, {name: slope for name, slope in slopes.items() if name not in found}, found)
    if found and not mapped:  # nothing can be said of mapped values
        _check_separate(model, theta, data, u, found)
    return found


def _check_all_found(model: Model, slopes: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    """Refuse a site that observes something else of entries that no other site observes: they would be left alone."""
    own = torch.cat([place.reshape(-1) for place in places.values()]) if places else None
    for name, slope in slopes.items():
        if own is not None and bool((slope.index_fill(0, own, 0.0) != 0).any()):
            raise FitError(
                f"{name_of(model)}: site {name!r} must observe entries of x as they are given, got other values of "
                "them; observe x itself, NaN filled, and put a change of units into the distribution"
            )


def _check_separate(model: Model, theta: Theta, data: Tensor, u: Inputs, places: Mapping[str, Tensor]) -> None:
    """Refuse a distribution that depends on entries of the data that a site observes."""

    def scored(data: Tensor) -> dict[str, Tensor]:
        sites: dict[str, Any] = dict(run(model, theta, data, u, tracked=True).nodes)
        return {name: sites[name]["fn"].log_prob(sites[name]["value"].detach()).sum() for name in places}

    tangent: Any = vjp(scored, data)
    scores, pull = tangent
    own = torch.cat([place.reshape(-1) for place in places.values()])
    for name in places:
        slope = pull(_only(name, scores))[0].reshape(-1)[own]
        if bool((slope.nan_to_num(0.0) != 0).any()):
            raise FitError(
                f"{name_of(model)}: the distribution of site {name!r} must not depend on data that are an outcome "
                "themselves, got one that does; observe them together, by one distribution of all of them"
            )


def _only(name: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One for this name, zero for the others."""
    return {other: torch.full_like(value, float(other == name)) for other, value in values.items()}


def _numbers(value: Tensor) -> Tensor:
    """1, 2, 3, ... for the values."""
    return torch.arange(1, value.numel() + 1, dtype=torch.float64, device=value.device).reshape(value.shape)


def _entries(slope: Tensor, value: Tensor, data: Tensor) -> Tensor | None:
    """Positions of the numbered values in the data, by the slope of their sum; None where they are not all there.

    Values of another type have no slope: they are looked for among the columns.
    """
    if not value.is_floating_point():
        return _entries_of_whole_numbers(value, data)
    place = torch.full((value.numel(),), -1, device=data.device)
    entries = slope.nonzero()[:, 0]
    numbers = slope[entries].round().long() - 1
    if len(entries) != value.numel() or bool(((numbers < 0) | (numbers >= value.numel())).any()):
        return None
    place[numbers] = entries
    if bool((place < 0).any()) or not is_data(value.reshape(-1), data.reshape(-1)[place]):
        return None
    return place.reshape(value.shape)


def _entries_of_whole_numbers(value: Tensor, data: Tensor) -> Tensor | None:
    """Position of columns of whole numbers among those of the data; None where there is none, or several fit."""
    if not value.ndim or len(value) != len(data):
        return None
    columns, expected = data.reshape(len(data), -1), value.reshape(len(data), -1)
    same = (columns[:, None] == expected[:, :, None]).all(0)  # (of the site, of the data)
    if bool((same.sum(1) != 1).any()):
        return None
    numbers = torch.arange(data.numel(), device=data.device).reshape(columns.shape)
    return numbers[:, same.to(torch.int64).argmax(1)].reshape(value.shape)
