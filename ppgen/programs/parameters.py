"""Trained parameters: those of modules and those that Pyro programs declare, as one flat vector per type.

A program is run with other values in the place of its parameters, so that it is a function of them, without its
modules or Pyro's store being touched.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppgen.errors import FitError

__all__ = ["Declared", "Parameters", "ParametersAt", "declared_by", "learnt_by"]


class Declared(NamedTuple):
    """A ``pyro.param`` statement: its unconstrained value, and what it is constrained to."""

    free: Tensor
    constraint: constraints.Constraint


@final
class Parameters:
    """Names, shapes and types of all that is trained; they lie in one flat vector per type.

    Parameters
    ----------
    module : its parameters that require a gradient are trained.
    declared : parameters of ``pyro.param`` statements that are not those of ``module``, by name.
    apart : a part of ``module`` whose parameters lie in vectors of their own.
    """

    def __init__(self, module: nn.Module, declared: Mapping[str, Declared], apart: nn.Module | None = None) -> None:
        self.module = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.declared = dict(declared)
        self.leaves: dict[str, Tensor] = {**self.module, **{name: one.free for name, one in declared.items()}}
        own = set() if apart is None else {id(value) for value in apart.parameters()}
        self.apart = {name for name, value in self.leaves.items() if id(value) in own}
        self.kinds = tuple(dict.fromkeys(self._kind(name) for name in self.leaves))

    @property
    def types(self) -> tuple[torch.dtype, ...]:
        """The type of each vector."""
        return tuple(dtype for dtype, _ in self.kinds)

    @property
    def are_apart(self) -> tuple[bool, ...]:
        """Tell whether each vector is of the part that lies apart."""
        return tuple(apart for _, apart in self.kinds)

    def flat(self) -> tuple[Tensor, ...]:
        """Present values, a vector per type."""
        return tuple(torch.cat([value.detach().reshape(-1) for value in self._of(kind)]) for kind in self.kinds)

    def named(self, flat: Sequence[Tensor]) -> dict[str, Tensor]:
        """Each parameter by name, views into the vectors."""
        found: dict[str, Tensor] = {}
        for kind, vector in zip(self.kinds, flat, strict=True):
            names = [name for name in self.leaves if self._kind(name) == kind]
            pieces = vector.split([self.leaves[name].numel() for name in names])
            found |= {name: piece.view(self.leaves[name].shape) for name, piece in zip(names, pieces, strict=True)}
        return found

    def store(self, flat: Sequence[Tensor]) -> None:
        """Write values back to where they came from."""
        with torch.no_grad():
            for name, value in self.named(flat).items():
                self.leaves[name].copy_(value)

    def split(self, flat: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Unconstrained values of the module's parameters, and constrained ones of those declared."""
        named = self.named(flat)
        own = {name: value for name, value in named.items() if name in self.module}
        return own, {name: transform_to(one.constraint)(named[name]) for name, one in self.declared.items()}

    def _kind(self, name: str) -> tuple[torch.dtype, bool]:
        return self.leaves[name].dtype, name in self.apart

    def _of(self, kind: tuple[torch.dtype, bool]) -> list[Tensor]:
        return [value for name, value in self.leaves.items() if self._kind(name) == kind]


@final
class ParametersAt(Messenger):
    """Answers ``pyro.param`` with given values; a module's parameters, and buffers, stay what the module holds."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_param(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        name = msg["args"][0] if msg["args"] else msg["name"]
        if name in self.values:
            msg["value"], msg["done"] = self.values[name], True
        elif len(msg["args"]) > 1 and isinstance(msg["args"][1], Tensor):
            msg["value"], msg["done"] = msg["args"][1], True


@contextmanager
def declared_by(module: nn.Module) -> Iterator[dict[str, Declared]]:
    """Note the ``pyro.param`` statements of programs run inside; on exit those that ``module`` does not hold are there.

    Raises
    ------
    FitError : parameters of a module that the program reaches, but that were not given.
    """
    found: dict[str, Declared] = {}
    with poutine.trace(param_only=True) as run:
        yield found
    known = {id(value) for value in module.parameters()}
    sites: dict[str, Any] = dict(run.trace.nodes)
    for name, site in sites.items():
        free = site["value"].unconstrained() if hasattr(site["value"], "unconstrained") else site["value"]
        if id(free) in known:
            continue
        _check(name, free, site)
        found[name] = Declared(free, site["kwargs"].get("constraint", constraints.real))


def learnt_by(
    program: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    declared: Mapping[str, Tensor],
    *,
    keep: bool = False,
) -> dict[str, Tensor]:
    """Those of the ``declared`` values that ``program`` asks for, as a fit keeps them: on the CPU, in float64.

    With ``keep`` they stay of the type that they have.
    """
    with torch.no_grad(), ParametersAt(declared), poutine.trace(param_only=True) as run:
        program(*args, **kwargs)
    kept = {name: declared[name].detach().cpu().clone() for name in run.trace.nodes if name in declared}
    return {name: value if keep or not value.is_floating_point() else value.double() for name, value in kept.items()}


def _check(name: str, free: Tensor, site: Any) -> None:  # noqa: ANN401 (Pyro's message)
    if isinstance(free, nn.Parameter):
        raise FitError(
            f"svi: the parameter {name!r} must belong to the model or the guide, but its module is held elsewhere; "
            "make the module an attribute of an nn.Module whose methods the programs are"
        )
    cut = [frame.name for frame in site["cond_indep_stack"] if frame.full_size != frame.size]
    if cut and site["kwargs"].get("event_dim") is not None:
        raise FitError(
            f"svi: the parameter {name!r} must not have an entry per row of the minibatch plate {cut[0]!r}, for a "
            "batch does not say which rows it holds; compute it from the data, or use batch_size=None"
        )
