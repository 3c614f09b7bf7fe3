import importlib

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from ppgen.data import as_observations
from ppgen.emissions.autoregressive import Autoregressive
from ppgen.errors import DataError
from ppgen.inference import vb
from ppgen.model import Model
from ppgen.models.hmm import HMM
from ppgen.models.lds import LDS
from ppgen.predictions import predictive
from ppgen.programs.program import Function
from ppgen.results import Draws, by_entry, fit_result


def test_a_fit_alone_gives_its_posterior_with_dims_and_coords(hmm_fit):
    tree = hmm_fit.to_arviz(draws=20)
    assert set(tree.children) == {"posterior", "sample_stats"}
    posterior = tree["posterior"]
    assert posterior["location"].dims == ("chain", "draw", "state", "feature")
    assert posterior["transition"].dims == ("chain", "draw", "state", "next_state")
    assert list(posterior["state"].values) == list(posterior["next_state"].values) == ["rest", "run"]
    assert list(posterior["feature"].values) == ["nose", "tail"]
    assert posterior.sizes["draw"] == 20


def test_the_other_axis_of_a_square_matrix_has_the_labels_of_the_first(hmm_fit, recordings):
    for tree in (hmm_fit.to_arviz(draws=5), hmm_fit.to_arviz(recordings, draws=5)):
        for group in tree.children.keys() & {"posterior", "prior"}:
            assert tree[group]["precision_cholesky"].dims[-2:] == ("feature", "other_feature")
            assert tree[group]["other_feature"].values.tolist() == ["nose", "tail"]
            assert "other_feature" not in tree[group]["location"].coords


def square(x):
    pyro.sample("kernel", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    pyro.sample("table", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def test_only_an_axis_of_the_same_length_and_without_labels_of_its_own_takes_those_of_the_first():
    sites = {"kernel": torch.randn(2, 3, 2, 2).double(), "table": torch.randn(2, 3, 2, 3).double()}
    terms = {"term": ["dose", "age"]}

    def tree(coords):
        dims = {"kernel": ("term", "other_term"), "table": ("unit", "other_unit")}
        model = Function(square, (torch.zeros(()),), dims, coords)
        return fit_result(model, Draws(sites), pd.DataFrame(), {}, xr.DataArray(0.0)).to_arviz()["posterior"]

    assert tree(terms)["other_term"].values.tolist() == ["dose", "age"]
    assert tree({**terms, "other_term": ["a", "b"]})["other_term"].values.tolist() == ["a", "b"]
    assert tree({**terms, "unit": ["kg", "cm"]})["other_unit"].values.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (LDS(1, 2), {"loading": ("feature", "regressor"), "loading_precision_cholesky": ("feature",)}),
        (
            HMM(2, emission=Autoregressive(2, covariance="diagonal")),
            {"coefficients": ("state", "feature", "regressor"), "precision_cholesky": ("state", "feature")},
        ),
    ],
)
def test_axes_that_are_one_long_by_design_are_not_shown(model, sites, recordings):
    fit = vb.fit(model, recordings, random_seed=0, progressbar=False, max_steps=2)
    posterior = fit.to_arviz(draws=5)["posterior"]
    for site, axes in sites.items():
        assert posterior[site].dims == ("chain", "draw", *axes)
    assert not {"row_of_one", "column_of_one"} & set(posterior.coords)


def test_with_data_every_group_of_the_schema_is_there(hmm_fit, recordings):
    tree = hmm_fit.to_arviz(recordings, draws=5, random_seed=0)
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "log_likelihood",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "observed_data",
    }
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "sequence")
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", "sequence", "time", "feature")
    assert list(tree["observed_data"]["sequence"].values) == ["mouse", "rat"]
    assert np.isfinite(tree["log_likelihood"]["x"]).all()
    np.testing.assert_array_equal(tree["observed_data"]["x"].sel(sequence="mouse"), recordings["mouse"])
    assert set(tree["prior"].data_vars) == set(tree["posterior"].data_vars)


def test_chains_keep_their_records_and_inputs(line):
    fit, x, u = line
    tree = fit.to_arviz(x, draws=10, u=u)
    assert dict(tree["posterior"].sizes) == {"chain": 2, "draw": 10, "input": 2}
    assert tree["sample_stats"]["diverging"].dtype == bool
    assert tree["constant_data"]["u"].dims == ("row", "input")
    np.testing.assert_array_equal(tree["sample_stats"]["energy"].values, fit.posterior.stats["energy"][:, ::3].numpy())
    assert list(tree["posterior"]["input"].values) == ["slope", "other"]
    np.testing.assert_array_equal(tree["posterior"]["noise"].values, fit.posterior.sites["noise"][:, ::3].numpy())


def test_the_tree_goes_to_netcdf_and_back(hmm_fit, recordings, tmp_path):
    import xarray as xr

    tree = hmm_fit.to_arviz(recordings, draws=3)
    tree.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    again = xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf")
    xr.testing.assert_equal(again["posterior"].to_dataset(), tree["posterior"].to_dataset())
    again.close()


