import numpy as np
import pytest
import torch
import xarray as xr

from ppgen.data.columns import note_idle_columns
from ppgen.inference import vb
from ppgen.models import GMM


def noted(caplog, values, **coords):
    note_idle_columns("vb", xr.DataArray(values, dims=("row", "feature"), coords=coords))
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
