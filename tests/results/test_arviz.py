import numpy as np
import pytest


def test_a_fit_alone_gives_its_posterior_with_dims_and_coords(hmm_fit):
    tree = hmm_fit.to_arviz(draws=20)
    assert set(tree.children) == {"posterior"}
    posterior = tree["posterior"]
    assert posterior["location"].dims == ("chain", "draw", "state", "feature")
    assert posterior["transition"].dims == ("chain", "draw", "state", "next_state")
    assert list(posterior["state"].values) == list(posterior["next_state"].values) == ["rest", "run"]
    assert list(posterior["feature"].values) == ["nose", "tail"]
    assert posterior.sizes["draw"] == 20


def test_with_data_every_group_of_the_schema_is_there(hmm_fit, recordings):
    tree = hmm_fit.to_arviz(recordings, draws=5, random_seed=0)
    assert set(tree.children) == {
        "posterior",
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter")  # the draws are made up, not a posterior
def test_arviz_can_use_it(line):
    from arviz_stats import loo, summary

    fit, x, u = line
    tree = fit.to_arviz(x, u=u)
    assert np.isfinite(loo(tree, var_name="x").elpd)
    assert len(summary(tree, round_to="none")) == 3
