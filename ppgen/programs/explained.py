"""Errors of a program that its inputs explain, in words: none where some are asked for, other names, bad indexes.

A program that fails is run once more, watched: only then is it known which input it was about. An engine runs one that
fits for this only where inputs hold negative whole numbers, which as an index are the last ones to torch, silently.
"""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ppgen.data.tables import CATEGORIES
from ppgen.errors import DataError, PpgenError
from ppgen.programs.density import device_of, private_pyro
from ppgen.programs.program import cast
from ppgen.rng import private_stream

__all__ = ["explained", "refuse_indexes", "refuse_negative_indexes"]

Program = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]
RAISED = (TypeError, KeyError, IndexError, AttributeError, RuntimeError)  # by inputs that do not fit a program


@contextmanager
def explained(who: str, program: Program, args: Arguments, kwargs: Keywords) -> Iterator[None]:
    """Run the body; an error in it that the inputs of ``program`` explain becomes a `DataError` that says how.

    Parameters
    ----------
    who : runs it, for messages: ``"svi"``.
    args, kwargs : what the program is called with; inputs are the keyword ``u``, or dicts in ``args``.
    """
    try:
        yield
    except PpgenError:
        raise
    except RAISED as error:
        words = _words(f"{who}: {_name(program)}", program, args, kwargs, error)
        if words is None:
            raise
        raise DataError(words) from error


def refuse_negative_indexes(who: str, program: Program, args: Arguments, kwargs: Keywords) -> None:
    """Raise `DataError` where the program uses an input with negative whole numbers as an index.

    Only the program tells an index from a number: doses and contrasts are -1, 0 and 1 as well. A program that means it
    says so, by ``.clamp(min=0)`` and a value of its own for these rows.
    """
    inputs = _inputs(program, args, kwargs)
    if any(_has_negative(value) for value in inputs.values()):
        _refuse(who, program, _watched(program, args, kwargs))


def refuse_indexes(who: str, program: Program, args: Arguments, kwargs: Keywords) -> None:
    """Raise `DataError` where whole numbers among the inputs are used as an index that is not there, or is negative."""
    if any(not value.is_floating_point() for value in _inputs(program, args, kwargs).values()):
        _refuse(who, program, _watched(program, args, kwargs))


def _refuse(who: str, program: Program, watch: "_Watch") -> None:
    if watch.negative:
        raise DataError(
            f"{who}: {watch.negative} must be 0 or more where {_name(program)} takes it as an index, got "
            f"{watch.least}, by which torch takes the last ones; -1 is the code of a missing category: leave these "
            "rows out, or give them a number of their own (`codes.where(codes >= 0, codes.max() + 1)`) and the model "
            "one more group"
        )
    if watch.misused:
        raise DataError(_misuse(f"{who}: {_name(program)}", watch))


def _misuse(start: str, watch: "_Watch") -> str:
    return f"{start} takes {watch.misused} as an index, which fails: {watch.failure}; {watch.advice}"


def _watched(program: Program, args: Arguments, kwargs: Keywords) -> "_Watch":
    watch = _Watch(_inputs(program, args, kwargs))
    _rehearse(program, args, kwargs, watch)
    return watch


def _words(start: str, program: Program, args: Arguments, kwargs: Keywords, error: Exception) -> str | None:
    """Say how the inputs explain an error; None where they do not."""
    if "u" in kwargs and not isinstance(kwargs["u"], Mapping):
        return _unnamed(start, program, args, kwargs, error)
    if isinstance(error, KeyError):
        return _misnamed(start, program, args, kwargs)
    if "u" in kwargs and ("'dict'" in str(error) or "not dict" in str(error)):
        return f"{start} takes its inputs as one array, got {_some(list(kwargs['u']))} by name; pass one array as u"
    for name, value in _named(program, args, kwargs).items():
        if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
            return f"{start} must be given numbers in {name}, got {value.dtype}; {CATEGORIES}"
    watch = _watched(program, args, kwargs)
    return _misuse(start, watch) if watch.misused else None


def _unnamed(start: str, program: Program, args: Arguments, kwargs: Keywords, error: Exception) -> str | None:
    """Say that no inputs came, or one array, where the program asks for some by name, or for any."""
    u, asked = kwargs["u"], _Asked(len(args[0]))
    _rehearse(program, args, {**kwargs, "u": asked})
    came = "none" if u is None else f"one array of shape {tuple(u.shape)}"
    if asked.names:
        names = ", ".join(f"{name!r}: ..." for name in asked.names)
        return f"{start} takes inputs by name, got {came}; pass u={{{names}}}" + (
            "" if u is None else f" (of a table, u=dict(table[{asked.names}]))"
        )
    if u is None and "NoneType" in str(error):
        return f"{start} must be given inputs, got none; pass u, with a row for each row of x"
    return None


