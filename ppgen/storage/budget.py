"""Room for a model that a file describes: arrays that the file's own tensors do not warrant are never made."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.errors import FileError

__all__ = ["within_budget"]

ROOM = 1 << 26  # numbers that any model may take to build: half a gigabyte
TIMES = 16  # of the numbers that were saved, where they are more
SIZED = {"zeros", "ones", "empty", "full", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty"}


@contextmanager
def within_budget(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Refuse to make arrays far larger than the saved ``tensors``, and say in words what cannot be made.

    Raises
    ------
    FileError : the model is too large for what was saved with it, or torch cannot build it.
    """
    limit = max(ROOM, TIMES * sum(value.numel() for value in tensors.values()))
    try:
        with _Budget(limit):
            yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"load: the model cannot be built from its saved config ({error}); restore the file") from error


@final
class _Budget(TorchFunctionMode):
    """Checks the size that a factory is asked for before it is called."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Any = None,  # noqa: ANN401 (torch's own)
    ) -> Any:  # noqa: ANN401
        size = _asked(getattr(func, "__name__", ""), args, kwargs or {})
        if size > self.limit:
            raise FileError(
                f"load: the model must be as large as its saved tensors, and its config asks for an array of {size} "
                "numbers; the manifest was changed, restore the file"
            )
        return func(*args, **(kwargs or {}))


def _asked(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    if name == "eye":
        sizes = [value for value in args if isinstance(value, int)] or [kwargs.get("n", 1)]
        return int(math.prod(sizes * 2 if len(sizes) == 1 else sizes[:2]))
    if name not in SIZED:
        return 0
    given = kwargs.get("size", [value for value in args if not isinstance(value, Tensor)])
    first = given[0] if given and isinstance(given[0], Sequence) else given
    return int(math.prod(value for value in first if isinstance(value, int)))
