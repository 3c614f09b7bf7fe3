"""Inputs given sequence by sequence belong to their sequence, step by step; what is ambiguous is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ppgen.data import as_observations
from ppgen.data.by_sequence import read_inputs_of
from ppgen.errors import DataError

LENGTHS = {"mon": 5, "tue": 3, "wed": 4}
GENERATOR = np.random.default_rng(0)
X = {key: GENERATOR.normal(size=(n, 2)) for key, n in LENGTHS.items()}
ARRAYS = {key: GENERATOR.normal(size=(n, 2)) for key, n in LENGTHS.items()}
FRAMES = {key: pd.DataFrame(one, columns=["sun", "rain"]) for key, one in ARRAYS.items()}
AHEAD = {key: GENERATOR.normal(size=(n + 2, 2)) for key, n in LENGTHS.items()}
PADDED = np.stack([np.pad(one, [(0, 5 - len(one)), (0, 0)]) for one in ARRAYS.values()])


def read(u, x=X, known=None, horizon=0):
    return read_inputs_of("test", u, as_observations(x), known, horizon)


FORMS = {
    "dict": ARRAYS,
    "dict in another order": dict(reversed(ARRAYS.items())),
    "dict of tensors": {key: torch.tensor(one) for key, one in ARRAYS.items()},
    "dict of frames": FRAMES,
    "dict of arrays with dims": {key: xr.DataArray(one, dims=("time", "input")) for key, one in ARRAYS.items()},
    "list": list(ARRAYS.values()),
    "list of frames": list(FRAMES.values()),
    "columns in another order": {**FRAMES, "tue": FRAMES["tue"][["rain", "sun"]]},
    "as long as the longest": dict(zip(ARRAYS, PADDED, strict=True)),
    "one array": PADDED,
}


@pytest.mark.parametrize("u", FORMS.values(), ids=FORMS)
def test_every_form_is_one_array_with_zeros_past_each_end(u):
    found = read(u).inputs
    np.testing.assert_array_equal(found.values, PADDED)
    frames = isinstance(next(iter(u.values() if isinstance(u, dict) else u)), pd.DataFrame)
    assert list(found.names.get("input", [])) == (["sun", "rain"] if frames else [])


def test_columns_come_in_the_order_of_the_fit():
    found = read(FRAMES, known={"input": np.array(["rain", "sun"])}).inputs
    np.testing.assert_array_equal(found.values, PADDED[..., ::-1])


def test_a_series_of_each_sequence_is_one_input():
    np.testing.assert_array_equal(read({key: one["sun"] for key, one in FRAMES.items()}).inputs.values, PADDED[..., :1])


def test_named_inputs_may_come_so_too_beside_others_and_whole_numbers_stay_whole():
    codes = {key: pd.DataFrame({"code": np.arange(n)}) for key, n in LENGTHS.items()}
    found = read({"rain": FRAMES, "dose": np.arange(3.0), "code": codes}).inputs
    assert list(found.values) == ["rain", "dose", "code"]
    np.testing.assert_array_equal(found.values["rain"], PADDED)
    np.testing.assert_array_equal(found.values["dose"], np.arange(3.0))
    assert found.values["code"].dtype == torch.int64
    assert found.values["code"][1, :, 0].tolist() == [0, 1, 2, 0, 0]
    assert found.names["rain_input"].tolist() == ["sun", "rain"]
    alone = read({"rain": FRAMES}).inputs
    np.testing.assert_array_equal(alone.values["rain"], PADDED)


def test_names_of_inputs_that_no_sequence_has_are_names_of_inputs():
    assert list(read({"a": np.zeros(3), "b": np.zeros((3, 5, 1))}).inputs.values) == ["a", "b"]


def test_numbered_sequences_are_known_by_their_numbers():
    x, u = ({place: one[key] for place, key in enumerate(LENGTHS)} for one in (X, ARRAYS))
    np.testing.assert_array_equal(read({2: u[2], 0: u[0], 1: u[1]}, x).inputs.values, PADDED)


def test_inputs_of_the_steps_ahead_follow_the_end_of_their_own_sequence():
    found = read(AHEAD, horizon=2)
    for place, (key, n) in enumerate(LENGTHS.items()):
        np.testing.assert_array_equal(found.inputs.values[place, : n + 2], AHEAD[key])
        assert not found.inputs.values[place, n + 2 :].any()
    assert found.longer.sizes["time"] == 7


def dated(arrays, start="2026-01-01"):
    return {key: pd.DataFrame(one, pd.date_range(start, periods=len(one)), ["a", "b"]) for key, one in arrays.items()}


def test_rows_are_told_by_their_times_and_the_times_ahead_are_those_of_each_sequence():
    u = {key: one[::-1] for key, one in dated(AHEAD).items()}
    found = read(u, dated(X), horizon=2)
    np.testing.assert_array_equal(found.inputs.values, read(AHEAD, horizon=2).inputs.values)
    assert pd.DatetimeIndex(found.times[1]).equals(pd.date_range("2026-01-04", periods=2))
    assert pd.DatetimeIndex(found.times[0]).equals(pd.date_range("2026-01-06", periods=2))
    late = dated(ARRAYS, "2027-01-01")
    with pytest.raises(DataError, match=r"test: u\['mon'\] must have the times of x, 2026"):
        read(late, dated(X))


REFUSED = {
    "fewer sequences": ({"mon": ARRAYS["mon"], "tue": ARRAYS["tue"]}, r"u must have the sequences of x as its keys"),
    "more sequences": ({**ARRAYS, "sun": ARRAYS["mon"]}, r"u must have the sequences of x as its keys, mon, tue, wed,"),
    "sequences and a name": ({"mon": ARRAYS["mon"], "dose": np.zeros(3)}, r"or names of inputs alone, got \['mon', 'd"),
    "in a named input": ({"rain": {"mon": ARRAYS["mon"]}}, r"u\['rain'\] must have the sequences of x as its keys"),
    "another length": (
        {**ARRAYS, "tue": ARRAYS["tue"][:2]},
        r"u\['tue'\] must have a row for each of the 3 steps of its sequence, 3, got 2",
    ),
    "named inputs in disguise": (
        {key: np.zeros((3, 5, 1)) for key in LENGTHS},
        r"u\['mon'\] must be the inputs of one sequence, \(time, input\), got shape \(3, 5, 1\)",
    ),
    "no axis of inputs": ([one[:, 0] for one in ARRAYS.values()], r"u\[0\] must be the inputs .* got shape \(5,\)"),
    "other columns": (
        {**FRAMES, "tue": FRAMES["tue"].rename(columns={"rain": "snow"})},
        r"u\['tue'\] must have the inputs of the fit, \['sun', 'rain'\], got \['sun', 'snow'\]",
    ),
    "fewer columns": ({**ARRAYS, "tue": ARRAYS["tue"][:, :1]}, r"must have as many inputs each, got \[2, 1, 2\]"),
    "NaN": ({**ARRAYS, "tue": ARRAYS["tue"] * np.nan}, r"u\['tue'\] must be finite, got nan"),
}


@pytest.mark.parametrize(("u", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_ambiguous_or_does_not_fit_is_refused_in_words(u, message):
    with pytest.raises(DataError, match=message):
        read(u)


def test_a_row_short_of_the_steps_ahead_is_refused():
    with pytest.raises(DataError, match=r"u\['mon'\] must have a row for each of the 5 steps .* the 2 ahead, 7, got 5"):
        read(ARRAYS, horizon=2)
