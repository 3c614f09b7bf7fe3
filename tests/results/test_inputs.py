"""Inputs stay with the rows and names that they came with."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import ppgen
from ppgen.errors import DataError
from ppgen.inference import vb
from ppgen.model import Model
from ppgen.models import HMM
from ppgen.programs import task
from ppgen.results import Draws, fit_result


class States(Model):
    """y = u'weight + noise of known width, one number a row, rows named as the analyst's were."""

    data_dims = ("state",)
    dims = {"weight": ("input",)}
    config = {}

    def model(self, x, *, u=None, total=None):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("state", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(u @ weight, 0.1), obs=x)


NAMES = [f"s{i:02d}" for i in range(8)]
U = pd.DataFrame({"slope": np.arange(8.0), "other": np.cos(np.arange(8.0))}, index=NAMES)
X = xr.DataArray(U["slope"] - 2 * U["other"], dims="state", coords={"state": NAMES}).rename("y")


def fitted(model, x, u):
    """A fit of known draws, read as engines read."""
    given = task.read("test", model, (x,), u)
    draws = Draws({"weight": torch.tensor([1.0, -2.0]).double() + 0.01 * torch.randn(2, 20, 2).double()})
    return fit_result(given.model, draws, pd.DataFrame(), {"engine": "mcmc"}, given.observations, given.inputs)


@pytest.fixture
def fit():
    return fitted(States(), X, U)


def total(fit, x, u):
    return float(fit.log_likelihood(x, u=u, draws=20).sum())


def test_a_row_keeps_its_inputs_when_rows_are_reordered(fit):
    right = total(fit, X, U)
    assert total(fit, X[::-1], U[::-1]) == pytest.approx(right, abs=1e-9)
    assert total(fit, X[::-1], U[::-1].to_numpy()) == pytest.approx(right, abs=1e-9)
    answer = fit.log_likelihood(X[::-1], u=U[::-1], draws=20)
    assert list(answer["state"].values) == NAMES[::-1]
    shuffled = U.sample(frac=1, random_state=0)
    assert total(fit, X, shuffled) == pytest.approx(right, abs=1e-9)
    array = xr.DataArray(shuffled.to_numpy().T, dims=("column", "state"), coords={"state": shuffled.index.to_numpy()})
    assert total(fit, X, array) == pytest.approx(right, abs=1e-9)


def test_new_rows_are_rows_whatever_they_are_called(fit):
    new = X.assign_coords(state=[f"new{i}" for i in range(8)])
    assert total(fit, new, U.set_axis(new["state"].values)) == pytest.approx(total(fit, X, U), abs=1e-9)
    assert total(fit, X[2:5], U[2:5]) == pytest.approx(float(fit.log_likelihood(X, u=U, draws=20)[2:5].sum()), abs=1e-9)


def test_rows_of_inputs_that_are_not_those_of_the_data_are_refused(fit):
    with pytest.raises(DataError, match=r"u must have the states of x, s00, s01, s02, ... \(8\), got new, s01"):
        fit.log_likelihood(X, u=U.rename(index={"s00": "new"}))
    with pytest.raises(DataError, match=r"u must have the states of x.* pass u.to_numpy\(\)"):
        fit.log_likelihood(X, u=U[:5])
    twice = [*NAMES[:-1], NAMES[0]]
    with pytest.raises(DataError, match="u must have the states of x"):
        fit.log_likelihood(X, u=U.set_axis(twice))


@pytest.mark.parametrize(
    "names", [[f"m{i // 2}" for i in range(8)], [i // 2 for i in range(8)]], ids=["text", "number"]
)
def test_labels_that_repeat_keep_rows_of_one_order_and_refuse_another(fit, names):
    y, u = pd.Series(X.values, index=names), U.set_axis(names)
    answer = fit.log_likelihood(y, u=u, draws=20)
    assert float(answer.sum()) == pytest.approx(total(fit, X, U), abs=1e-9)
    assert answer["state"].values.tolist() == names
    for other in (u[::-1], u.sort_values("other")):
        with pytest.raises(
            DataError, match=r"u must have the states of x, m?0, m?0, m?1, ... \(8\) \(some occur twice"
        ):
            fit.log_likelihood(y, u=other)
    tree = fit.to_arviz(y, u=u, draws=3)
    assert tree["log_likelihood"]["state"].values.tolist() == names


def test_rows_that_are_merely_counted_are_in_order(fit):
    assert total(fit, X, U.reset_index(drop=True)) == total(fit, X, U)
    assert total(fit, X.drop_vars("state"), U) == total(fit, X, U)
    numbers = X.assign_coords(state=np.arange(10, 18))
    with pytest.raises(DataError, match="u must have the states of x, 10, 11, 12"):
        fit.log_likelihood(numbers, u=U.reset_index(drop=True))


def test_columns_of_inputs_are_known_by_name(fit):
    assert total(fit, X, U[["other", "slope"]]) == total(fit, X, U)
    assert total(fit, X, U.to_numpy()) == total(fit, X, U)
    with pytest.raises(DataError, match=r"inputs of the fit, \['slope', 'other'\], got \['slope', 'more'\]"):
        fit.log_likelihood(X, u=U.rename(columns={"other": "more"}))
    with pytest.raises(DataError, match=r"columns of the fit, whose shape was \(8, 2\), got \(8, 3\)"):
        fit.log_likelihood(X, u=np.ones((8, 3)))


def test_names_of_inputs_are_saved_and_go_to_arviz(fit, tmp_path):
    fit.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit", model=States())
    assert total(again, X, U[["other", "slope"]]) == total(fit, X, U)
    tree = again.to_arviz(X, u=U[["other", "slope"]], draws=3)
    assert list(tree["constant_data"]["input"].values) == ["slope", "other"]
    assert list(tree["posterior"]["input"].values) == ["slope", "other"]
    np.testing.assert_array_equal(tree["constant_data"]["u"], U)


def test_inputs_where_the_fit_had_none_are_refused_and_so_is_their_absence(fit, hmm_fit, recordings):
    with pytest.raises(DataError, match=r"u must be as in the fit, which had inputs of shape \(8, 2\), got none; pass"):
        fit.log_likelihood(X)
    for ask in (hmm_fit.latents, hmm_fit.impute, hmm_fit.log_likelihood, hmm_fit.diagnose):
        with pytest.raises(DataError, match=r"which had no inputs, got inputs of shape \(2, 60, 1\); leave u out"):
            ask(recordings, u=np.ones((2, 60, 1)))


def test_text_among_inputs_is_named(fit):
    with pytest.raises(DataError, match=r"u must hold numbers, its columns \['kind'\] do not; encode categories"):
        fit.log_likelihood(X, u=U.assign(kind="a"))


def test_a_series_is_one_input_with_no_axis_of_its_own():
    given = task.read("test", States(), (X[::-1],), U["slope"])
    np.testing.assert_array_equal(given.kwargs["u"], U["slope"][::-1])
    assert not given.inputs.names


def test_data_looked_at_beside_a_fit_has_its_columns_in_that_order():
    first = task.read("test", States(), (X,), U)
    second = task.read("test", States(), (X,), U[["other", "slope"]], beside=first)
    assert second.kwargs["u"].equal(first.kwargs["u"])
    assert task.read("test", States(), (X,), U[["other", "slope"]]).inputs.names["input"].tolist() == ["other", "slope"]


def test_a_frame_of_inputs_belongs_to_one_sequence_step_by_step():
    class Series(Model):
        dims = {}

        def model(self, x, *, u=None, total=None):
            assert u is not None

    times = pd.date_range("2026-01-01", periods=4)
    frame = pd.DataFrame({"a": np.arange(4.0), "b": np.arange(4.0) ** 2}, index=times)
    x = xr.DataArray(np.zeros((4, 1)), dims=("time", "feature"), coords={"time": times})
    given = task.read("test", Series(), (x,), frame[::-1])
    assert given.kwargs["u"].shape == (1, 4, 2)
    np.testing.assert_array_equal(given.kwargs["u"][0], frame)


def test_steps_of_inputs_that_do_not_go_forward_are_refused_where_the_data_cannot_order_them():
    """They were used in the order given: a log-likelihood of -273 for -71."""
    rng = np.random.default_rng(0)
    x = [pd.DataFrame(rng.normal(size=(20, 2))) for _ in range(2)]
    u = [pd.DataFrame({"a": rng.normal(size=20)}) for _ in range(2)]
    fit = vb.fit(HMM(2, 2, inputs=1), x, u=u, max_steps=2, random_seed=0, progressbar=False)
    order = rng.permutation(20)
    with pytest.raises(DataError, match="must have steps that go forward"):
        fit.log_likelihood(x, u=[one.iloc[order] for one in u])
    dated = [one.set_index(pd.date_range(f"20{20 + n}", periods=20)) for n, one in enumerate(u)]
    with pytest.raises(DataError, match="must have steps that go forward"):
        fit.log_likelihood(x, u=[one.iloc[order] for one in dated])
    assert fit.log_likelihood(x, u=dated, random_seed=0).equals(fit.log_likelihood(x, u=u, random_seed=0))
