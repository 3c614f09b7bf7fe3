"""The labelled layer: nothing guessed, nothing lost, everything else refused in words."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ppgen.data import as_observations, lengths, like, to_tensor
from ppgen.data.arrays import DIMS, exists
from ppgen.errors import DataError


def test_an_array_keeps_its_values_and_gains_names():
    values = np.random.default_rng(0).normal(size=(2, 5, 3))
    x = as_observations(values)
    assert x.dims == ("sequence", "time", "feature")
    assert x.name == "x"
    np.testing.assert_array_equal(x.values, values)
    x[0, 0, 0] = 7.0
    assert values[0, 0, 0] != 7.0


def test_a_tensor_an_integer_array_and_a_nested_frame_become_float64():
    for values in (torch.ones(1, 4, 2), np.ones((1, 4, 2), dtype=np.int8), np.ones((1, 4, 2), dtype=bool)):
        assert as_observations(values).dtype == np.float64


def test_a_ragged_dict_ends_in_nan_and_remembers_names_and_lengths():
    x = as_observations({"b": np.ones((2, 3)), "a": np.zeros((4, 3))})
    assert x.coords["sequence"].values.tolist() == ["b", "a"]
    assert x.coords["length"].values.tolist() == [2, 4]
    assert np.isnan(x.values[0, 2:]).all()
    assert not np.isnan(x.values[0, :2]).any()


def test_the_given_length_survives_frames_that_end_in_nan():
    recording = np.ones((5, 2))
    recording[3:] = np.nan
    assert as_observations([recording]).coords["length"].values.tolist() == [5]


def test_a_frame_is_one_sequence_with_its_own_labels():
    frame = pd.DataFrame({"speed": [1, 2], "turn": [0.5, np.nan]}, index=[0.1, 0.2])
    x = as_observations(frame)
    assert x.shape == (1, 2, 2)
    assert x.coords["feature"].values.tolist() == ["speed", "turn"]
    assert x.coords["time"].values.tolist() == [0.1, 0.2]


def test_frames_with_other_columns_are_not_mixed():
    with pytest.raises(DataError, match="every frame must have the columns"):
        as_observations([pd.DataFrame({"a": [1.0]}), pd.DataFrame({"b": [1.0]})])


def test_a_data_array_is_read_by_names_not_by_position():
    x = xr.DataArray(np.arange(6.0).reshape(2, 3), dims=("feature", "time"), coords={"feature": ["u", "v"]})
    y = as_observations(x)
    assert y.shape == (1, 3, 2)
    np.testing.assert_array_equal(y.values[0], x.values.T)
    np.testing.assert_array_equal(as_observations(xr.Dataset({"pose": x})).values, y.values)


def test_masked_entries_become_nan_whatever_lies_under_the_mask():
    masked = np.ma.array(np.ones((1, 2, 1)), mask=[[[True], [False]]])
    masked.data[0, 0, 0] = np.inf
    np.testing.assert_array_equal(as_observations(masked).values.ravel(), [np.nan, 1.0])


def test_other_dims_are_possible():
    x = as_observations(np.ones((4, 2)), dims=("row", "feature"), coords={"feature": ["a", "b"]})
    assert x.dims == ("row", "feature")
    assert "length" not in x.coords


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((3, 2)), r"x: must have 3 axes \(sequence, time, feature\), got shape \(3, 2\)"),
        (np.array([[["a"]]]), "x: must hold real numbers, got <U1; encode it as numbers"),
        (np.array([[[None]]], dtype=object), "must hold real numbers, got object"),
        (np.ones((1, 1, 1), dtype=complex), "got complex128; use .real and .imag"),
        (np.full((1, 2, 1), np.inf), "must be finite or NaN, got inf at sequence 0, time 0, feature 0"),
        (
            xr.DataArray(np.ones((2, 2)), dims=("time", "space")),
            "dims must be sequence, time, feature, got time, space",
        ),
        (xr.Dataset({"a": ("time", [1.0]), "b": ("time", [1.0])}), r"one variable, got \['a', 'b'\]"),
        (pd.DataFrame({"a": ["x"]}), r"must hold numbers, its columns \['a'\] do not"),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "columns must differ"),
        ([], "must hold at least one sequence, got none"),
        (np.ones((0, 3, 2)), r"must hold at least one entry, got shape \(0, 3, 2\)"),
        (torch.ones(2, 3).to_sparse(), r"must have 3 axes"),
        ([np.ones((2, 3)), np.ones((2, 4))], "every sequence must have the same feature axis"),
        ([[1.0, 2.0]], r"x\[0\]: must be an array, got a list"),
        ({"a": np.ones(3)}, r"x\['a'\]: must have 2 axes \(time, feature\)"),
        ("mouse.csv", "must be an array, tensor, list or dict of arrays, DataFrame or DataArray, got str"),
        (3.0, "got float"),
    ],
)
def test_the_rest_is_refused_in_words(x, message):
    with pytest.raises(DataError, match=message):
        as_observations(x)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="feature must have 2 labels, got 3"):
        as_observations(np.ones((1, 3, 2)), coords={"feature": ["a", "b", "c"]})
    with pytest.raises(DataError, match="coords must label"):
        as_observations(np.ones((1, 3, 2)), coords={"state": ["a"]})


def test_lengths_end_at_the_last_seen_frame():
    x = torch.full((3, 4, 2), torch.nan, dtype=torch.float64)
    x[0, 1, 1] = 1.0
    x[1, 3] = 1.0
    assert lengths(x).tolist() == [2, 4, 0]


def test_answers_come_back_with_the_labels_of_the_data():
    x = as_observations({"m1": np.ones((3, 2)), "m2": np.ones((2, 2))}, coords={"feature": ["a", "b"]})
    z = like(x, torch.zeros(2, 3, 4), ("sequence", "time", "state"), coords={"state": list("wxyz")})
    assert z.coords["sequence"].values.tolist() == ["m1", "m2"]
    assert z.coords["length"].values.tolist() == [3, 2]
    assert "feature" not in z.coords
    with pytest.raises(DataError, match="time must have length 3 like the data, got 5"):
        like(x, np.zeros((2, 5)), ("sequence", "time"))


def test_a_tensor_of_observations_shares_no_memory():
    x = as_observations(np.zeros((1, 2, 1)))
    to_tensor(x)[0, 0, 0] = 1.0
    assert x.values[0, 0, 0] == 0.0


DAYS = pd.date_range("2026-01-01", periods=4)


@pytest.mark.parametrize(
    ("index", "labels"),
    [
        (DAYS, DAYS.to_numpy()),
        (DAYS.tz_localize("Europe/Paris"), (DAYS - pd.Timedelta("1h")).to_numpy()),
        (pd.period_range("2026-01", periods=4, freq="Q"), pd.date_range("2026-01-01", periods=4, freq="QS").to_numpy()),
        (pd.timedelta_range("0s", periods=4, freq="s"), np.arange(4).astype("timedelta64[s]")),
        (pd.Index(["a", "b", "c", "d"]), np.array(["a", "b", "c", "d"])),
        (pd.Index([0.5, 1.0, 1.5, 2.0]), np.array([0.5, 1.0, 1.5, 2.0])),
    ],
    ids=["dates", "zone", "periods", "durations", "text", "numbers"],
)
def test_rows_of_a_frame_keep_their_labels(index, labels, caplog):
    frame = pd.DataFrame({"speed": np.arange(4.0)}, index=index)
    found = as_observations(frame)
    np.testing.assert_array_equal(found["time"].values, labels)
    shared = as_observations({"a": frame, "b": frame[:2]})
    np.testing.assert_array_equal(shared["time"].values, labels)
    assert np.isnan(shared.values[1, 2:]).all()
    series = as_observations(frame["speed"])
    np.testing.assert_array_equal(series.values, found.values)
    assert series["feature"].values.tolist() == ["speed"]
    assert not caplog.messages


def test_frames_with_rows_of_their_own_are_counted_and_the_log_says_so(caplog):
    frames = {
        "a": pd.DataFrame({"v": [1.0, 2.0]}, index=DAYS[:2]),
        "b": pd.DataFrame({"v": [1.0, 2.0]}, index=DAYS[2:]),
    }
    assert "time" not in as_observations(frames, name="differ").coords
    assert caplog.messages == [
        "differ: labels along its members (times, say) differ, so answers count their rows from 0"
    ]


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [0, 1, 1, 3], [3, 2, 1, 0]])
def test_dates_that_do_not_go_forward_are_refused(order):
    frame = pd.DataFrame({"v": np.arange(4.0)}, index=DAYS[order])
    for x in (frame, {"a": frame}, xr.DataArray(frame[["v"]], dims=("time", "feature"), coords={"time": DAYS[order]})):
        with pytest.raises(
            DataError, match="times must go forward, got 2026-01-0.* and then 2026-01-0.*; sort the rows"
        ):
            as_observations(x)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (DAYS[[0, 1, 3]], "from 1 days 00:00:00 to 2 days 00:00:00"),
        (pd.Index([0, 1, 2, 9]), "from 1 to 7"),
        (pd.Index([2, 1, 0]), "do not go forward"),
        (pd.Index([0, 1, 0, 1]), "do not go forward"),
        (pd.date_range("2026-01-31", periods=9, freq="ME"), None),
        (pd.bdate_range("2026-01-01", periods=20), None),
        (pd.Index([0.0, 0.0333, 0.0667, 0.1]), None),
    ],
)
def test_uneven_steps_are_said_in_the_log(index, words, caplog, request):
    as_observations(pd.DataFrame({"v": np.ones(len(index))}, index=index), name=request.node.name)
    assert ([words in message for message in caplog.messages] == [True]) if words else not caplog.messages


def test_tables_of_rows_are_arrays_of_rows():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4]}, index=["x", "y"])
    rows = as_observations(frame, dims=("row", "target"))
    assert rows["row"].values.tolist() == ["x", "y"]
    assert rows["target"].values.tolist() == ["a", "b"]
    np.testing.assert_array_equal(rows, frame)
    for one in (frame["a"], frame[["a"]]):
        np.testing.assert_array_equal(as_observations(one, dims=("row",)), [1.0, 2.0])
    assert as_observations(frame["a"], dims=("row", "target"))["target"].values.tolist() == ["a"]
    with pytest.raises(DataError, match=r"a DataFrame must have one column, got \['a', 'b'\]; select"):
        as_observations(frame, dims=("row",))


def test_members_with_features_in_another_order_are_not_mixed():
    one = xr.DataArray(np.zeros((2, 2)), dims=("time", "feature"), coords={"feature": ["a", "b"]})
    with pytest.raises(
        DataError, match=r"every frame must have the columns \['a', 'b'\] in this order, got \['b', 'a'\]"
    ):
        as_observations([one, one[:, ::-1]])
    assert as_observations([np.zeros((2, 2)), one])["feature"].values.tolist() == ["a", "b"]


def test_steps_exist_up_to_the_last_that_was_seen():
    x = torch.zeros(3, 4, 2)
    x[0, 1:3], x[1, 2:], x[2] = torch.nan, torch.nan, torch.nan
    x[1, 2, 0] = 1.0
    assert exists(x).tolist() == [[True] * 4, [True, True, True, False], [False] * 4]


@pytest.mark.parametrize(
    ("shape", "dims", "message"),
    [
        ((60,), ("row", "feature"), r"pass x\[None\] if this is one row, x\[..., None\] if it has one feature"),
        ((60, 2), DIMS, r"pass x\[None\] if this is one sequence, x\[..., None\] if it has one feature"),
        ((60,), DIMS, r"pass x\[None, :, None\] if this is one sequence of one feature"),
        ((60, 2), ("row",), "add or name axes"),
    ],
)
def test_an_axis_that_is_missing_is_named_with_the_line_that_adds_it(shape, dims, message):
    with pytest.raises(DataError, match=message):
        as_observations(np.zeros(shape), dims=dims)


def test_an_array_of_arrays_is_told_to_be_a_list():
    ragged = np.array([np.zeros((2, 1)), np.zeros((3, 1))], dtype=object)
    with pytest.raises(DataError, match=r"got shape \(2,\); these are objects: pass a list of arrays, list\(x\)"):
        as_observations(ragged)
    assert as_observations(list(ragged)).shape == (2, 3, 1)
