"""Checks that a model's declarations fit what it does: names of axes, and the arguments of its programs."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ppgen.errors import DataError
from ppgen.model import Model
from ppgen.programs.program import Function
from ppgen.rng import private_stream

__all__ = ["check_dims", "check_guide", "check_keywords", "check_model", "wrong_dims"]


def check_dims(
    who: str,
    model: Model,
    shapes: Mapping[str, Sequence[int]],
    program: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    whole: bool = True,
) -> None:
    """Refuse ``dims`` and ``coords`` that do not fit the shapes of sites, before a run is paid for.

    Without the ``whole`` data, as in a minibatch, only axes are counted: their lengths may be those of a part. Names
    for a plain function may also be of what it records and learns, which a run of its ``program`` shows.

    Raises
    ------
    DataError : see `wrong_dims`; or names for what the function does not have.
    """
    if isinstance(model, Function) and (model.coords or set(model.dims) - set(shapes)):
        shapes = {**_all_shapes(program, args), **shapes}
        _check_known(who, model, shapes)
    if wrong := wrong_dims(model, shapes, whole=whole):
        raise DataError(f"{who}: {wrong[0]}")


def wrong_dims(model: Model, shapes: Mapping[str, Sequence[int]], *, whole: bool = True) -> list[str]:
    """Errors in ``dims`` and ``coords``, a line each: another number of axes, or of labels, or two sizes."""
    wrong: list[str] = []
    sizes: dict[str, tuple[str, int]] = {}
    for site, shape in shapes.items():
        axes = model.dims.get(site)
        if axes is None:
            continue
        if isinstance(axes, str) or len(axes) != len(shape):
            wrong.append(
                f"dims of site {site!r} must name its {len(shape)} axes, of shape {tuple(shape)}, got {axes!r}; "
                f"write {site!r}: {tuple(f'axis{n}' for n in range(len(shape)))}, with names of your own"
            )
            continue
        for axis, size in zip(axes, shape, strict=True) if whole else ():
            if sizes.setdefault(axis, (site, size))[1] != size:
                first, other = sizes[axis]
                wrong.append(
                    f"axis {axis!r} of dims must have one length, got {other} in site {first!r} and {size} in "
                    f"{site!r}; give one of them another name"
                )
    for axis, labels in model.coords.items():
        if axis in sizes and sizes[axis][1] != len(labels):
            wrong.append(
                f"coords of axis {axis!r} must be {sizes[axis][1]} labels, got {len(labels)}; write one for each"
            )
    return wrong


def _all_shapes(program: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, torch.Size]:
    """Shapes of everything that a program samples, records and learns, but for what it observes."""
    with private_stream(0), torch.no_grad():
        nodes: dict[str, Any] = dict(poutine.trace(program).get_trace(*args).nodes)
    found = {}
    for name, site in nodes.items():
        recorded = site["type"] == "sample" and site["infer"].get("_deterministic")
        latent = site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
        if (recorded or latent or site["type"] == "param") and isinstance(site["value"], Tensor):
            found[name] = site["value"].shape
    return found


def _check_known(who: str, model: Model, shapes: Mapping[str, Sequence[int]]) -> None:
    if unknown := sorted(set(model.dims) - set(shapes)):
        raise DataError(
            f"{who}: dims must name sites that the function samples or records, {sorted(shapes)}, got {unknown}; data "
            "bring names of their own, as a DataFrame or a DataArray"
        )
    axes = {axis for names in model.dims.values() for axis in names}
    if unknown := sorted(set(model.coords) - axes):
        raise DataError(f"{who}: coords must label axes of dims, {sorted(axes)}, got {unknown}; name them in dims")


def check_keywords(who: str, program: Callable[..., Any], name: str, keywords: Sequence[str]) -> None:
    """Refuse a program of a model that cannot be called with these keywords.

    Raises
    ------
    DataError : names the keyword that is missing, and the line to write.
    """
    try:
        parameters = inspect.signature(program).parameters.values()
    except (TypeError, ValueError):
        return
    if any(one.kind == one.VAR_KEYWORD for one in parameters):
        return
    taken = {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
    missing = [keyword for keyword in keywords if keyword not in taken]
    if missing:
        own = name.rsplit(".", 1)[-1]
        arguments = f"{'self, ' if '.' in name else ''}x, *, u=None, total=None"
        raise DataError(
            f"{who}: {name} must take {' and '.join(missing)}, got {own}{inspect.signature(program)}; write "
            f"`def {own if own.isidentifier() else 'guide'}({arguments}):`"
        )


def check_model(who: str, model: object, args: Sequence[object]) -> None:
    """Refuse what is no model: a class of models, data, or data and a model in the other order.

    Raises
    ------
    DataError : what came, and what to pass.
    """
    if isinstance(model, type) and issubclass(model, Model):
        name = model.__name__
        raise DataError(
            f"{who}: model must be an object, got the class {name}; pass {name}(...), made with what it needs"
        )
    if not callable(model):
        swapped = any(isinstance(one, Model) for one in args)
        advice = "the model comes first, then x" if swapped else "make one"
        raise DataError(
            f"{who}: model must be a Model or a function with pyro.sample sites, got {type(model).__name__}; {advice}"
        )


def check_guide(guide: object, *, keywords: Sequence[str]) -> None:
    """Refuse a guide that is a class, or that cannot be called as the model is, with these keywords.

    Raises
    ------
    DataError : what came, and what to pass or to write.
    """
    if isinstance(guide, type):
        raise DataError(
            f"svi: guide must be an object, got the class {guide.__name__}; pass guide={guide.__name__}(...), made "
            "with what it needs"
        )
    if not callable(guide) or isinstance(guide, nn.Module) and not hasattr(guide, "forward"):
        return
    program: Callable[..., Any] = guide.forward if isinstance(guide, nn.Module) else guide
    name = getattr(guide, "__qualname__", type(guide).__name__).rsplit(">.", 1)[-1]
    check_keywords("svi", program, name if inspect.isroutine(guide) else f"{name}.forward", keywords)
