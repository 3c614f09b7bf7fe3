import numpy as np
import pytest
import torch
import xarray as xr

from ppgen.data.columns import note_columns
from ppgen.inference import vb
from ppgen.models import GMM


def noted(caplog, values, **coords):
    note_columns("vb", xr.DataArray(values, dims=("row", "feature"), coords=coords))
    return [record.getMessage() for record in caplog.records]


def test_a_column_that_never_changes_and_a_copy_are_named(caplog):
    a = np.array([0.3, np.nan, 1.2, -0.7])
    x = np.stack([a, np.full(4, 2.0), a, -a], 1)
    first, second = noted(caplog, x, feature=["a", "b", "c", "d"])
    assert "features b of x never change" in first
    assert "copies of others (c of a)" in second


def test_gaps_in_other_places_make_another_column(caplog):
    a = np.array([0.3, np.nan, 1.2])
    assert not noted(caplog, np.stack([a, a[::-1], [np.nan, 0.3, 1.2]], 1))


def test_a_mixture_of_such_columns_is_fitted(caplog):
    a = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    fit = vb.fit(GMM(2, 3), torch.stack([a, a, torch.ones(30)], 1), random_seed=0, progressbar=False, max_steps=5)
    assert np.isfinite(fit.history["elbo"]).all()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("shape", [(4, 1), (0, 3)])
def test_nothing_is_said_of_one_column_or_no_row(caplog, shape):
    assert not noted(caplog, np.ones(shape))


def test_data_without_any_observation_and_columns_without_one_are_named(caplog):
    vb.fit(GMM(2, 2), torch.full((30, 2), torch.nan), random_seed=0, progressbar=False, max_steps=5)
    assert [r.getMessage() for r in caplog.records] == [
        "vb: x holds no observation, every entry is NaN, so that the posterior is the prior"
    ]
    caplog.clear()
    nothing = np.full(4, np.nan)
    (said,) = noted(caplog, np.stack([nothing, [0.3, 1.2, -0.7, 0.1], nothing], 1), feature=["a", "b", "c"])
    assert said == "vb: features a, c of x were never observed; leave them out unless that is meant"


@pytest.mark.parametrize("mark", [-999, -9999, 9999, 99])
def test_a_number_that_marks_what_is_missing_is_named(caplog, mark):
    x = np.random.default_rng(0).normal(size=(40, 2))
    x[::10, 1] = mark
    (said,) = noted(caplog, x, feature=["a", "b"])
    assert f"feature b of x holds {mark} 4 times, far from all else" in said
    caplog.clear()
    (said,) = noted(caplog, x[:, 1:])
    assert "feature 0 of x holds" in said


@pytest.mark.parametrize(
    "column",
    [
        np.r_[np.arange(95.0), 99, 99],  # ages
        np.r_[np.random.default_rng(0).normal(size=40), 999],  # once: an outlier
        np.r_[np.random.default_rng(0).normal(size=40) * 400, 999, 999],
        np.r_[np.zeros(40), 100.0, 100.0],
        np.full(40, -999.0),
    ],
)
def test_numbers_that_may_be_measured_are_not_taken_for_marks(caplog, column):
    assert not noted(caplog, column[:, None])
