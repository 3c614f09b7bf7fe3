"""Several observed sites: columns of the data, and outcomes that are other arguments."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import ppgen
from ppgen.errors import DataError, FitError
from ppgen.inference import mcmc, svi
from ppgen.predictions import predictive
from ppgen.programs import task
from ppgen.results import Draws, fit_result

N = 40
GENERATOR = np.random.default_rng(0)
U = GENERATOR.normal(size=N)
HEIGHT = 1.0 + 0.5 * U + 0.3 * GENERATOR.normal(size=N)
COUNTS = GENERATOR.poisson(np.exp(0.2 + 0.4 * U)).astype(float)
PAIRS = GENERATOR.normal(size=(N, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]]) + 2.0
TABLE = pd.DataFrame({"height": HEIGHT, "count": COUNTS, "left": PAIRS[:, 0], "right": PAIRS[:, 1], "u": U})


def filled(x, value):
    return torch.isnan(x).logical_not(), torch.where(torch.isnan(x), value, x)


class Mixed(ppgen.Model):
    """A height, a count and a pair of each row, each its own site; the last column is a covariate."""

    data_dims = ("row", "feature")
    dims = {"a": (), "b": (), "m": ("side",)}
    config = {}

    def model(self, x, *, u=None, total=None):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 2.0))
        b = pyro.sample("b", dist.Normal(x.new_zeros(()), 2.0))
        m = pyro.sample("m", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
        drive = x[:, 4]
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            seen, pair = filled(x[:, 2:4], 0.0)
            scale = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=x.dtype)
            both = dist.MultivariateNormal(m, scale_tril=scale).mask(seen.all(-1))
            pyro.sample("pair", both, obs=pair)
            seen, count = filled(x[:, 1], 0.0)
            pyro.sample("count", dist.Poisson((a + b * drive).exp()).mask(seen), obs=count)
            seen, height = filled(x[:, 0], 0.0)
            pyro.sample("height", dist.Normal(1 + a * drive, 0.3).mask(seen), obs=height)
            pyro.factor("penalty", -0.1 * a.expand(len(x)) ** 2)


def known(model, *args):
    """A fit of known draws of a model or function, read as engines read."""
    given = task.read("test", model, args, None)
    draws = {"a": 0.4 + 0.01 * torch.randn(2, 30), "b": 0.2 + 0.01 * torch.randn(2, 30)}
    draws |= {"m": 2 + 0.01 * torch.randn(2, 30, 2)}
    sites = {name: value.double() for name, value in draws.items()}
    labels = xr.DataArray(0.0) if given.observations is None else given.observations
    return fit_result(given.model, Draws(sites), pd.DataFrame(), {"engine": "mcmc"}, labels, given.inputs)


@pytest.fixture
def hidden():
    table = TABLE.copy()
    table.loc[:9, "height"] = np.nan
    table.loc[5:14, "count"] = np.nan
    table.loc[12:17, ["left", "right"]] = np.nan
    return table


def test_what_sites_observe_of_the_data_is_put_in_its_columns(hidden):
    fit = known(Mixed(), hidden)
    whole = fit.posterior_predictive(hidden, draws=400, random_seed=0)
    assert whole.dims == ("draw", "row", "feature")
    assert whole["feature"].values.tolist() == list(TABLE.columns)
    means = whole.mean("draw")
    np.testing.assert_allclose(means.sel(feature="height"), 1 + 0.4 * U, atol=0.08)
    np.testing.assert_allclose(means.sel(feature="count"), np.exp(0.4 + 0.2 * U), atol=0.4)
    np.testing.assert_allclose(means.sel(feature=["left", "right"]), 2.0, atol=0.25)
    pair = whole.sel(feature=["left", "right"]).values.reshape(-1, 2)
    assert np.corrcoef(pair.T)[0, 1] == pytest.approx(0.8, abs=0.02)
    np.testing.assert_array_equal(whole.sel(feature="u"), np.broadcast_to(U, (400, N)))


def test_gaps_of_each_site_are_filled_in_their_own_columns(hidden):
    fit = known(Mixed(), hidden)
    done = fit.impute(hidden, draws=300, random_seed=0)
    seen = hidden.notna().to_numpy()
    np.testing.assert_array_equal(done.values[:, seen], np.broadcast_to(hidden.to_numpy()[seen], (300, seen.sum())))
    assert np.isfinite(done).all()
    np.testing.assert_allclose(done.sel(feature="height").mean("draw")[:10], 1 + 0.4 * U[:10], atol=0.08)
    count = done.sel(feature="count")[:, 5:15]
    assert (count == count.round()).all()
    sparse = fit.impute(hidden, draws=10, sparse=True, random_seed=0)
    assert set(sparse["feature"].values.tolist()) == {"height", "count", "left", "right"}


def test_columns_that_are_equal_or_empty_are_told_apart():
    table = TABLE.assign(height=np.nan, count=3.0, left=3.0, right=3.0)
    fit = known(Mixed(), table)
    whole = fit.posterior_predictive(table, draws=300, random_seed=0).mean("draw")
    np.testing.assert_allclose(whole.sel(feature="height"), 1 + 0.4 * U, atol=0.09)
    np.testing.assert_allclose(whole.sel(feature="right"), 2.0, atol=0.3)


def test_a_pair_that_is_seen_in_part_is_refused_and_one_that_is_seen_or_missing_is_not(hidden):
    fit = known(Mixed(), hidden)
    hidden.loc[20, "left"] = np.nan
    with pytest.raises(FitError, match="how missing entries follow from observed ones, got MultivariateNormal"):
        fit.impute(hidden, draws=2)


def test_the_density_of_a_row_is_that_of_its_sites_and_its_factors(hidden):
    fit = known(Mixed(), hidden)
    theta = predictive.at(fit.posterior.draws(1), 0)
    data = torch.tensor(hidden.to_numpy())
    terms = predictive.log_likelihoods(fit.model, theta, data)
    assert list(terms) == ["pair", "count", "height", "penalty"]
    total = predictive.log_likelihood(fit.model, theta, data)
    torch.testing.assert_close(torch.stack(list(terms.values())).sum(0), total)
    a = theta["a"]
    wanted = dist.Normal(1 + a * torch.tensor(U), 0.3).log_prob(torch.tensor(HEIGHT))
    torch.testing.assert_close(terms["height"][10:], wanted[10:])
    assert (terms["height"][:10] == 0).all()
    one = fit.log_likelihood(hidden, per="site", draws=30)
    assert set(one.data_vars) == set(terms)
    assert one["height"].dims == ("row",)
    with pytest.raises(DataError, match='per must be "row", "step" or "site"'):
        fit.log_likelihood(hidden, per="column")


def test_arviz_has_the_density_of_each_site_beside_that_of_the_row(hidden):
    tree = known(Mixed(), hidden).to_arviz(hidden, draws=5)
    terms = tree["log_likelihood"]
    assert set(terms.data_vars) == {"x", "pair", "count", "height", "penalty"}
    total = terms["pair"] + terms["count"] + terms["height"] + terms["penalty"]
    np.testing.assert_allclose(total, terms["x"])
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", "row", "feature")


def joint(height, count, u, pair):
    """Three outcomes, each an argument of its own."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    m = pyro.sample("m", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("row", len(u)):
        seen, whole = filled(height, 0.0)
        pyro.sample("height", dist.Normal(1 + a * u, 0.3).mask(seen), obs=whole)
        seen, whole = filled(count, 0.0)
        pyro.sample("count", dist.Poisson((a + b * u).exp()).mask(seen), obs=whole)
        pyro.sample("pair", dist.MultivariateNormal(m, scale_tril=torch.tensor([[1.0, 0.0], [0.8, 0.6]])), obs=pair)
        pyro.factor("penalty", -0.1 * a.expand(len(u)) ** 2)


