"""Random draws under ``torch.func.vmap``: a program of them gets a draw of its own for each mapped value."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import dirichlet
from torch.overrides import TorchFunctionMode

__all__ = ["mapped"]


@contextmanager
def mapped(marker: Tensor) -> Iterator[None]:
    """Inside a mapped function: every distribution draws anew for each value. ``marker`` is any mapped tensor."""
    names = vars(dirichlet)
    own = names["_Dirichlet"]
    names["_Dirichlet"] = _Gammas  # its own has no rule for vmap
    try:
        with _Memory(marker):
            yield
    finally:
        names["_Dirichlet"] = own


@final
class _Gammas:
    """Draws of a Dirichlet distribution (and so of a beta) as normalised gammas, whose derivatives torch knows."""

    @staticmethod
    def apply(concentration: Tensor) -> Tensor:
        """One draw per row."""
        drawn = torch._standard_gamma(concentration).clamp_min(torch.finfo(concentration.dtype).tiny)
        return drawn / drawn.sum(-1, keepdim=True)


@final
class _Memory(TorchFunctionMode):
    """Fresh memory holds a tensor for each draw.

    Many distributions draw by filling fresh memory with random numbers, which vmap refuses where it is one tensor for
    all draws. ``marker`` is any tensor that has a value for each.
    """

    def __init__(self, marker: Tensor) -> None:
        super().__init__()
        self.marker = marker

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 (a function of torch)
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the function returns)
        """Give memory that a call asks for from the mapped marker, so that each draw has its own."""
        kwargs = kwargs or {}
        if func is torch.Tensor.clamp_:  # of which vmap makes a loop over draws, and warns of it
            return args[0].copy_(torch.clamp(*args, **kwargs))
        asked = _asked_memory(func, args, kwargs)
        if asked is None or _inside_operator():
            return func(*args, **kwargs)
        shape, dtype, device = asked
        return self.marker.new_empty(shape, dtype=dtype, device=device)


def _asked_memory(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any] | None:  # noqa: ANN401
    """Shape, dtype and device of the fresh memory that a call asks for; None if that is not what it does."""
    if func is torch.Tensor.new and not kwargs and len(args) > 1:
        shape = args[1] if isinstance(args[1], torch.Size) else args[1:]
        return (shape, args[0].dtype, args[0].device) if _is_shape(shape) else None
    if func is torch.empty and set(kwargs) <= {"dtype", "device"} and args and kwargs.get("device") != "meta":
        shape = args if isinstance(args[0], int) else args[0]
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return (shape, dtype, kwargs.get("device")) if _is_shape(shape) else None
    return None


def _is_shape(shape: Any) -> bool:  # noqa: ANN401
    return isinstance(shape, tuple | list) and all(isinstance(size, int) for size in shape)


def _inside_operator() -> bool:
    """Tell whether vmap has handed over to an operator, whose memory is its own."""
    return torch._C._functorch.maybe_current_level() is None
