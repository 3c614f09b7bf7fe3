r"""Quantities that are ranked: numbers of parameters and data, at the truth and at posterior draws alike.

Parameters alone do not show an engine that ignores the data (the prior is calibrated, too), so the log-likelihood is
always among them (Modrak et al. 2023). Where the labels of states or components carry no meaning, the entries are
sorted along them: every number here is the same for all labellings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from ppgen.data.parts import Inputs
from ppgen.errors import DataError, PpgenError
from ppgen.inference.calibration.shared_gaps import SharedGaps
from ppgen.inference.calibration.simulation import Data, Joint
from ppgen.model import Model
from ppgen.predictions import predictive
from ppgen.predictions.over_draws import gather
from ppgen.programs.density import Density, private_pyro
from ppgen.programs.enumeration import enumerated_log_prob

__all__ = ["Quantity", "evaluated", "imputed", "log_likelihoods", "parameters"]

Quantity = Callable[[dict[str, Tensor], Any], Any]
"""A function of one draw of the parameters {site: value} and one data set, to numbers of any one shape."""

MAPPED_AT_ONCE = 8192  # evaluations that are mapped over at a time
PLACES = 3  # hidden entries that are ranked one by one, beside their mean
LARGEST_QUANTITY = 10_000  # numbers that one quantity may have


def parameters(joint: Joint, theta: Mapping[str, Tensor], sites: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Sites {site: (R, M, *shape)}, sorted along the axes of labels; of a matrix over two such axes its diagonal."""
    known = joint.density.sites
    unknown = sorted(set(sites or ()) - set(known))
    if unknown:
        raise DataError(f"calibrate: sites must be among {sorted(known)}, got {unknown}")
    model = joint.model
    dims, labels = (model.dims, model.exchangeable) if isinstance(model, Model) else ({}, ())
    chosen = known if sites is None else sites
    return {name: _unlabelled(theta[name], dims.get(name, ()), labels).numpy(force=True) for name in chosen}


def log_likelihoods(joint: Joint, data: Data, theta: Mapping[str, Tensor]) -> np.ndarray:
    """Log p(data | theta), (R, M): everything but the priors of the continuous sites."""

    def one(values: dict[str, Tensor], observed: Data) -> Tensor:
        return _log_likelihood(joint.density, values, observed)

    with private_pyro(joint.density.dtype):
        values = _each(one, {name: theta[name] for name in joint.density.sites}, data)
    return values.numpy(force=True)


def imputed(joint: Joint, whole: Tensor, data: Tensor, theta: Mapping[str, Tensor], draws: int) -> np.ndarray | None:
    """The mean of the hidden entries and some of them, true and imputed at the first ``draws`` draws, (R, 1 + m, q).

    None where nothing is hidden. A draw of what is missing is one more unknown, so its ranks are uniform as well.
    """
    model, template = joint.model, joint.template
    if not isinstance(model, Model) or not isinstance(template, Tensor) or draws < 1:
        return None
    hidden = torch.isnan(template) & predictive.exists(model, template)
    if not hidden.any():
        return None
    count = min(draws, next(iter(theta.values())).shape[1] - 1)
    found = torch.full((len(data), 1 + count, int(hidden.sum())), torch.nan, dtype=torch.float64)
    for r, (seen, true) in enumerate(zip(data, whole, strict=True)):
        found[r, 0] = true[hidden]
        drawn = {name: value[r, 1 : 1 + count] for name, value in theta.items()}
        if all(bool(torch.isfinite(value).all()) for value in drawn.values()):
            answer = partial(_filled, model, seen, joint.u)
            found[r, 1:] = gather(answer, drawn, keep=hidden)
    return _summary(found).numpy(force=True)


def evaluated(name: str, quantity: Quantity, data: Data, theta: Mapping[str, Tensor]) -> np.ndarray:
    """A user's quantity, (R, M, *shape)."""
    try:
        values = _each(quantity, dict(theta), data)
    except PpgenError:
        raise
    except Exception as error:
        raise DataError(f"calibrate: quantity {name!r} must take (theta, data) of one draw, got {error!r}") from error
    if values[0, 0].numel() > LARGEST_QUANTITY:
        raise DataError(
            f"calibrate: quantity {name!r} must have at most {LARGEST_QUANTITY} numbers, got {values[0, 0].numel()}"
        )
    return values.double().numpy(force=True)


