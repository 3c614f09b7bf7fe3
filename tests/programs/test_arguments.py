"""What people hold becomes tensors before a plain function sees it."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ppgen.errors import DataError
from ppgen.programs import task
from ppgen.results import Draws, fit_result


def program(y, u, group=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("state", len(y)):
        pyro.sample("y", dist.Normal(slope * u, 0.5), obs=y)


TABLE = pd.DataFrame({"y": [0.1, np.nan, 0.4], "u": [1, 2, 3], "kind": ["a", "b", "a"]}, index=["p", "q", "r"])


def test_tables_and_labelled_arrays_are_tensors_at_the_door():
    read = task.read("mcmc", program, (TABLE["y"], TABLE[["u"]], xr.DataArray([1.5, 2.5], dims="x")), None)
    y, u, group = read.args
    torch.testing.assert_close(y, torch.tensor([0.1, torch.nan, 0.4]).double(), equal_nan=True, rtol=1e-7, atol=0)
    assert u.equal(torch.tensor([[1], [2], [3]]))
    assert group.dtype == torch.float64
    assert read.model.rest[0] is u
    given = torch.ones(3)
    assert task.read("mcmc", program, (given, given, None), None).args == (given, given, None)


def test_text_in_an_argument_is_refused_by_name():
    with pytest.raises(DataError, match=r"mcmc: group must hold numbers, its columns \['kind'\] do not; encode"):
        task.read("mcmc", program, (TABLE["y"], TABLE["u"], TABLE["kind"]), None)
    with pytest.raises(DataError, match=r"its columns \['kind'\] do not; encode categories as whole numbers"):
        task.read("mcmc", program, (TABLE["y"], TABLE["u"], TABLE["kind"].astype("category")), None)
    with pytest.raises(DataError, match="group must hold numbers, got <U1; encode it"):
        task.read("mcmc", program, (TABLE["y"], TABLE["u"], xr.DataArray(["a"], dims="x")), None)


@pytest.fixture
def fit():
    y = torch.tensor([0.5, 1.0, 1.4], dtype=torch.float64)
    read = task.read("mcmc", program, (y, TABLE["u"]), None)
    draws = Draws({"slope": 0.5 + 0.1 * torch.randn(2, 20).double()})
    return fit_result(read.model, draws, pd.DataFrame(), {"engine": "mcmc"}, xr.DataArray(0.0)), y


def test_data_of_a_function_keeps_the_names_that_it_came_with(fit):
    fit, y = fit
    labelled = xr.DataArray(y, dims="state", coords={"state": ["p", "q", "r"]})
    found = fit.posterior_predictive(labelled, draws=3, random_seed=0)
    assert found.dims == ("draw", "state")
    assert found["state"].values.tolist() == ["p", "q", "r"]
    plain = fit.posterior_predictive(y, draws=3, random_seed=0)
    assert plain.dims == ("draw", "row")
    np.testing.assert_array_equal(plain, found)
    tree = fit.to_arviz(labelled, draws=3)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "state")
    assert fit.log_likelihood(labelled.rename(state="x")).dims == ("row",)
    series = pd.Series(y.numpy(), index=["p", "q", "r"])
    assert fit.log_likelihood(series)["row"].values.tolist() == ["p", "q", "r"]


def test_a_function_has_no_inputs_of_its_own(fit):
    fit, y = fit
    with pytest.raises(DataError, match="a function has no inputs u, its further arguments are as they were; leave u"):
        fit.log_likelihood(y, u=np.ones(3))


def test_labels_that_occur_twice_are_refused_in_another_order_than_that_of_the_data():
    y = pd.Series([0.1, 0.2, 0.3], index=["a", "a", "b"])
    u = pd.Series([1.0, 2.0, 3.0], index=["a", "a", "b"])
    assert task.read("mcmc", program, (y, u), None).args[1].tolist() == [1, 2, 3]
    with pytest.raises(
        DataError, match="mcmc: u must have its rows in the order of the data, .* got a, a, b beside b, a"
    ):
        task.read("mcmc", program, (y, u[::-1]), None)
    assert task.read("mcmc", program, (y, u[::-1].to_numpy()), None).args[1].tolist() == [3, 2, 1]
