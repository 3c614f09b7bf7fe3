"""Bytes that the operators of a computation write: they tell its memory and its cost without a clock."""

from typing import Any, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Written"]


@final
class Written(TorchDispatchMode):
    """While it is entered: ``numbers`` that operators return, and ``fresh_bytes`` of those that are new memory.

    Views count for neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.fresh_bytes = 0, 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (an operator)
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the operator returns)
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            self.numbers += sum(leaf.numel() for leaf in tensors)
            self.fresh_bytes += 0 if func._schema.is_mutable else sum(leaf.nbytes for leaf in tensors)
        return found