def _misnamed(start: str, program: Program, args: Arguments, kwargs: Keywords) -> str | None:
    """Say which input the program asks for that is not there."""
    heard = {name: _Heard(one) for name, one in kwargs.items() if isinstance(one, Mapping)}
    given = [cast(one, torch.float64, device_of(program, args)) for one in args]
    inside = [_Heard(one) if isinstance(one, dict) else one for one in given]
    _rehearse(program, tuple(inside), {**kwargs, **heard})
    named = [one for one in (*heard.values(), *inside) if isinstance(one, _Heard) and one.missed]
    if not named:
        return None
    name, there = named[0].missed[0], list(map(str, named[0]))
    alike = difflib.get_close_matches(name, there, n=1)
    where = "u" if heard else "the dict of inputs"
    advice = f"write {name!r} for {alike[0]!r} there, or in the program" if alike else f"add {name!r} to {where}"
    return f"{start} asks for the input {name!r}, got {_some(there)}; {advice}"


def _rehearse(program: Program, args: Arguments, kwargs: Keywords, watch: TorchFunctionMode | None = None) -> None:
    """Run a program for what is seen of it; that it fails is no news here."""
    dtype = next((one.dtype for one in args if isinstance(one, Tensor) and one.is_floating_point()), torch.float64)
    args = tuple(one if isinstance(one, _Heard) else cast(one, dtype, device_of(program, args)) for one in args)
    with suppress(Exception), private_stream(0), torch.no_grad(), private_pyro(dtype):
        if watch is None:
            program(*args, **kwargs)
        else:
            with watch:
                program(*args, **kwargs)


def _named(program: Program, args: Arguments, kwargs: Keywords) -> dict[str, Any]:
    """What a person calls each input -> what came; the data come first and are none."""
    try:
        names = list(inspect.signature(program).parameters)
    except (TypeError, ValueError):
        names = []
    names += [f"argument {place + 1}" for place in range(len(names), len(args))]
    given = {"u": kwargs["u"]} if "u" in kwargs else dict(zip(names[1:], args[1:], strict=False))
    found: dict[str, Any] = {}
    for name, value in given.items():
        inside = {f"{name}[{key!r}]": one for key, one in value.items()} if isinstance(value, Mapping) else None
        found |= {name: value} if inside is None else inside
    return found


def _inputs(program: Program, args: Arguments, kwargs: Keywords) -> dict[str, Tensor]:
    """The same as tensors, columns of a matrix each by itself too."""
    found: dict[str, Tensor] = {}
    for name, value in _named(program, args, kwargs).items():
        one = cast(value, torch.float64, torch.device("cpu"))
        if isinstance(one, Tensor) and one.ndim and one.layout == torch.strided:
            columns = range(one.shape[-1]) if one.ndim > 1 else ()
            found |= {name: one, **{f"{name}[..., {column}]": one[..., column] for column in columns}}
    return found


def _has_negative(value: Tensor) -> bool:
    return not value.is_complex() and bool((value < 0).any()) and bool((value == value.round()).all())


def _name(program: Program) -> str:
    owner = getattr(program, "__self__", program)
    return str(getattr(owner, "__name__", type(owner).__name__))


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (" and more" if len(names) > 6 else "") if names else "none"


@final
class _Asked(dict[str, Tensor]):
    """Inputs of any name, all zero, which note the names that a program asks for."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.names = rows, list[str]()

    def __missing__(self, name: object) -> Tensor:
        if not isinstance(name, str):
            raise KeyError(name)
        self.names.append(name)
        return self.setdefault(name, torch.zeros(self.rows, dtype=torch.int64))


@final
class _Heard(dict[str, Any]):
    """Inputs by name, which note the names that a program asks for in vain."""

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        super().__init__(inputs)
        self.missed = list[str]()

    def __missing__(self, name: object) -> None:
        self.missed.append(str(name))
        raise KeyError(name)


@final
class _Watch(TorchFunctionMode):
    """While it is entered: which inputs are taken as an index, where that fails or where they are negative."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.inputs = inputs
        self.misused, self.failure, self.advice = "", "", ""
        self.negative, self.least = "", 0

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 (of torch)
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the function returns)
        indexes = args[1:] if func is Tensor.__getitem__ else ()
        found = [] if self.negative else [leaf for leaf in tree_leaves(indexes) if isinstance(leaf, Tensor)]
        for index in found:
            if not index.is_floating_point() and index.numel() and int(index.min()) < 0:
                self.negative, self.least = self._called(index), int(index.min())
        try:
            return func(*args, **(kwargs or {}))
        except (IndexError, RuntimeError) as error:
            self._blame(args, kwargs or {}, func is Tensor.__getitem__, error)
            raise

    def _blame(self, args: tuple[Any, ...], kwargs: dict[str, Any], is_index: bool, error: Exception) -> None:
        """Note the input that made a function fail, if it is one."""
        words = str(error).strip().split("\n")[0].rstrip(".")
        for leaf in tree_leaves((args[is_index:], kwargs)):
            name = self._called(leaf) if isinstance(leaf, Tensor) and (is_index or "index" in words) else ""
            if name and not self.misused:
                whole = not leaf.is_floating_point()
                self.misused, self.failure = name, words
                self.advice = (
                    "number the groups from 0, and let the model have room for all of them"
                    if whole
                    else "pass whole numbers (`.astype(int)`)"
                )

    def _called(self, value: Tensor) -> str:
        """The input that has these values, in any shape."""
        flat = value.reshape(-1).double().cpu()
        same = (name for name, one in self.inputs.items() if one.numel() == len(flat))
        return next((name for name in same if torch.equal(self.inputs[name].reshape(-1).double(), flat)), "")