def test_rows_without_observations_are_left_out_of_the_log_likelihood(line):
    fit, x, u = line
    assert fit.to_arviz(x, u=u)["log_likelihood"]["x"].sizes["row"] == int(np.isfinite(x).any(1).sum())


def test_a_variational_fit_holds_both_log_densities_of_each_draw(hmm_fit, recordings):
    tree = hmm_fit.to_arviz(recordings, draws=6, random_seed=0)
    assert set(tree["sample_stats"].data_vars) == {"log_q", "lp"}
    theta = {site: torch.as_tensor(value.values[0]) for site, value in tree["posterior"].data_vars.items()}
    x = torch.as_tensor(tree["observed_data"]["x"].values)
    joint = [float(predictive.log_joint(hmm_fit.model, predictive.at(theta, i), x)) for i in range(6)]
    np.testing.assert_allclose(tree["sample_stats"]["lp"].values[0], joint, rtol=1e-10)
    np.testing.assert_allclose(tree["sample_stats"]["log_q"].values[0], hmm_fit.posterior.log_prob(theta), rtol=1e-10)


class Centre(Model):
    """x ~ N(centre, 1), centre ~ N(0, 1)."""

    data_dims = ("row",)
    dims = {"centre": ()}

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(centre, 1.0).mask(~x.isnan()), obs=x.nan_to_num())


@pytest.fixture
def centre():
    """Draws of q = N(mean, 1.3 sd) of the exact posterior, with their log density; and the data."""
    x = torch.linspace(-1, 2, 20, dtype=torch.float64)
    exact = dist.Normal(x.sum() / 21, 1.3 / 21**0.5)
    value = exact.sample((1, 2000))
    posterior = Draws({"centre": value}, {"log_q": exact.log_prob(value)})
    return fit_result(Centre(), posterior, pd.DataFrame(), {"engine": "svi"}, as_observations(x, dims=("row",))), x


def test_leave_one_out_of_an_approximate_posterior_corrects_it(centre):
    """The exact answer is known; draws from a q that is 1.3 times too wide miss it without the correction."""
    from arviz_stats import loo, loo_approximate_posterior

    fit, x = centre
    tree = fit.to_arviz(x, draws=2000, random_seed=0)
    stats = tree["sample_stats"]
    found = loo_approximate_posterior(tree, log_p=stats["lp"], log_q=stats["log_q"], var_name="x", pointwise=True)
    rest = [dist.Normal((x.sum() - one) / 20, (1 + 1 / 20) ** 0.5).log_prob(one) for one in x]
    exact = float(torch.stack(rest).sum())
    assert found.elpd == pytest.approx(exact, abs=0.05)
    assert abs(loo(tree, var_name="x").elpd - exact) > 0.2
    assert float(found.pareto_k.max()) < 0.5


def test_data_of_one_axis_may_have_gaps(centre):
    fit, x = centre
    x[3] = torch.nan
    assert fit.to_arviz(x, draws=5)["log_likelihood"]["x"].sizes["row"] == 19


def test_entry_by_entry_every_observation_has_the_likelihood_of_its_row(hmm_fit, recordings):
    recordings = {**recordings, "none": recordings["rat"] * np.nan}
    tree = hmm_fit.to_arviz(recordings, draws=4, random_seed=0)
    flat = by_entry(tree, loo_pit=True)
    data = tree["observed_data"]["x"]
    assert flat["observed_data"].sizes["entry"] == int(np.isfinite(data.values).sum())
    for i in (0, 50, 100, 150):
        one = flat["observed_data"]["x"][i]
        place = {dim: one[dim].item() for dim in data.dims}
        assert one == data.sel(place)
        for group in ("posterior_predictive", "prior_predictive"):
            np.testing.assert_array_equal(flat[group]["x"].isel(entry=i), tree[group]["x"].sel(place))
        likelihood = tree["log_likelihood"]["x"].sel(sequence=place["sequence"])
        np.testing.assert_array_equal(flat["log_likelihood"]["x"].isel(entry=i), likelihood)
    assert flat["posterior"].to_dataset().equals(tree["posterior"].to_dataset())


def test_the_likelihood_of_a_row_is_not_counted_once_for_each_of_its_entries(hmm_fit, recordings, regression):
    tree = hmm_fit.to_arviz(recordings, draws=4, random_seed=0)
    assert "log_likelihood" not in by_entry(tree).children
    assert "log_likelihood" in tree.children
    fit, y = regression
    flat, rows = by_entry(fit.to_arviz(y, draws=5)), fit.to_arviz(y, draws=5)
    np.testing.assert_array_equal(flat["log_likelihood"]["x"], rows["log_likelihood"]["x"])
    one = hmm_fit.to_arviz({"mouse": recordings["mouse"]}, draws=4, random_seed=0)
    with pytest.raises(DataError, match="LOO-PIT leaves one sequence out at a time, so there must be several"):
        by_entry(one, loo_pit=True)


def program(y, u):
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a + b * u, 0.5), obs=y)