def _filled(model: Model, data: Tensor, u: Inputs, theta: Mapping[str, Tensor]) -> Tensor:
    return predictive.impute(model, theta, data, u=u)


def _unlabelled(value: Tensor, dims: Sequence[str], labels: Sequence[str]) -> Tensor:
    """Numbers that are the same under every numbering of the ``labels``."""
    axes = {axis: dim.removeprefix("next_") for axis, dim in enumerate(dims) if dim.removeprefix("next_") in labels}
    places = [2 + axis for axis in axes]
    if len(places) == 2 and len(set(axes.values())) == 1:
        return value.diagonal(dim1=places[0], dim2=places[1]).sort(-1).values
    if len(places) > 1:
        return value.flatten(2).sort(-1).values
    return value.sort(places[0]).values if places else value


def _log_likelihood(density: Density, values: Mapping[str, Tensor], data: Data) -> Tensor:
    conditioned = density.with_arguments(data)
    with _Unscored(conditioned.sites):
        trace = conditioned.trace(values)
    return enumerated_log_prob(trace) if conditioned.enumerated else torch.as_tensor(trace.log_prob_sum())


def _summary(hidden: Tensor) -> Tensor:
    """Mean and a few entries of (R, M, entries)."""
    places = torch.linspace(0, hidden.shape[-1] - 1, min(PLACES, hidden.shape[-1])).long().unique()
    return torch.cat([hidden.mean(-1, keepdim=True), hidden[..., places]], -1)


def _each(function: Quantity, theta: dict[str, Tensor], data: Data) -> Tensor:
    """``function`` of every draw {site: (R, M, *shape)} and its data set: mapped where it can be, else one by one."""
    try:
        with torch.no_grad(), _seeded():
            return _mapped(function, theta, data)
    except Exception:  # noqa: BLE001 (whatever cannot be mapped: the slow way shows whether it is wrong)
        with torch.no_grad():
            return _one_by_one(function, theta, data)


def _mapped(function: Quantity, theta: dict[str, Tensor], data: Data) -> Tensor:
    """Values (R, M, ...) of a quantity, mapped over data sets and over draws, so many evaluations at a time."""
    sets, draws = next(iter(theta.values())).shape[:2]

    def of_set(draws: dict[str, Tensor], observed: Data) -> Tensor:
        with SharedGaps():
            return vmap(function, in_dims=(0, None), randomness="different")(draws, observed)

    both = vmap(of_set, randomness="different")
    step = max(1, MAPPED_AT_ONCE // sets)
    parts = []
    for first in range(0, draws, step):
        part = {name: value[:, first : first + step] for name, value in theta.items()}
        blocks = [
            both(
                {name: value[start : start + MAPPED_AT_ONCE] for name, value in part.items()},
                tree_map(lambda leaf, start=start: leaf[start : start + MAPPED_AT_ONCE], data),
            )
            for start in range(0, sets, MAPPED_AT_ONCE)
        ]
        parts.append(torch.cat(blocks))
    return torch.cat(parts, 1)


def _one_by_one(function: Quantity, theta: dict[str, Tensor], data: Data) -> Tensor:
    sets, draws = next(iter(theta.values())).shape[:2]
    rows = []
    for r in range(sets):
        observed = tree_map(lambda leaf, r=r: leaf[r], data)
        for m in range(draws):
            value = function({name: values[r, m] for name, values in theta.items()}, observed)
            rows.append(torch.as_tensor(value, dtype=torch.float64))
    shapes = {tuple(row.shape) for row in rows}
    if len(shapes) > 1:
        raise DataError(f"calibrate: a quantity must have one shape, got {sorted(shapes)}")
    return torch.stack(rows).unflatten(0, (sets, draws))


@contextmanager
def _seeded() -> Iterator[None]:
    """Leave the generator where it was if the attempt fails."""
    state = torch.get_rng_state()
    try:
        yield
    except BaseException:
        torch.set_rng_state(state)
        raise


@final
class _Unscored(Messenger):
    """Takes the priors of sites out of the log density."""

    def __init__(self, names: Mapping[str, object]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:  # noqa: ANN401 (Pyro's message)
        if msg["name"] in self.names:
            msg["mask"] = False