@pytest.fixture
def outcomes(hidden):
    height = hidden["height"].set_axis([f"r{i}" for i in range(N)])
    return known(joint, height, hidden["count"], U, PAIRS), height


def test_every_outcome_is_answered_by_its_name(outcomes, hidden):
    fit, height = outcomes
    whole = fit.posterior_predictive(height, draws=400, random_seed=0)
    assert {name: value.dims for name, value in whole.data_vars.items()} == {
        "x": ("draw", "row"),
        "count": ("draw", "row"),
        "pair": ("draw", "row", "pair_dim_1"),
    }
    assert whole["row"].values[0] == "r0"
    np.testing.assert_allclose(whole["x"].mean("draw"), 1 + 0.4 * U, atol=0.08)
    np.testing.assert_allclose(whole["count"].mean("draw"), np.exp(0.4 + 0.2 * U), atol=0.4)
    done = fit.impute(height, draws=50, random_seed=0)
    np.testing.assert_array_equal(done["pair"].isel(draw=0), PAIRS)
    seen = hidden["count"].notna().to_numpy()
    np.testing.assert_array_equal(done["count"].isel(draw=0)[seen], COUNTS[seen])
    assert np.isfinite(done["count"]).all()
    assert done["count"].values[:, ~seen].std() > 0.5
    assert fit.predict(height, draws=20)["sd"].dims == ("row",)


def test_arviz_has_every_outcome(outcomes):
    fit, height = outcomes
    tree = fit.to_arviz(height, draws=5)
    for group in ("posterior_predictive", "prior_predictive"):
        assert set(tree[group].data_vars) == {"x", "count", "pair"}
    assert set(tree["observed_data"].data_vars) == {"x", "count", "pair"}
    assert set(tree["log_likelihood"].data_vars) == {"x", "height", "count", "pair", "penalty"}
    assert tree["log_likelihood"].sizes["row"] == N  # no row is without any observation


