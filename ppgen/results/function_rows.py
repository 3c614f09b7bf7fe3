"""Rows of a plain function, by their labels: its further arguments stay as they were, in the order of the fit.

Data with the labels of the fit in another order are brought into that of the fit, so that every row meets its own
covariates, and what is answered is brought back into the order of the question.
"""

from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import pandas as pd
import xarray as xr
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppgen.data.inputs import aligned_features, counted, few, positions
from ppgen.errors import DataError
from ppgen.programs.program import Function

if TYPE_CHECKING:
    from ppgen.results.fit import Fit

__all__ = ["OTHER_INPUTS", "as_asked", "as_fitted"]

OTHER_INPUTS = (
    "to ask about rows with other inputs, fit a Model that takes inputs u, not a function (docs/models/your_own.md)"
)

A = TypeVar("A", bound=xr.DataArray | xr.Dataset)


def as_fitted(fit: "Fit", observations: xr.DataArray) -> xr.DataArray:
    """Data with named features in the order of the fit; of a plain function, rows with labels too.

    Raises
    ------
    DataError : other features; or other rows, where further arguments of the function have one for each of the fit.
    """
    if not isinstance(fit.model, Function):
        return aligned_features("Fit", observations, fit.labels)
    axes = zip(map(str, observations.dims), fit.model.data_dims, strict=True)
    observations = aligned_features("Fit", observations, {d: fit.labels[own] for d, own in axes if own in fit.labels})
    order = _order(fit, observations)
    return observations if order is None else observations.isel({observations.dims[0]: order})


def as_asked(fit: "Fit", x: object, answer: A) -> A:
    """An answer about ``x`` with its rows in the order in which ``x`` has them."""
    if not isinstance(fit.model, Function) or fit.model.data_dims[0] not in fit.labels:
        return answer
    observations = fit.model.observations(x)
    row = str(observations.dims[0])
    if _order(fit, observations) is None or row not in answer.coords:
        return answer
    places = pd.Index(observations[row].values).get_indexer(answer[row].values)
    return cast(A, answer.isel({answer[row].dims[0]: np.argsort(places, kind="stable")}))


def _order(fit: "Fit", observations: xr.DataArray) -> np.ndarray | None:
    """Positions that bring rows into the order of the fit; None where they stay as they are.

    Rows without labels stay, and those that are merely counted beside names; so do rows of other labels, unless a
    further argument has one for each row of the fit.
    """
    known, row = fit.labels.get(fit.model.data_dims[0]), observations.dims[0]
    if known is None or row not in observations.coords:
        return None
    labels = observations[row].values
    order = positions(known, labels)
    if order is not None:
        return None if np.array_equal(order, np.arange(len(order))) else order
    if len(labels) == len(known) and (counted(labels, known) or counted(known, labels)):
        return None
    if not _has_argument_of(fit, len(known)):
        return None
    unknown = [label for label in labels.tolist() if label not in set(known.tolist())]
    raise DataError(
        f"Fit: x must have the rows of the fit, {few(known)}, in any order, got {few(labels)}"
        + (f", {unknown[0]!r} among them" if unknown else "")
        + f"; further arguments of the function stay as they were, with one for each row; {OTHER_INPUTS}"
    )


def _has_argument_of(fit: "Fit", rows: int) -> bool:
    """Tell whether a further argument of the function has an axis as long as the fit had rows."""
    rest = tree_leaves(fit.model.rest) if isinstance(fit.model, Function) else []
    return any(isinstance(part, Tensor) and rows in part.shape for part in rest)
