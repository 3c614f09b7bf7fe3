"""Rows of the data that a program is run with: fewer, more, or in another order; and which sites each row owns.

The plates over rows are known by name: a program is run with two numbers of rows, and those plates follow that are as
long as there are rows. A plate over columns or groups may have that length by chance.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor
from torch.distributions.transforms import Transform

from ppgen.data.parts import Inputs, each
from ppgen.errors import PpgenError
from ppgen.model import Model
from ppgen.programs.density import private_pyro
from ppgen.programs.memory import memory, remember
from ppgen.programs.program import Function
from ppgen.programs.sites import Site, anywhere, learn
from ppgen.programs.task import Task
from ppgen.rng import private_stream

__all__ = [
    "RowSite",
    "at_rows",
    "called",
    "over_rows",
    "reads_rows",
    "remember_row_plates",
    "remember_row_sites",
    "row_sites",
]

FEW = 2  # least number of rows that a program is tried with
MOST_TRIED = 5  # arguments as long as the data, of which each subset is tried
UNABLE = (PpgenError, RuntimeError, ValueError, LookupError, TypeError, AssertionError)
"""Kinds of errors that a program raises which cannot take other rows."""


class RowSite(NamedTuple):
    """A site with a value for each row: its plate, the axis of its value that numbers the rows, from the right.

    ``free_axis`` is that axis of its unconstrained value, ``free_shape`` the shape of one row's, ``transform`` the way
    from there to its own units.
    """

    plate: str
    axis: int
    free_axis: int
    free_shape: torch.Size
    transform: Transform

    def free(self, value: Tensor) -> Float[Tensor, "N d"]:
        """Unconstrained numbers of a value that the program laid out."""
        laid = self.transform.inv(value).movedim(self.free_axis, 0)
        return laid.reshape(len(laid), -1)

    def constrained(self, free: Float[Tensor, "N d"]) -> tuple[Tensor, Float[Tensor, " N"]]:
        """The value of unconstrained numbers, as the program lays it out, and the log Jacobian of each row."""
        laid = free.reshape(-1, *self.free_shape).movedim(0, self.free_axis)
        value = self.transform(laid)
        jacobian = self.transform.log_abs_det_jacobian(laid, value)
        axis = self.free_axis + laid.ndim - jacobian.ndim
        return value, jacobian.movedim(axis, 0).reshape(len(free), -1).sum(-1)


def at_rows(model: Model, x: Tensor, u: Inputs, rows: Tensor) -> tuple[Model, Tensor, Inputs]:
    """The model, data and inputs of chosen rows; of a function also each argument that has a part for each row.

    Where it is not known which arguments have (see `remember_row_plates`), each has that is as long as ``x``.
    """
    if isinstance(model, Function):
        known = memory(model)
        own = known.row_arguments
        rest = (_chosen(value, rows, len(x), own, str(number)) for number, value in enumerate(model.rest))
        model = Function(model.function, (x, *rest))
        remember(model, **vars(known))
    return model, x[rows], each(u, lambda part: part[rows])


def called(model: Model, x: Tensor, u: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of the programs of a model, or of a function."""
    return ((x, *model.rest), {}) if isinstance(model, Function) else ((x,), {"u": u})


def over_rows(model: Model, frames: Collection[Any], rows: int) -> list[Any]:
    """Those of the plates ``frames`` that are over the rows of the data, from the left.

    They are known by name (see `remember_row_plates`); of a program without such a plate, whose plates have fixed
    lengths, they are those of the length ``rows``.
    """
    names = memory(model).row_plates
    found = [f for f in frames if f.vectorized and (f.name in names if names else f.size == rows)]
    return sorted(found, key=lambda frame: frame.dim)


def remember_row_plates(model: Model, x: Tensor, u: Inputs) -> None:
    """Let a model know which of its plates are over the rows of data: those as long as there are rows, whatever these.

    It also knows then which sites lie in them, and which further arguments of a function have a part for each row: the
    fewest without which it cannot be run with other rows.
    """
    if memory(model).row_plates is not None:
        return
    remember(model, row_plates=(), in_rows=())
    if not _has_rows(model, x):
        return
    for own in _arguments_of_rows(model, len(x)):
        remember(model, row_arguments=own)
        try:
            few, more = (_plates(model, x, u, count) for count in _counts(x))
        except UNABLE:
            continue
        counts = _counts(x)
        names = tuple(name for name, (size, _) in few.items() if (size, more.get(name, (0, ()))[0]) == counts)
        if names:
            sites = {site for name in names for site in few[name][1]}
            remember(model, row_plates=names, in_rows=tuple(sorted(sites)))
            return
    remember(model, row_arguments=None)


