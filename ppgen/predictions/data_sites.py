"""The site that observes the data of a question, the axis that holds their rows, and the sites that each row owns.

A plain function is asked about its first argument. One that takes its data elsewhere would get it in the place of its
covariates, so what a site observes is compared with what was given.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions.conditioned import name_of, observed_sites, run
from ppgen.predictions.over_draws import Theta
from ppgen.programs.memory import digest, memory
from ppgen.programs.rows import over_rows
from ppgen.programs.scores import innermost, is_mapped

__all__ = [
    "argument_of",
    "check_given",
    "check_rows_owned",
    "data_site",
    "is_data",
    "of_data",
    "owned_by_rows",
    "row_axis",
]

FLOAT32_ROUNDING = 1e-6  # relative, of data that a program keeps in float32


def data_site(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor) -> dict[str, Any]:
    """The site of the data: the one named ``"x"``, else the one observed site of its shape.

    Raises
    ------
    FitError : there is none or several, or what it observes is not ``x``.
    """
    observed = of_data(trace, theta)
    alike = [name for name, site in observed.items() if _shape(site) == x.shape]
    if "x" not in observed and len(alike) != 1:
        raise FitError(
            f"{name_of(model)}: a site must observe the data x that it is asked about, got {sorted(observed)}, of "
            "other values; observe x or columns of it as they are given, NaN filled"
        )
    name = "x" if "x" in observed else alike[0]
    value = observed[name]["value"]
    if isinstance(value, Tensor) and value.numel() == x.numel() and not _is_given(model, theta, x, name, value):
        raise FitError(f"{name_of(model)}: {_not_given(model, name, value)}")
    return observed[name]


def check_given(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor) -> None:
    """Refuse a plain function that observes its other arguments only, and was given the data as its first.

    Its own first argument, whatever that is, is another matter: with it the program is as it was fitted.
    """
    rest = getattr(model, "rest", ())
    if not rest:
        return
    observed = {name: site["value"] for name, site in of_data(trace, theta).items()}
    values = {name: value for name, value in observed.items() if isinstance(value, Tensor)}
    if any(is_mapped(value) for value in values.values()):
        return  # it is made of parameters
    if not values or any(
        _argument(model, value) is None or _is_given(model, theta, x, name, value) for name, value in values.items()
    ):
        return
    if memory(model).data is None or memory(model).data != digest(x):
        name = next(iter(values))
        raise FitError(f"{name_of(model)}: {_not_given(model, name, values[name])}")


def row_axis(model: Model, site: dict[str, Any], x: Tensor) -> int | None:
    """Axis of the plate over the rows of ``x``; None for a site outside it.

    Raises
    ------
    FitError : ``x`` is as long as it is wide, and the site observes it in another order.
    """
    axes = [frame.dim for frame in over_rows(model, site["cond_indep_stack"], len(x))]
    if not axes or list(x.shape).count(len(x)) == 1 or _shape(site) is None or site["value"].numel() != x.numel():
        return axes[0] if axes else None
    first = site["fn"].event_dim - site["value"].ndim
    if site["value"].shape == x.shape and is_data(site["value"], x) and first in axes:
        return first
    raise FitError(
        f"{name_of(model)}: site {site['name']!r} must observe x as it is given, rows first in a plate of their own, "
        f"got values in another order (transposed?) of square data, {tuple(x.shape)}; observe x itself"
    )


def owned_by_rows(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor) -> list[str]:
    """Sites of ``theta`` that have a value for each row: those in the plate over the rows of observed sites."""

    def plates(site: Mapping[str, Any]) -> set[str]:
        return {frame.name for frame in over_rows(model, site["cond_indep_stack"], len(x))}

    rows = {name for site in observed_sites(trace, theta).values() for name in plates(site)}
    nodes: dict[str, Any] = dict(trace.nodes)
    return [name for name in theta if name in nodes and rows & plates(nodes[name])]


def check_rows_owned(model: Model, trace: poutine.Trace, theta: Theta, x: Tensor) -> None:
    """Refuse other data than that of the fit where ``theta`` has a value for each of its rows.

    Where a guide reads the rows, a fit keeps no such value, and those in ``theta`` were drawn for ``x``.
    """
    if memory(model).guide is not None:
        return
    own = owned_by_rows(model, trace, theta, x)
    known = memory(model).data
    if own and known is not None and known != digest(x):
        raise FitError(
            f"{name_of(model)}: x must be the data of the fit, for site {own[0]!r} has a value for each of its rows, "
            "got other data; ask about the data of the fit, fit again with the new rows, or sum that site out (see "
            "ppgen.distributions)"
        )


def of_data(trace: poutine.Trace, theta: Theta) -> dict[str, Any]:
    """Observed sites that could be data; a factor is not one."""
    return {
        name: site for name, site in observed_sites(trace, theta).items() if not isinstance(innermost(site["fn"]), Unit)
    }


def _shape(site: dict[str, Any]) -> torch.Size | None:
    return site["value"].shape if isinstance(site["value"], Tensor) else None


def is_data(value: Tensor, x: Tensor) -> bool:
    """Tell whether values are those of ``x`` where it was observed."""
    if value.numel() != x.numel():
        return False
    same = torch.isclose(value.detach().reshape(x.shape).to(x.dtype), x, rtol=FLOAT32_ROUNDING, atol=0.0)
    return bool((same | torch.isnan(x)).all())


def _is_given(model: Model, theta: Theta, x: Tensor, name: str, value: Tensor) -> bool:
    """Tell whether a site observes ``x``: its values, and not those of another argument that happens to be the same."""
    if not is_data(value, x):
        return False
    if _argument(model, value) is None:
        return True
    other = x.roll(1, 0)  # rows in another order are data too
    nodes: dict[str, Any] = dict(run(model, theta, other, None).nodes)
    return name in nodes and is_data(nodes[name]["value"], other)


def argument_of(model: Model, value: object) -> Tensor | None:
    """The other argument of a plain function that a site observes, with its NaN; None if it observes no argument."""
    number = _argument(model, value) if isinstance(value, Tensor) else None
    if number is None or not isinstance(value, Tensor):
        return None
    argument = _tensors(getattr(model, "rest", ())[number - 2])
    return next(part for part in argument if is_data(value, part.detach().to(value.dtype)))


def _argument(model: Model, value: Tensor) -> int | None:
    """Number, from 1, of the other argument of a plain function that equals ``value``; None if none does."""
    for number, given in enumerate(getattr(model, "rest", ()), 2):
        if any(is_data(value, part.detach().to(value.dtype)) for part in _tensors(given)):
            return number
    return None


def _tensors(value: object) -> list[Tensor]:
    return [part for part in tree_leaves(value) if isinstance(part, Tensor)]


def _not_given(model: Model, name: str, value: Tensor) -> str:
    number = _argument(model, value)
    if number is not None:
        return (
            f"site {name!r} must observe the first argument of the program to be asked about data, got argument "
            f"{number} there; write the program with its data first, `def program(y, u):`, and fit again"
        )
    return (
        f"site {name!r} must observe the data that it is asked about, got other values there; observe x as it is "
        "given, NaN filled, and put a change of units into the distribution"
    )
