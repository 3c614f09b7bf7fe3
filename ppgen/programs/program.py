"""Programs as engines take them: a plain Pyro function as a `Model`, and arguments of any kind as tensors."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import torch
import xarray as xr
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from ppgen.data.arrays import as_observations
from ppgen.data.indexes import plain_labels
from ppgen.data.parts import Inputs
from ppgen.model import Model
from ppgen.programs.memory import NAME

__all__ = ["Function", "cast", "copy_model", "make_local", "moved", "owner", "private"]

M = TypeVar("M", bound=Model)
TAKEN = ("x", "chain", "draw")  # names of axes that answers have for themselves


@final
class Function(Model):
    """``function(*args)`` as a model of its first argument, the rest held fixed; without arguments, of nothing.

    Such a fit can be asked for `diagnose` and `to_arviz`; and, where the first argument is the data and is sampled in
    a plate over its rows, for predictions. ``dims`` and ``coords`` are names of axes, as those of a `Model`, and
    ``labels`` those of the axes of the first argument, {axis of `data_dims`: labels}.
    """

    data_dims: ClassVar[tuple[str, ...]] = ("row",)

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        labels: Sequence[np.ndarray | None] = (),
    ) -> None:
        super().__init__()
        self._dims = {site: (axes,) if isinstance(axes, str) else tuple(axes) for site, axes in (dims or {}).items()}
        self._coords = {axis: plain_labels(labels) for axis, labels in (coords or {}).items()}
        self.function, self.takes_data = function, bool(args)
        self.rest = tuple(_as_tensor(value) for value in args[1:])  # as engines give them to the function
        make_local([self])
        axes = getattr(args[0], "ndim", 0) if args else 0
        self.__dict__["data_dims"] = ("row", *(f"x_dim_{axis}" for axis in range(1, axes)))
        self.labels = {dim: one for dim, one in zip(self.data_dims, labels, strict=False) if one is not None}

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return self._dims

    @property
    def coords(self) -> Mapping[str, Sequence[Any]]:
        return self._coords

    def observations(self, x: object) -> xr.DataArray:
        """Data with their own names of axes where they have some, but for those that answers have for themselves."""
        dims = self.data_dims
        if isinstance(x, xr.DataArray) and x.ndim == len(dims):
            x = x.rename({dim: own for dim, own in zip(x.dims, dims, strict=True) if dim in TAKEN})
            dims = tuple(map(str, x.dims))
        return as_observations(x, dims=dims)

    def model(self, x: Tensor, *, u: Inputs = None, total: int | None = None) -> None:
        """The function, with its other arguments as they were."""
        self.function(*((x, *self.rest) if self.takes_data else ()))


def copy_model(model: M) -> M:
    """A deep copy. The automatic guide is left out: copying one empties the original (a trap of Pyro's)."""
    automatic = model.__dict__.get("_mean_field")
    copied = copy.deepcopy(model, {} if automatic is None else {id(automatic): "left out"})
    copied.__dict__.pop("_mean_field", None)
    copied.__dict__.pop(NAME, None)
    return copied


def private(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program on a copy of the module that it is, or whose method it is; any other program unchanged.

    A module that holds an automatic guide of Pyro's is not copied: that would empty the original.
    """
    module = owner(program)
    if module is None or any(isinstance(part, AutoGuide) for part in module.modules()):
        return program
    copied = copy_model(module) if isinstance(module, Model) else copy.deepcopy(module)
    return moved(program, copied)


def owner(program: object) -> nn.Module | None:
    """The module that a program is, or whose method it is."""
    found = program if isinstance(program, nn.Module) else getattr(program, "__self__", None)
    return found if isinstance(found, nn.Module) else None


def moved(program: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    """The same program of another module."""
    found: Callable[..., Any] = module if isinstance(program, nn.Module) else getattr(module, program.__name__)
    return found


def make_local(modules: Iterable[nn.Module]) -> None:
    """Let Pyro modules that were made outside run with parameters of their own, as all do here."""
    for module in (part for owner in modules for part in owner.modules()):
        context = getattr(module, "_pyro_context", None)
        if context is not None and not hasattr(context, "param_state"):
            context.param_state = {"params": {}, "constraints": {}}  # what Pyro gives those made inside


def _as_tensor(value: Any) -> Any:  # noqa: ANN401 (an argument of a function)
    if isinstance(value, dict):
        return {name: _as_tensor(part) for name, part in value.items()}
    is_number = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    return torch.from_numpy(value.copy()) if is_number else value  # a copy has no negative strides


def cast(value: object, dtype: torch.dtype, device: torch.device) -> object:
    """An array, or each of a dict, as a tensor on ``device``, in ``dtype`` if floating; anything else unchanged."""
    value = _as_tensor(value)
    if isinstance(value, dict):
        return {name: cast(part, dtype, device) for name, part in value.items()}
    if isinstance(value, Tensor):
        value = value.detach().to(device)
        return value.to(dtype) if value.is_floating_point() else value
    return value