def row_sites(model: Model, x: Tensor, u: Inputs) -> dict[str, RowSite]:
    """Continuous latent sites that have a value for each row: their plate is as long as there are rows, whatever these.

    A program that cannot be run with another number of rows has none.
    """
    program = model.function if isinstance(model, Function) else model.model
    remember_row_plates(model, x, u)
    if not memory(model).row_plates:
        return {}
    counts, found = _counts(x), []
    for count in counts:
        args, kwargs = _first_rows(model, x, u, count)
        try:
            with private_pyro(x.dtype), private_stream(0):
                found.append(learn(program, args, kwargs).sites)
        except UNABLE:
            return {}
    few, more = found
    plates = {
        name: next((plate for plate, n in site.plates.items() if (n, more[name].plates.get(plate)) == counts), None)
        for name, site in few.items()
        if name in more
    }
    return {name: _row_site(few[name], plate, counts[0]) for name, plate in plates.items() if plate is not None}


def remember_row_sites(task: Task) -> dict[str, RowSite]:
    """Let the model of a task know which sites its rows own, and give them back."""
    x = task.args[0] if task.args else None
    sites = row_sites(task.model, x, task.kwargs.get("u")) if isinstance(x, Tensor) else {}
    remember(task.model, of_rows=tuple(sites), row_sites=sites)
    return sites


def reads_rows(guide: Callable[..., Any], model: Model, x: Tensor, u: Inputs, sites: Collection[str]) -> bool:
    """Tell whether a guide can draw ``sites`` of any rows: it draws as many values as it is given rows."""
    count = next(n for n in _counts(x) if n != len(x))
    args, kwargs = _first_rows(model, x, u, count)
    try:
        with torch.no_grad():
            nodes: dict[str, Any] = dict(poutine.trace(guide).get_trace(*args, **kwargs).nodes)
    except UNABLE:
        return False
    return all(name in nodes and _is_whole(nodes[name], count) for name in sites)


def _first_rows(model: Model, x: Tensor, u: Inputs, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments for the programs with so many rows, the first ones again where there are fewer."""
    return called(*at_rows(model, x, u, torch.arange(count, device=x.device) % len(x)))


def _row_site(site: Site, plate: str, rows: int) -> RowSite:
    free_event = site.event_dim + len(site.free_shape) - len(site.shape)
    dim = site.plate_dims[plate]
    free_axis = dim - free_event
    shape = list(site.free_shape)
    del shape[free_axis]
    return RowSite(plate, dim - site.event_dim, free_axis, torch.Size(shape), site.transform)


def _is_whole(site: Any, rows: int) -> bool:  # noqa: ANN401 (a node of a trace)
    """Tell whether a site has the shape of its distribution, in a plate over so many rows."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return site["value"].shape == site["fn"].shape() and any(frame.size == rows for frame in frames)


def _counts(x: Tensor) -> tuple[int, int]:
    """Two numbers of rows that are no size of the data."""
    free = [n for n in range(FEW, FEW + x.ndim + 3) if n not in x.shape]
    return free[0], free[1]


def _has_rows(model: Model, x: Tensor) -> bool:
    return bool(x.ndim and len(x) and getattr(model, "takes_data", True))


def _plates(model: Model, x: Tensor, u: Inputs, count: int) -> dict[str, tuple[int, list[str]]]:
    """Plates of the program with so many rows: their length, and the sites in them."""
    args, kwargs = _first_rows(model, x, u, count)
    with private_pyro(x.dtype), private_stream(0):
        nodes, _ = anywhere(model.function if isinstance(model, Function) else model.model, args, kwargs)
    found: dict[str, tuple[int, list[str]]] = {}
    for name, node in nodes.items():
        for frame in node["cond_indep_stack"]:
            if frame.vectorized:
                found.setdefault(frame.name, (frame.size, []))[1].append(name)
    return found


def _arguments_of_rows(model: Model, count: int) -> Iterator[tuple[str, ...]]:
    """Sets of further arguments of a function as long as its data, few before many; of many arguments, all at once."""
    rest = model.rest if isinstance(model, Function) else ()
    long = [path for number, value in enumerate(rest) for path in _as_long(value, count, str(number))]
    sizes: Sequence[int] = range(len(long) + 1) if len(long) <= MOST_TRIED else (0, len(long))
    return (chosen for size in sizes for chosen in combinations(long, size))


def _as_long(value: Any, count: int, path: str) -> Iterator[str]:  # noqa: ANN401 (an argument of a function)
    """Where in an argument there are tensors as long as the data."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _as_long(part, count, f"{path}/{name}")
    elif isinstance(value, Tensor) and value.ndim and len(value) == count:
        yield path


def _chosen(
    value: Any,  # noqa: ANN401 (an argument of a function)
    rows: Tensor,
    count: int,
    own: Collection[str] | None,
    path: str,
) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _chosen(part, rows, count, own, f"{path}/{name}") for name, part in value.items()}
    long = isinstance(value, Tensor) and value.ndim and len(value) == count
    return value[rows] if long and (own is None or path in own) else value
