"""Tables as people have them: columns of any kind of number, gaps of any kind; text is refused by name."""

import decimal

import numpy as np
import pandas as pd
import pytest

from ppgen.data import as_observations
from ppgen.errors import DataError

ROWS = ("row", "feature")
NAMES = ["p", "q", "r"]
KINDS = {
    "real": [0.5, np.nan, 2.0],
    "whole": [1, 2, 3],
    "yes": [True, False, True],
    "whole_with_gap": pd.array([1, None, 3], dtype="Int64"),
    "yes_with_gap": pd.array([True, None, False], dtype="boolean"),
    "real_with_gap": pd.array([1.5, None, 3], dtype="Float64"),
    "objects": np.array([1, None, 2.5], dtype=object),
    "decimals": [decimal.Decimal("1.5"), None, decimal.Decimal("2")],
    "nothing": [np.nan] * 3,
    "nothing_at_all": [None] * 3,
    "sparse": pd.arrays.SparseArray([0.0, 0.0, 1.0]),
}


def test_every_kind_of_number_is_a_number_and_every_kind_of_gap_is_nan():
    x = as_observations(pd.DataFrame(KINDS, index=NAMES), dims=ROWS)
    nan = np.nan
    wanted = [
        [0.5, nan, 2], [1, 2, 3], [1, 0, 1], [1, nan, 3], [1, nan, 0], [1.5, nan, 3], [1, nan, 2.5], [1.5, nan, 2],
        [nan] * 3, [nan] * 3, [0, 0, 1],
    ]  # fmt: skip
    np.testing.assert_array_equal(x.values.T, wanted)
    assert x.dtype == np.float64
    assert x["row"].values.tolist() == NAMES
    assert x["feature"].values.tolist() == list(KINDS)


@pytest.mark.parametrize("dims", [("row",), ROWS])
def test_a_series_is_a_column_with_its_rows(dims):
    series = pd.Series(pd.array([1, None, 3], dtype="Int64"), index=NAMES, name="age")
    x = as_observations(series, dims=dims)
    np.testing.assert_array_equal(x.values.ravel(), [1, np.nan, 3])
    assert x["row"].values.tolist() == NAMES
    assert x.dims == dims


def test_the_name_of_an_index_is_the_long_name_of_its_rows():
    index = pd.Index(NAMES, name="animal")
    x = as_observations(pd.DataFrame({"a": [1.0, 2.0, 3.0]}, index=index), dims=ROWS)
    assert x["row"].attrs == {"long_name": "animal"}
    assert x["row"].values.tolist() == NAMES
    assert as_observations(pd.DataFrame({"a": [1.0]}), dims=ROWS)["row"].attrs == {}


TEXT = r"x: must hold numbers, its columns \['bad'\] do not; encode categories .*cat\.codes.*get_dummies"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", "b", "a"], TEXT),
        (["1", "2", "3"], TEXT),
        (pd.Categorical([1, 2, 1]), TEXT),
        (pd.array(["a", None, "b"], dtype="string"), TEXT),
        (np.array([1, "a", None], dtype=object), TEXT),
        (pd.date_range("2026", periods=3), r"columns \['bad'\] do not; write dates as numbers"),
        (np.array([1j, 2, 3]), r"columns \['bad'\] do not; pass real and imaginary parts"),
    ],
)
def test_what_is_no_number_is_named_with_how_to_encode_it(column, message):
    frame = pd.DataFrame({"good": [1.0, 2.0, 3.0], "bad": column})
    with pytest.raises(DataError, match=message):
        as_observations(frame, dims=ROWS)
