"""Inputs ``u`` as programs get them: one tensor, several by name, or none."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

__all__ = ["Inputs", "each", "parts", "rejoined"]

Inputs = Tensor | Mapping[str, Tensor] | None
"""A tensor, a dict of tensors, each in its own type, or None. Their first axis is that of the rows of the data."""

R = TypeVar("R")


def each(u: Inputs, change: Callable[[Tensor], R]) -> R | dict[str, R] | None:
    """``change`` of the tensor, or of each by name; None of None."""
    if isinstance(u, Mapping):
        return {name: change(part) for name, part in u.items()}
    return None if u is None else change(u)


def parts(u: Inputs) -> list[Tensor]:
    """The tensors, in the order of their names."""
    if isinstance(u, Mapping):
        return [u[name] for name in sorted(u)]
    return [] if u is None else [u]


def rejoined(like: Inputs, found: Sequence[Tensor]) -> Inputs:
    """Tensors in the order of `parts` as what they came from: one, or a dict in the order of ``like``."""
    if isinstance(like, Mapping):
        named = dict(zip(sorted(like), found, strict=True))
        return {name: named[name] for name in like}
    return found[0] if found else None
