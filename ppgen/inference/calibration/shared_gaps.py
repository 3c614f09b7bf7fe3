"""Gaps of the data as a constant, while a program is mapped over data sets with the same gaps.

Under ``torch.func.vmap`` a program cannot look at its data, but message passing must know which entries are missing.
That is the same in every data set, so ``torch.isnan`` answers with a plain tensor instead of a mapped one.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.overrides import TorchFunctionMode

from ppgen.errors import FitError

__all__ = ["SharedGaps"]


@final
class SharedGaps(TorchFunctionMode):
    """Inside the function that is mapped over data sets: ``isnan`` of what depends on the data alone is a constant.

    Raises
    ------
    FitError : the gaps of two data sets differ.
    """

    def __init__(self) -> None:
        super().__init__()
        self.level = _functorch.maybe_current_level()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the function returns)
        if func in (torch.isnan, Tensor.isnan) and _levels(args[0]) == [self.level]:
            with disable_proxy_modes_tracing(), temporarily_clear_interpreter_stack():
                return _gaps(args[0])
        return func(*args, **(kwargs or {}))


def _levels(value: Tensor) -> list[int]:
    """Levels of the maps in which a tensor has one value for each element."""
    found = []
    while _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            found.append(_functorch.maybe_get_level(value))
        value = _functorch.get_unwrapped(value)
    return found


def _gaps(value: Tensor) -> Tensor:
    if not _functorch.is_functorch_wrapped_tensor(value):
        return torch.isnan(value)
    inner = _gaps(_functorch.get_unwrapped(value))
    if not _functorch.is_batchedtensor(value):
        return inner
    each = inner.movedim(_functorch.maybe_get_bdim(value), 0)
    if not bool((each == each[:1]).all()):
        raise FitError("replications: all data sets must have the same gaps, they differ; fit them one by one")
    return each[0].clone()
