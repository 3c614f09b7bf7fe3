"""Preparation of a run of `svi.fit`: a private model and its data, the bound of both programs, its parameters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ppgen.data.parts import each
from ppgen.errors import DataError, FitError
from ppgen.inference.svi.guides import named_guide
from ppgen.inference.svi.natural import NaturalGuide, natural_guide
from ppgen.inference.svi.objective import Objective
from ppgen.inference.svi.options import Guide, Options
from ppgen.inference.svi.weighted import Weighted
from ppgen.model import Conjugate, Model
from ppgen.programs.density import device_of
from ppgen.programs.minibatch import check_minibatch
from ppgen.programs.naming import check_dims, check_guide, check_keywords
from ppgen.programs.parameters import Parameters, declared_by
from ppgen.programs.program import Function, make_local, moved, owner
from ppgen.programs.rows import row_sites
from ppgen.programs.scores import NOTHING_OBSERVED
from ppgen.programs.sites import learn
from ppgen.programs.task import Task, read

__all__ = ["held_out_task", "own_copy", "prepare", "read_task", "types"]


def read_task(
    model: Model | Callable[..., Any], args: tuple[Any, ...], u: object, dtype: torch.dtype, device: torch.device,
    *, keep: bool = False, **more: Any,  # noqa: ANN401 (what `read` takes beside these)
) -> Task:  # fmt: skip
    """The data and model to fit, in one type on one device; a model gets the number of rows as ``total``."""
    task = read("svi", model, args, u, **more).to(device, dtype, keep=keep)
    if task.observations is not None:
        check_keywords("svi", task.model.model, f"{type(task.model).__name__}.model", ("total",))
    return task if task.observations is None else replace(task, kwargs={**task.kwargs, "total": task.rows})


def held_out_task(task: Task, x: object, u: object, dtype: torch.dtype, device: torch.device) -> Task | None:
    """Rows beside those of ``task``, if there are any; refused where the bound of both cannot be compared."""
    if x is None:
        if u is not None:
            raise DataError("svi: held_out_u must come with held_out, got it alone; pass both or neither")
        return None
    if task.observations is None:
        raise DataError("svi: held_out is for models, whose data is known; subclass ppgen.Model")
    outside = read_task(task.model, (x,), u, dtype, device, beside=task)
    for dim, size, given in zip(task.model.data_dims, task.args[0].shape, outside.args[0].shape, strict=True):
        if dim not in (task.model.data_dims[0], "time") and given != size:
            raise DataError(f"svi: held_out must have {size} {dim}s like x, got {given}; pass rows of the same data")
    if bool(torch.isnan(outside.args[0]).all()):
        raise DataError("svi: held_out must have observed entries, but all are NaN; pass other rows")
    return outside


def prepare(task: Task, guide: Guide, options: Options) -> tuple[Objective, Parameters, nn.Module | None]:
    """The bound, its parameters, and the named guide if it is one."""
    batch_size = options.batch_size
    model, program, kwargs = task.model, task.program, task.kwargs
    args = task.args if batch_size is None else (task.args[0][:batch_size],)
    if batch_size is not None:
        check_minibatch(program, task.args[0], kwargs["u"], batch_size)
        kwargs = {**kwargs, "u": each(kwargs["u"], lambda part: part[:batch_size])}
    own = not isinstance(model, Function) and type(model).guide is not Model.guide
    named: nn.Module | None = None
    q: Callable[..., Any]
    check_guide(model.guide if guide is None else guide, keywords=tuple(kwargs))
    if guide is None and isinstance(model, Conjugate):
        named = natural_guide(model, task, args, kwargs).to(device_of(model, args))
        program, q = named.model, named
    elif guide is None and own:
        q = model.guide
    elif guide is None or isinstance(guide, str):
        sites = learn(program, args, kwargs, minibatch=True).sites
        q = named = named_guide(guide or "mean_field", sites).to(device_of(model, args))
    else:
        q = guide
        make_local(_owners(guide))
    owners = [model, *_owners(task.program), *_owners(q)]
    objective = Objective(program, q, tuple(dict.fromkeys(owners)), _weighted(task, options))
    q(*args, **kwargs)  # a guide may make its parameters when it first sees data
    with declared_by(objective) as declared:
        objective.learn(args, kwargs)
    if task.observations is not None and not objective.plan.observes:
        raise DataError(NOTHING_OBSERVED.format(who="svi", model=type(model).__name__))
    check_dims("svi", model, objective.plan.shapes, program, args, whole=batch_size is None)
    parameters = Parameters(objective, declared, named if isinstance(named, NaturalGuide) else None)
    if not parameters.leaves:
        raise FitError(f"svi: the guide of {type(model).__name__} must have parameters to train, but it has none")
    return objective, parameters, named


def types(model: object, guide: Guide, dtype: torch.dtype | None) -> tuple[torch.dtype, bool]:
    """Type of the data, and whether parameters keep theirs.

    They do where they have several, or beside factors of a conjugate model, which are float64 as all messages are: a
    network then casts at its own border.
    """
    if guide is None and isinstance(model, Conjugate):
        if dtype not in (None, torch.float64):
            raise DataError(
                f"svi: dtype must be left out for a conjugate model, whose factors are float64, got {dtype}; "
                "networks keep their own type"
            )
        return torch.float64, True
    modules = [model] if isinstance(model, Model) else _owners(model)
    types = {p.dtype for module in modules for p in module.parameters() if p.is_floating_point()}
    if dtype is not None:
        return dtype, False
    return (torch.float64, True) if len(types) > 1 else (next(iter(types), torch.float64), False)


def own_copy(guide: Guide, model: object, task: Task) -> Guide:
    """A guide that is a method of the same module as the program, of the same copy of it."""
    own, copied = owner(model), owner(task.program)
    if isinstance(model, Model) or own is None or copied is None or not callable(guide) or owner(guide) is not own:
        return guide
    return moved(guide, copied)


def _owners(program: object) -> list[nn.Module]:
    module = owner(program)
    return [] if module is None else [module]


def _weighted(task: Task, options: Options) -> Weighted | None:
    """The number of draws that an importance-weighted bound averages, and over which plates; None of the ELBO.

    Raises
    ------
    FitError : whole draws are to be weighed by minibatches, which would estimate something else.
    """
    if options.bound == "elbo":
        return None
    x = task.args[0] if task.args else None
    sites = row_sites(task.model, x, task.kwargs.get("u")) if isinstance(x, Tensor) else {}
    if not sites and options.batch_size is not None:
        raise FitError(
            'svi: bound="iwae" weighs whole draws where rows own no latents, which no minibatch can estimate; use '
            'batch_size=None, or bound="elbo"'
        )
    return Weighted(options.particles, frozenset(site.plate for site in sites.values()))