def test_an_engine_fits_several_sites_and_they_are_answered(hidden):
    options = {"random_seed": 0, "progressbar": False}
    first = mcmc.fit(Mixed(), hidden, draws=50, tune=150, chains=8, compile="traced", **options)
    second = svi.fit(joint, hidden["height"], hidden["count"], U, PAIRS, guide="full_rank", compile="traced", **options)
    for fit, x in ((first, hidden), (second, hidden["height"])):
        means = {name: value.mean(0) for name, value in fit.posterior.draws(400).items()}
        assert float(means["a"]) == pytest.approx(0.35, abs=0.2)
        assert math.isfinite(float(fit.log_likelihood(x, draws=20).sum()))


def follows(x, u):
    """The second column depends on the first."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    with pyro.plate("row", len(x)):
        pyro.sample("first", dist.Normal(a, 1.0), obs=x[:, 0])
        pyro.sample("second", dist.Normal(a + x[:, 0], 1.0), obs=x[:, 1])


def test_a_site_that_depends_on_another_is_refused():
    x = torch.tensor(PAIRS)
    fit = svi.fit(follows, x, 1.0, max_steps=5, draws=20, progressbar=False, random_seed=0)
    for ask in (fit.posterior_predictive, fit.impute):
        with pytest.raises(FitError, match="distribution of site 'second' must not depend on data that are an outcome"):
            ask(x)
    assert fit.log_likelihood(x).shape == (N,)


class Counted(ppgen.Model):
    """Whole numbers, converted, beside a real one."""

    data_dims = ("row", "feature")
    dims = {"a": (), "b": (), "m": ("side",)}
    config = {}

    def model(self, x, *, u=None, total=None):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 2.0))
        pyro.sample("b", dist.Normal(x.new_zeros(()), 2.0))
        pyro.sample("m", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            seen, kind = filled(x[:, 1], 0.0)
            logits = torch.stack([a, a + 1, a + 2])
            pyro.sample("kind", dist.Categorical(logits=logits).mask(seen), obs=kind.long())
            seen, height = filled(x[:, 0], 0.0)
            pyro.sample("height", dist.Normal(a, 1.0).mask(seen), obs=height)


def test_whole_numbers_are_found_among_the_columns():
    table = pd.DataFrame({"height": HEIGHT, "kind": (np.arange(N) % 3).astype(float)})
    table.loc[:9, "kind"] = np.nan
    done = known(Counted(), table).impute(table, draws=50, random_seed=0)
    assert set(np.unique(done.sel(feature="kind"))) == {0.0, 1.0, 2.0}
    np.testing.assert_array_equal(done.isel(draw=3, row=slice(10, None)), table[10:])


def in_other_units(x, first, second):
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    with pyro.plate("row", len(x)):
        pyro.sample("first", dist.Normal(a, 1.0), obs=first(x[:, 0]))
        pyro.sample("second", dist.Normal(a, 1.0), obs=second(x[:, 1]))


def same(x):
    return x


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (same, "site 'second' must observe entries of x as they are given, got other values of them"),
        (torch.square, "a site must observe the data x that it is asked about, got .*columns of it"),
    ],
)
def test_columns_in_other_units_are_refused(first, message):
    x = torch.tensor(PAIRS)
    fit = svi.fit(
        in_other_units,
        x,
        first,
        torch.square,
        max_steps=5,
        draws=20,
        progressbar=False,
        random_seed=0,
        compile="traced",
    )
    for ask in (fit.posterior_predictive, fit.impute):
        with pytest.raises(FitError, match=message):
            ask(x)


class Outside(ppgen.Model):
    """A program that leaves torch on the way to a second observed site."""

    data_dims = ("row",)
    dims = {"a": ()}
    config = {}

    def model(self, x, *, u=None, total=None):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 2.0))
        few = torch.as_tensor(np.isnan(x.numpy()).mean())
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            seen, whole = filled(x, 0.0)
            pyro.sample("x", dist.Normal(a, 1.0).mask(seen), obs=whole)
        pyro.sample("share", dist.Normal(torch.sigmoid(a), 1.0), obs=few)


def test_a_program_without_gradients_is_answered_where_one_site_observes_all():
    x = pd.Series(HEIGHT).where(np.arange(N) > 4)
    given = task.read("test", Outside(), (x,), None)
    draws = Draws({"a": torch.ones(2, 10).double()})
    fit = fit_result(given.model, draws, pd.DataFrame(), {"engine": "mcmc"}, given.observations, given.inputs)
    assert np.isfinite(fit.impute(x, draws=5)).all()
    assert fit.posterior_predictive(x, draws=5).shape == (5, N)
