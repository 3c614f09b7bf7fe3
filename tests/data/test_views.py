"""Views of the same rows side by side, and sparse matrices, never larger than one asked for."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from ppgen.data import as_observations
from ppgen.errors import DataError

ROWS = ("row", "feature")
GENES = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "b"], index=["p", "q", "r"])
AGE = pd.Series([50, 60, 70], index=["p", "q", "r"], name="age")


def test_views_lie_side_by_side_and_their_columns_know_them():
    x = as_observations({"genes": GENES, "clinic": AGE, "image": np.ones((3, 2))}, dims=ROWS)
    assert x.dims == ROWS
    assert x["row"].values.tolist() == ["p", "q", "r"]
    assert x["feature"].values.tolist() == ["genes.a", "genes.b", "clinic.age", "image.0", "image.1"]
    assert x["view"].values.tolist() == ["genes", "genes", "clinic", "image", "image"]
    np.testing.assert_array_equal(x.values, np.column_stack([GENES, AGE, np.ones((3, 2))]))


def test_rows_of_views_are_matched_and_one_without_a_view_is_not_observed_there(caplog):
    x = as_observations({"genes": GENES, "clinic": AGE.to_frame().loc[["r", "q"]].rename({"q": "new"})}, dims=ROWS)
    assert x["row"].values.tolist() == ["p", "q", "r", "new"]
    np.testing.assert_array_equal(x.sel(feature="clinic.age"), [np.nan, np.nan, 70, 60])
    np.testing.assert_array_equal(x.sel(row="new"), [np.nan, np.nan, 60])
    assert "not observed in {'genes': 1, 'clinic': 2}" in caplog.text


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"a": np.ones((3, 1)), "b": np.ones((2, 1))}, r"views must have the same rows, got {'a': 3, 'b': 2}; label"),
        ({"a": GENES, "b": np.ones((2, 1))}, "views must have the same rows"),
        (
            {"a": GENES, "b": GENES.set_axis(["x", "y", "z"])},
            "must share the labels of their rows, got labels of its own",
        ),
        (
            {"a": GENES, "b": GENES.set_axis([0, 0, 1])},
            "must share the labels of their rows, got labels that occur twice",
        ),
        ({"a": GENES, "b": GENES.assign(kind="x")}, r"x\['b'\]: must hold numbers, its columns \['kind'\] do not"),
    ],
)
def test_views_that_do_not_belong_together_are_refused(views, message):
    with pytest.raises(DataError, match=message):
        as_observations(views, dims=ROWS)


def test_a_dict_of_rows_is_still_rows():
    x = as_observations({"p": np.zeros(2), "q": np.ones(2)}, dims=ROWS)
    assert x["row"].values.tolist() == ["p", "q"]


@pytest.mark.parametrize(
    "matrix",
    [scipy.sparse.csr_matrix, scipy.sparse.coo_array, lambda x: torch.tensor(x).to_sparse(), lambda x: torch.tensor(x)],
)
def test_a_small_sparse_matrix_is_its_dense_one(matrix):
    dense = np.diag([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(as_observations(matrix(dense), dims=ROWS), dense)


def test_a_sparse_matrix_that_would_fill_the_memory_is_refused():
    shape = (1_000_000, 100_000)
    frame = pd.DataFrame.sparse.from_spmatrix(scipy.sparse.csr_matrix((20_000_000, 10)))
    for matrix in (scipy.sparse.csr_matrix(shape), torch.sparse_coo_tensor(size=shape, check_invariants=True), frame):
        with pytest.raises(DataError, match=r"x: a sparse matrix must take 1 GB at most when dense.* GB; select rows"):
            as_observations(matrix, dims=ROWS)
