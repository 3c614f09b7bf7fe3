"""Memory of a fitted model: a digest of its data, and the values that ``pyro.param`` statements learnt.

Where each row has latents of its own it also remembers which these are, and the guide that proposes them for any rows.

The data themselves are not kept.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
from torch import Tensor

from ppgen.data.parts import Inputs, parts
from ppgen.model import Model

__all__ = ["Memory", "digest", "memory", "remember"]

AT_ONCE = 1 << 18  # numbers that are read together for a digest
NAME = "_memory"  # of a model's own; a copy that is to be fitted anew has none


@final
@dataclass(frozen=True, eq=False)
class Memory:
    """Digests of the data (of a function: of its first argument) and of inputs, and parameters by name.

    ``of_rows`` are continuous latent sites with a value for each row, and ``row_sites`` what is known of them (once it
    was looked at); ``guide`` is a trained guide that reads the rows, with what its ``pyro.param`` statements learnt.
    ``row_plates`` are names of the plates over rows, ``in_rows`` all sites in them, and ``row_arguments`` places of the
    further arguments that have a part for each row; None where nobody has looked.
    """

    data: str | None = None
    inputs: tuple[str | None, ...] = ()
    params: Mapping[str, Tensor] = field(default_factory=dict)
    of_rows: tuple[str, ...] = ()
    row_sites: Mapping[str, Any] | None = None
    guide: Callable[..., Any] | None = None
    guide_params: Mapping[str, Tensor] = field(default_factory=dict)
    row_plates: tuple[str, ...] | None = None
    in_rows: tuple[str, ...] = ()
    row_arguments: tuple[str, ...] | None = None

    def is_of(self, x: Tensor, u: Inputs) -> bool:
        """Whether these are the data and inputs of the fit."""
        return self.data == digest(x) and self.inputs == tuple(map(digest, parts(u)))


def memory(model: Model) -> Memory:
    """The memory of ``model``."""
    found: Memory = model.__dict__.get(NAME, Memory())
    return found


def remember(model: Model, **changes: Any) -> None:  # noqa: ANN401 (fields of `Memory`)
    """Let ``model`` remember something more."""
    model.__dict__[NAME] = replace(memory(model), **changes)


def digest(data: object) -> str | None:
    """Digest of an array of numbers, the same for every type that holds them exactly; None of anything else."""
    try:
        values = np.asarray(data.detach().cpu() if isinstance(data, Tensor) else data)
    except ValueError:
        return None
    if values.dtype.kind not in "biuf":
        return None
    found = hashlib.sha256(repr(values.shape).encode())
    flat = values.reshape(-1)
    for start in range(0, flat.size, AT_ONCE):
        plain = flat[start : start + AT_ONCE].astype(np.float64) + 0.0  # no minus zero
        plain[np.isnan(plain)] = np.nan  # and one NaN
        found.update(plain.tobytes())
    return found.hexdigest()
