"""Questions to a fit: data and inputs of any form, brought into the order of those it was fitted to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppgen.data.ahead import rows_wanted
from ppgen.data.arrays import to_tensor
from ppgen.data.by_sequence import read_inputs_of
from ppgen.data.inputs import LabelledInputs
from ppgen.data.parts import Inputs
from ppgen.errors import DataError, FitError, PpgenError
from ppgen.predictions.conditioned import run
from ppgen.predictions.local_sites import remember_rows
from ppgen.programs.explained import refuse_indexes
from ppgen.programs.program import Function
from ppgen.results.function_rows import OTHER_INPUTS, as_fitted
from ppgen.rng import private_stream

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["Read", "check_hiding", "read", "read_ahead"]

Read = tuple[xr.DataArray, Tensor, Inputs]
"""Labelled data, the same as a tensor, and inputs."""


def read(fit: "Fit", x: object, u: object) -> Read:
    """Read ``x`` and ``u`` as the fit's model takes them.

    Named features and inputs are brought into the order of the fit, and rows of ``u`` into that of the rows of ``x``.
    Rows of ``x`` stay where they are, but for those of a plain function: see :mod:`ppgen.results.function_rows`.

    Raises
    ------
    DataError : data or inputs that the fit cannot be asked about, in words.
    """
    return read_ahead(fit, x, u, 0)[0]


def read_ahead(fit: "Fit", x: object, u: object, horizon: int) -> tuple[Read, np.ndarray | None]:
    """Read as `read` does, inputs with a row for each of ``horizon`` steps behind those of ``x`` too.

    Their times (N, horizon), behind the end of each sequence, come along where ``u`` brings them.
    """
    observations = as_fitted(fit, fit.model.observations(x))
    data = to_tensor(observations)
    fit.model.check(data)
    horizon = horizon if observations.dims[1:2] == ("time",) else 0
    _check_rows(fit, data)
    inputs, longer, times = read_inputs_of("Fit", u, observations, fit.labels, horizon)
    _check_inputs(fit, inputs, data, horizon)
    refuse_indexes("Fit", fit.model.model, (to_tensor(longer),), {"u": inputs.values})
    remember_rows(fit.model, data, inputs.values)
    return (observations, data, inputs.values), times


def _check_rows(fit: "Fit", x: Tensor) -> None:
    """Refuse other rows than a function's further arguments have, where it does not run with them."""
    rest = tree_leaves(fit.model.rest) if isinstance(fit.model, Function) else []
    sizes = [len(part) for part in rest if isinstance(part, Tensor) and part.ndim]
    if not sizes or not x.ndim or len(x) in sizes:
        return
    try:
        with private_stream(0):
            run(fit.model, {}, x, None)
    except (PpgenError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            f"Fit: x must have the rows of the fit, got {len(x)}, for further arguments of the function stay as they "
            f"were, with {max(sizes)} rows; {OTHER_INPUTS}"
        ) from error


def _check_inputs(fit: "Fit", inputs: LabelledInputs, x: Tensor, horizon: int) -> None:
    """Refuse inputs where the fit had none, their absence where it had some, and other columns or steps than wanted."""
    if isinstance(fit.model, Function) and inputs.values is not None:
        raise DataError(
            f"Fit: a function has no inputs u, its further arguments are as they were; leave u out, or {OTHER_INPUTS}"
        )
    expected, got = _shapes(fit.attrs.get("inputs", inputs.shape)), _shapes(inputs.shape)
    timed = horizon and any(len(shape) == 3 for shape in expected.values())
    rows = f", with {rows_wanted(x.shape[1], horizon)}" if timed else ""
    if list(expected) != list(got):
        raise DataError(
            f"Fit: u must be as in the fit, which had {_words(expected)}, got {_words(got) if got else 'none'}; "
            + (f"pass u{rows}" if expected else "leave u out")
        )
    steps = x.shape[1] + horizon if fit.model.data_dims[1:2] == ("time",) else None
    for name, shape in expected.items():
        came = got[name]
        if len(shape) != len(came) or (len(shape) > 1 and came[-1] not in (shape[-1], steps)):
            raise DataError(
                f"Fit: {name} must have {len(shape)} axes and the columns of the fit, whose shape was {tuple(shape)}, "
                f"got {tuple(came)}; pass the same columns"
            )
        if rows and len(came) == 3 and came[1] != steps:
            raise DataError(
                f"Fit: {name} must have {rows_wanted(x.shape[1], horizon)}, got {came[1]}; pass the rows of the past "
                "and of the future"
            )


def _shapes(found: Sequence[int] | Mapping[str, Sequence[int]] | None) -> dict[str, Sequence[int]]:
    """Name of each input -> its shape; nothing where there are none."""
    if isinstance(found, Mapping):
        return {f"u[{name!r}]": found[name] for name in sorted(found)}
    return {} if found is None else {"u": found}


def _words(shapes: Mapping[str, Sequence[int]]) -> str:
    if list(shapes) == ["u"]:
        return f"inputs of shape {tuple(shapes['u'])}"
    return " and ".join(shapes) or "no inputs"


def check_hiding(fit: "Fit", who: str) -> None:
    """Refuse a question that hides entries, or shows others, of a model to which being missing says something.

    Raises
    ------
    FitError : the fit is of such a model.
    """
    if fit.model.only_gibbs:
        raise FitError(
            f"{who}: hides entries to ask about them, which to {type(fit.model).__name__} says that they are large or "
            "small; ask a fit of the model inside it"
        )
