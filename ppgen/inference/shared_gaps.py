"""Where data is missing, known as a constant while a program is mapped over data sets with the same gaps.

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
    """Inside, ``isnan`` of values that only data sets differ in is that of the first, if all have the same gaps.

    Raises
    ------
    FitError : the gaps differ.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the function returns)
        if func in (torch.isnan, Tensor.isnan) and _functorch.is_batchedtensor(args[0]):
            inner, dim = _functorch.get_unwrapped(args[0]), _functorch.maybe_get_bdim(args[0])
            if not _functorch.is_functorch_wrapped_tensor(inner):
                return _common(inner, dim)
        return func(*args, **(kwargs or {}))


def _common(values: Tensor, dim: int) -> Tensor:
    with disable_proxy_modes_tracing(), temporarily_clear_interpreter_stack():
        gaps = torch.isnan(values).movedim(dim, 0)
        if not bool((gaps == gaps[:1]).all()):
            raise FitError("replications: all data sets must have the same gaps, they differ; sample them one by one")
        return gaps[0].clone()
