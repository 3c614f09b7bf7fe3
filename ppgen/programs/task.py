"""The input of an engine after reading: a private model, its labelled data, and the arguments of its programs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import xarray as xr
from torch import Tensor

from ppgen.data.arrays import to_tensor
from ppgen.data.by_sequence import read_inputs_of
from ppgen.data.columns import note_columns
from ppgen.data.inputs import LabelledInputs, aligned_features, labels_of
from ppgen.data.parts import parts, rejoined
from ppgen.errors import DataError
from ppgen.model import Model
from ppgen.programs.arguments import as_arguments, axis_labels
from ppgen.programs.explained import explained, refuse_negative_indexes
from ppgen.programs.memory import digest, remember
from ppgen.programs.naming import check_keywords, check_model
from ppgen.programs.program import Function, cast, copy_model, private

__all__ = ["Task", "read"]

log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, eq=False)
class Task:
    """A private model, labelled data if there are any, and what its programs are called with."""

    model: Model
    observations: xr.DataArray | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: LabelledInputs | None = None

    @property
    def program(self) -> Callable[..., Any]:
        """The Pyro program that ``args`` and ``kwargs`` are for."""
        return self.model.function if isinstance(self.model, Function) else self.model.model

    @property
    def rows(self) -> int:
        """Rows of the data; of a function, whose data cannot be split, one."""
        return 1 if self.observations is None else len(self.args[0])

    def call(self, data: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the programs for a batch, its rows of data and of the `parts` of inputs; or for everything."""
        if not data:
            return self.args, self.kwargs
        return (data[0],), {**self.kwargs, "u": rejoined(self.kwargs["u"], data[1:])}

    def explained(self, who: str) -> AbstractContextManager[None]:
        """A context in which an error of the program that its inputs explain is told in words."""
        return explained(who, self.program, self.args, self.kwargs)

    def to(self, device: torch.device, dtype: torch.dtype, *, keep: bool = False) -> "Task":
        """The same on a device, floating numbers in one type; a model's parameters may ``keep`` their own."""
        args = tuple(cast(arg, dtype, device) for arg in self.args)
        kwargs = {name: cast(arg, dtype, device) for name, arg in self.kwargs.items()}
        model = self.model.to(device=device) if keep else self.model.to(device=device, dtype=dtype)
        return replace(self, model=model, args=args, kwargs=kwargs)


def read(
    who: str,
    model: Model | Callable[..., Any],
    args: tuple[Any, ...],
    u: object,
    *,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    beside: Task | None = None,
) -> Task:
    """Read what an engine was called with: a `Model`, its data and inputs; or a function and its arguments.

    Named features and inputs of what is looked at ``beside`` the data of a task are brought into the order of those.
    ``dims`` and ``coords`` name the axes of a function's sites.

    Raises
    ------
    DataError : data that the model cannot take, or other arguments than these.
    """
    check_model(who, model, args)
    if not isinstance(model, Model):
        if u is not None:
            raise DataError(
                f"{who}: u is for models, got it beside a function; pass what a function takes in order, as "
                "(program, x, {'dose': ...}), or write a Model with inputs u, which can be asked about "
                "rows with other inputs too (docs/models/your_own.md)"
            )
        labels = axis_labels(args[0]) if args else []
        args = as_arguments(who, model, args)
        function = Function(private(model), args, dims, coords, labels)
        refuse_negative_indexes(who, function.function, args, {})
        remember(function, data=digest(args[0]) if args else None)
        return Task(function, None, args, {})
    if dims is not None or coords is not None:
        raise DataError(f"{who}: dims and coords are for functions; write {type(model).__name__}.dims and .coords")
    check_keywords(who, model.model, f"{type(model).__name__}.model", ("u",))
    if len(args) != 1:
        raise DataError(f"{who}: a model takes its data x and nothing else in order, got {len(args)} arguments")
    observations = model.observations(args[0])
    names = None
    if beside is not None and beside.observations is not None and beside.inputs is not None:
        observations = aligned_features(who, observations, labels_of(beside.observations))
        names = beside.inputs.names
    data = to_tensor(observations)
    if beside is None:
        note_columns(who, observations)
    inputs = read_inputs_of(who, u, observations, names).inputs
    model = copy_model(model)
    model.check(data)
    for words in model.cautions(data, inputs.values) if beside is None else ():
        log.warning(words)
    refuse_negative_indexes(who, model.model, (data,), {"u": inputs.values})
    remember(model, data=digest(data), inputs=tuple(map(digest, parts(inputs.values))))
    return Task(model, observations, (data,), {"u": inputs.values}, inputs)
