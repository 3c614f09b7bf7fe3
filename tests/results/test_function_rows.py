"""Each row of a plain function meets its own covariates, in whatever order one asks about the rows."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import ppgen
from ppgen.distributions import observed
from ppgen.errors import DataError
from ppgen.inference import svi

ROWS = [f"p{i:02d}" for i in range(20)]
GENERATOR = np.random.default_rng(0)
U = pd.Series(GENERATOR.normal(size=20), index=ROWS)
Y = 2 * U + 0.5 * GENERATOR.normal(size=20)
Y.iloc[[3, 7]] = np.nan
BACK = Y[::-1]
QUICK = {"random_seed": 0, "progressbar": False, "compile": "traced"}


def line(y, u):
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", observed(dist.Normal(slope * u, 0.5)), obs=y)


def plane(y, u):
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", observed(dist.Normal(slope * u[:, None] * torch.tensor([1.0, 5.0]), 0.5).to_event(1)), obs=y)


def level(y, scale):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", observed(dist.Normal(mean, scale)), obs=y)


@pytest.fixture(scope="module", params=["fitted", "loaded"])
def fit(request, tmp_path_factory):
    fit = svi.fit(line, Y, U.sample(frac=1, random_state=1), **QUICK)
    if request.param == "fitted":
        return fit
    fit.save(folder := tmp_path_factory.mktemp("fits") / "fit")
    return ppgen.load(folder, model=line)


def test_a_fit_knows_the_labels_of_a_functions_data(fit):
    assert fit.labels["row"].tolist() == ROWS


ASK = {
    "log_likelihood": lambda fit, y: fit.log_likelihood(y, random_seed=0),
    "posterior_predictive": lambda fit, y: fit.posterior_predictive(y, draws=20, random_seed=0),
    "impute": lambda fit, y: fit.impute(y, draws=20, random_seed=0),
    "estimate": lambda fit, y: fit.predict(y, draws=20, random_seed=0)["estimate"],
    "sd": lambda fit, y: fit.predict(y, draws=20, random_seed=0)["sd"],
    "observed": lambda fit, y: fit.to_arviz(y, draws=5, random_seed=0)["observed_data"]["x"],
    "likelihood": lambda fit, y: fit.to_arviz(y, draws=5, random_seed=0)["log_likelihood"]["x"],
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("name", ["row", "patient"])
def test_a_row_has_its_own_answer_in_whatever_order_it_is_asked_about(fit, ask, name):
    asked = BACK if name == "row" else xr.DataArray(BACK, dims=name, coords={name: ROWS[::-1]})
    right, found = ask(fit, Y), ask(fit, asked)
    assert found[name].values.tolist() == [row for row in ROWS[::-1] if row in right["row"]]
    found = found.rename({} if name == "row" else {name: "row"}).sel(row=right["row"])
    xr.testing.assert_allclose(found, right, rtol=1e-12)  # sums over draws round by their place in memory


def test_an_observed_row_is_itself_in_every_order(fit):
    shuffled = Y.sample(frac=1, random_state=2)
    estimate = fit.predict(shuffled, draws=5)["estimate"].to_series()
    pd.testing.assert_series_equal(estimate[shuffled.notna()], shuffled.dropna(), check_names=False, check_exact=True)


def test_missing_entries_come_in_the_order_asked(fit):
    right, found = (fit.impute(y, draws=20, sparse=True, random_seed=0) for y in (Y, BACK))
    assert found["row"].values.tolist() == ["p07", "p03"]
    np.testing.assert_array_equal(found["x"], right["x"][:, ::-1])


def test_a_verdict_is_the_same_in_every_order(fit):
    assert str(fit.diagnose(BACK, random_seed=0)) == str(fit.diagnose(Y, random_seed=0))


REFUSED = r"x must have the rows of the fit, p00, p01, p02, \.\.\. \(20\), .* fit a Model that takes inputs u"


@pytest.mark.parametrize("ask", [*ASK.values(), lambda fit, y: fit.diagnose(y)], ids=[*ASK, "diagnose"])
@pytest.mark.parametrize(
    "asked",
    [
        Y.rename(index={"p00": "q00"}),
        Y.dropna(),
        pd.concat([Y, Y.rename(index="q{}".format)]),
        Y.set_axis(["p00"] * 20),
    ],
    ids=["renamed", "fewer", "more", "twice"],
)
def test_rows_without_covariates_of_their_own_are_refused(fit, ask, asked):
    with pytest.raises(DataError, match=REFUSED):
        ask(fit, asked)


def test_rows_without_names_stay_in_their_order(fit):
    right = fit.log_likelihood(Y, random_seed=0).values
    for asked in (Y.to_numpy(), torch.tensor(Y.to_numpy()), Y.reset_index(drop=True)):
        np.testing.assert_array_equal(fit.log_likelihood(asked, random_seed=0), right)


def test_columns_are_known_by_name_as_those_of_a_model():
    table = pd.DataFrame({"a": Y, "b": 5 * Y})
    fit = svi.fit(plane, table, U, **QUICK)
    right = fit.log_likelihood(table, random_seed=0)
    found = fit.log_likelihood(table.loc[::-1, ["b", "a"]], random_seed=0)
    xr.testing.assert_equal(found.sel(row=ROWS), right)
    with pytest.raises(DataError, match=r"x must have the x_dim_1s of the fit, \['a', 'b'\], got \['a', 'c'\]"):
        fit.log_likelihood(table.rename(columns={"b": "c"}))


def test_other_rows_are_welcome_where_no_argument_has_one_for_each():
    fit = svi.fit(level, Y, 0.5, **QUICK)
    whole = fit.log_likelihood(Y, random_seed=0).to_series()
    renamed = Y.rename(index="q{}".format)
    np.testing.assert_allclose(fit.log_likelihood(renamed, random_seed=0), whole, rtol=1e-12)
    for fewer in (Y.dropna(), Y[:1]):
        np.testing.assert_allclose(fit.log_likelihood(fewer, random_seed=0), whole[fewer.index], rtol=1e-12)