@pytest.fixture
def regression():
    """Four chains of exact draws of a plain function's posterior, and the data."""
    u = torch.linspace(-1, 1, 30, dtype=torch.float64)
    y = 1 + 2 * u + 0.5 * torch.randn(30, dtype=torch.float64)
    design = torch.stack([torch.ones_like(u), u], -1)
    covariance = torch.linalg.inv(design.T @ design / 0.25 + torch.eye(2, dtype=torch.float64) / 4)
    draws = dist.MultivariateNormal(covariance @ design.T @ y / 0.25, covariance).sample((4, 250))
    stats = {"energy": torch.randn(4, 250).double(), "diverging": torch.zeros(4, 250, dtype=torch.bool)}
    posterior = Draws({"a": draws[..., 0], "b": draws[..., 1]}, stats)
    return fit_result(
        Function(program, (y, u)), posterior, pd.DataFrame(), {"engine": "mcmc"}, as_observations(y, dims=("row",))
    ), y


TOOLS = pytest.mark.filterwarnings(
    "ignore:The inplace keyword", "ignore:Estimated shape parameter", "ignore:invalid value encountered"
)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_summary_has_the_names_of_its_entries():
    """Axes of the tree come in an order that is that of every variable; else arviz_stats swaps the names of entries."""
    from arviz_stats import summary

    x = np.random.default_rng(0).normal(size=(1, 60, 3)).cumsum(1)
    tree = vb.fit(LDS(2, 3), x, max_steps=5, random_seed=0, progressbar=False).to_arviz(draws=50)
    table, loading = summary(tree, round_to="none"), tree["posterior"]["loading"].mean(("chain", "draw"))
    for feature in range(3):
        for regressor in ("h0", "h1", "one"):
            own = float(loading.sel(feature=feature, regressor=regressor))
            assert table.loc[f"loading[{feature}, {regressor}]", "mean"] == pytest.approx(own)


@TOOLS
@pytest.mark.parametrize("kind", ["function", "hmm"])
def test_arviz_stats_can_use_it(kind, regression, chains, recordings):
    from arviz_stats import compare, loo, loo_pit, summary

    fit, x = regression if kind == "function" else (chains, recordings)
    tree = fit.to_arviz(x, draws=60, random_seed=0)
    table = summary(tree, round_to="none")
    assert len(table) == (2 if kind == "function" else 2 + 4 + 4 + 8)
    found = loo(tree, var_name="x", pointwise=True)
    assert np.isfinite(found.elpd)
    assert found.n_data_points == (30 if kind == "function" else 2)
    assert len(compare({"one": tree, "other": tree}, var_name="x")) == 2
    pit = loo_pit(by_entry(tree, loo_pit=True), var_names=["x"])["x"]
    assert ((pit >= 0) & (pit <= 1)).all()
    if kind == "function":
        np.testing.assert_array_equal(loo_pit(tree, var_names=["x"])["x"], pit)


def test_the_pit_of_a_right_model_is_uniform(regression):
    """Mean and variance of 30 nearly independent uniforms; each within 4 standard errors."""
    from arviz_stats import loo_pit

    fit, y = regression
    pit = loo_pit(fit.to_arviz(y, draws=250, random_seed=0), var_names=["x"])["x"].values
    assert abs(pit.mean() - 0.5) < 4 * (1 / 12 / 30) ** 0.5
    assert abs(pit.var() - 1 / 12) < 4 * (1 / 180 / 30) ** 0.5


PLOTS = [
    "trace",
    "dist",
    "trace_dist",
    "forest",
    "rank",
    "energy",
    "ess",
    "autocorr",
    "mcse",
    "ppc_dist",
    "prior_posterior",
]


@TOOLS
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Your data appears to have a single value")  # the zeros of a triangle
@pytest.mark.parametrize("kind", ["function", "hmm"])
def test_arviz_plots_can_use_it(kind, regression, chains, recordings):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    plots = importlib.import_module("arviz_plots")
    pyplot = importlib.import_module("matplotlib.pyplot")
    loo = importlib.import_module("arviz_stats").loo
    fit, x = regression if kind == "function" else (chains, recordings)
    tree = fit.to_arviz(x, draws=60, random_seed=0)
    for name in PLOTS:
        assert getattr(plots, f"plot_{name}")(tree, backend="matplotlib") is not None
        pyplot.close("all")
    for name in ("ppc_dist", "loo_pit", "ppc_pit"):
        assert getattr(plots, f"plot_{name}")(by_entry(tree, loo_pit=True), backend="matplotlib") is not None
        pyplot.close("all")
    assert plots.plot_khat(loo(tree, var_name="x", pointwise=True), backend="matplotlib") is not None
    pyplot.close("all")


@pytest.mark.parametrize("name", ["chain", "draw", "a/b"])
def test_a_site_that_the_tree_would_lose_is_refused(name):
    fit = fit_result(
        Function(print, ()), Draws({name: torch.zeros(2, 3, 2)}, {}), pd.DataFrame(), {}, xr.DataArray(0.0)
    )
    with pytest.raises(DataError, match=f'sites and inputs must have names without "/" that no axis has, got .*{name}'):
        fit.to_arviz()
