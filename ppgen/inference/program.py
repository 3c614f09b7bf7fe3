"""Programs as engines take them: a plain Pyro function as a `Model`, and arguments of any kind as tensors."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from ppgen.model import Model

__all__ = ["Function", "cast", "copy_model"]

M = TypeVar("M", bound=Model)


@final
class Function(Model):
    """``function(*args)`` as a model of its first argument, the rest held fixed; without arguments, of nothing.

    Such a fit can be asked for `diagnose` and `to_arviz`; and, where the first argument is the data and is sampled in
    a plate over its rows, for predictions.
    """

    data_dims: ClassVar[tuple[str, ...]] = ("row",)

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__()
        self.function, self.rest, self.takes_data = function, args[1:], bool(args)
        axes = np.ndim(args[0].detach() if isinstance(args[0], Tensor) else args[0]) if args else 0
        self.__dict__["data_dims"] = ("row", *(f"x_dim_{axis}" for axis in range(1, axes)))

    @property
    def dims(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    def model(self, x: Tensor, *, u: Tensor | None = None, total: int | None = None) -> None:
        """The function, with its other arguments as they were."""
        self.function(*((x, *self.rest) if self.takes_data else ()))


def copy_model(model: M) -> M:
    """A deep copy. The automatic guide is left out: copying one empties the original (a trap of Pyro's)."""
    automatic = model.__dict__.get("_mean_field")
    copied = copy.deepcopy(model, {} if automatic is None else {id(automatic): "left out"})
    copied.__dict__.pop("_mean_field", None)
    return copied


def cast(value: object, dtype: torch.dtype, device: torch.device) -> object:
    """An array as a tensor on ``device``, in ``dtype`` if it is floating; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.tensor(value)
    if isinstance(value, Tensor):
        value = value.detach().to(device)
        return value.to(dtype) if value.is_floating_point() else value
    return value
