"""Inputs given sequence by sequence, each as long as its own: one array, with zeros past the end of a shorter one.

No model reads inputs past the end of a sequence, and a forecast reads those ahead of each sequence's own end.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from ppgen.data.ahead import with_steps_ahead
from ppgen.data.arrays import lengths, to_tensor
from ppgen.data.inputs import INPUT, LabelledInputs, few, from_frame, positions, read_inputs, read_one
from ppgen.data.tables import as_frame
from ppgen.errors import DataError

__all__ = ["ReadInputs", "read_inputs_of"]

Known = Mapping[str, np.ndarray]
Member = tuple[str, Any]
"""What the inputs of one sequence are called in messages, and they themselves."""

TABLES = pd.DataFrame | pd.Series | xr.DataArray


class ReadInputs(NamedTuple):
    """Inputs as a program takes them, the data with the steps ahead, and the times of these (N, horizon) if known."""

    inputs: LabelledInputs
    longer: xr.DataArray
    times: np.ndarray | None


class _OneInput(NamedTuple):
    values: Tensor
    names: Known
    times: np.ndarray | None


def read_inputs_of(
    who: str, u: object, observations: xr.DataArray, known: Known | None = None, horizon: int = 0
) -> ReadInputs:
    """Read inputs as :func:`ppgen.data.inputs.read_inputs` does, also those that come sequence by sequence.

    Parameters
    ----------
    u : what `read_inputs` takes; where the data have sequences and time also a dict of arrays (time, input) or tables
        by the names of all sequences, or a list of them in order, each with a row for each step of its own sequence;
        or a dict of such by the name of the input.
    horizon : steps ahead of each sequence's end, for which inputs have rows too.

    Raises
    ------
    DataError : names of some but not all sequences, inputs of another length than their sequence, or what `read_inputs`
        and `with_steps_ahead` refuse.
    """
    what, known = f"{who}: u", known or {}
    members = _members(what, u, observations)
    if members is not None:
        values, names, times = _joined(members, observations, INPUT, known, horizon)
        longer = with_steps_ahead(what, None, observations, horizon) if horizon else observations
        return ReadInputs(LabelledInputs(values, names), longer, times)
    ragged = _ragged_by_name(what, u, observations)
    if not ragged:
        longer = with_steps_ahead(what, u, observations, horizon) if horizon else observations
        return ReadInputs(read_inputs(who, u, longer, known), longer, _times(longer, observations, horizon))
    named = cast(Mapping[str, Any], u)
    rest = {name: one for name, one in named.items() if name not in ragged}
    plain, longer, ahead = read_inputs_of(who, rest or None, observations, known, horizon)
    found = {
        name: _joined(parts, observations, f"{name}_{INPUT}", known, horizon, whole=True)
        for name, parts in ragged.items()
    }
    values_of = {**cast(Mapping[str, Tensor], plain.values or {}), **{name: one.values for name, one in found.items()}}
    names = {**plain.names, **{axis: labels for one in found.values() for axis, labels in one.names.items()}}
    times = next((one for one in (ahead, *(one.times for one in found.values())) if one is not None), None)
    return ReadInputs(LabelledInputs({name: values_of[name] for name in named}, names), longer, times)


def _members(what: str, u: object, observations: xr.DataArray) -> list[Member] | None:
    """The inputs of each sequence, in the order of the data; None where they do not come so."""
    row = str(observations.dims[0])
    if observations.dims[1:2] != ("time",):
        return None
    if isinstance(u, list | tuple):
        ragged = len(u) == len(observations) and _is_ragged(u)
        return [(f"{what}[{place}]", one) for place, one in enumerate(u)] if ragged else None
    if not isinstance(u, Mapping) or row not in observations.coords:
        return None
    keys, labels = list(u), observations[row].values
    order = positions(labels, keys)
    if order is not None:
        return [(f"{what}[{keys[place]!r}]", u[keys[place]]) for place in order]
    if set(map(str, keys)) & set(map(str, labels.tolist())):
        raise DataError(
            f"{what} must have the {row}s of x as its keys, {few(labels)}, all and no others, or names of inputs "
            f"alone, got {keys[:6]}; select the {row}s of x, or give inputs other names"
        )
    return None


def _is_ragged(u: Sequence[object]) -> bool:
    """Tell whether a list holds the inputs of sequences: tables, or arrays of several lengths."""
    if all(isinstance(one, pd.DataFrame | xr.DataArray) for one in u):
        return True
    if not all(isinstance(one, np.ndarray | Tensor | TABLES) and one.ndim for one in u):
        return False
    return len({len(cast(np.ndarray, one)) for one in u}) > 1


def _ragged_by_name(what: str, u: object, observations: xr.DataArray) -> dict[str, list[Member]]:
    """Inputs by name of which each comes sequence by sequence."""
    if not isinstance(u, Mapping):
        return {}
    found = {name: _members(f"{what}[{name!r}]", one, observations) for name, one in u.items()}
    return {name: members for name, members in found.items() if members is not None and isinstance(name, str)}


def _joined(
    members: Sequence[Member], observations: xr.DataArray, axis: str, known: Known, horizon: int, *, whole: bool = False
) -> _OneInput:
    """Inputs (N, T + horizon, U) of all sequences, and the times ahead (N, horizon)."""
    steps = observations.sizes["time"]
    ends = observations["length"] if "length" in observations.coords else lengths(to_tensor(observations))
    found: list[_OneInput] = []
    for place, (what, one) in enumerate(members):
        _check_axes(what, one)
        own = observations[place : place + 1]
        if len(one) != steps + horizon:  # not made as long as the longest
            own = own.isel(time=slice(int(ends[place])))
        found.append(_of_one(what, one, own, axis, {**(found[0].names if found else {}), **known}, horizon, whole))
    parts = [one.values[0] for one in found]
    if len({part.shape[1] for part in parts}) > 1:
        widths = [part.shape[1] for part in parts]
        raise DataError(f"{members[0][0]} and the others must have as many inputs each, got {widths[:6]}; select them")
    kind = torch.float64 if any(part.is_floating_point() for part in parts) else torch.int64
    padded = [nn.functional.pad(part.to(kind), (0, 0, 0, steps + horizon - len(part))) for part in parts]
    times = [one.times for one in found if one.times is not None]
    together = np.concatenate(times) if len(times) == len(found) else None
    return _OneInput(torch.stack(padded), found[0].names, together)


def _check_axes(what: str, one: object) -> None:
    """Refuse inputs of a sequence that are not (time, input)."""
    shape = one.shape if isinstance(one, Tensor | TABLES) else np.shape(cast(Any, one))
    if len(shape) != 2 and not isinstance(one, pd.Series):
        raise DataError(
            f"{what} must be the inputs of one sequence, (time, input), got shape {tuple(shape)}; add the axis that it "
            "lacks, or give inputs by names that no sequence has"
        )


def _of_one(
    what: str,
    one: Any,  # noqa: ANN401 (a member)
    own: xr.DataArray,
    axis: str,
    known: Known,
    horizon: int,
    whole: bool,  # noqa: ANN401 (inputs)
) -> _OneInput:
    """Inputs (1, T + horizon, U) beside data that are one sequence, its steps told by their times if both have some."""
    wanted = own.sizes["time"] + horizon
    if len(one) != wanted:
        ahead = f" and the {horizon} ahead" if horizon else ""
        raise DataError(
            f"{what} must have a row for each of the {own.sizes['time']} steps of its sequence{ahead}, {wanted}, got "
            f"{len(one)}; pass as many"
        )
    if isinstance(one, pd.DataFrame | pd.Series):
        one = from_frame(what, as_frame(one), tuple(map(str, own.dims[1:])), whole=whole)
    one = one.expand_dims(own.dims[0]) if isinstance(one, xr.DataArray) else one[None]
    longer = with_steps_ahead(what, one, own, horizon) if horizon else own
    values, names = read_one(what, one, longer, axis, known, whole=whole)
    return _OneInput(values, names, _times(longer, own, horizon))


def _times(longer: xr.DataArray, observations: xr.DataArray, horizon: int) -> np.ndarray | None:
    """Times (N, horizon) of the steps that follow the end of each sequence, if there are any."""
    if not horizon or "time" not in longer.coords:
        return None
    places = lengths(to_tensor(observations))[:, None] + torch.arange(horizon)
    return np.asarray(longer["time"].values[places.numpy()])
