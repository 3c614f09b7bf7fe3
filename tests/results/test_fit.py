from dataclasses import replace

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy.special import logsumexp

import ppgen
from ppgen import arguments
from ppgen.errors import DataError, FileError
from ppgen.models.hmm import HMM
from ppgen.results import Draws, Factors, answers


def test_latents_are_labelled_like_the_data(hmm_fit, recordings):
    found = hmm_fit.latents(recordings, draws=3, random_seed=0)
    assert {name: value.dims for name, value in found.data_vars.items()} == {
        "z": ("sequence", "time", "state"),
        "z_mode": ("sequence", "time"),
        "z_draw": ("draw", "sequence", "time"),
    }
    assert list(found["sequence"].values) == ["mouse", "rat"]
    assert list(found["state"].values) == ["rest", "run"]
    assert found["length"].values.tolist() == [60, 30]
    inside = found["z"].sum("state")
    np.testing.assert_allclose(inside.sel(sequence="mouse"), 1, atol=1e-12)
    assert (found["z_mode"].sel(sequence="rat")[30:] == -1).all()
    assert (found["z_draw"].sel(sequence="rat")[:, 30:] == -1).all()
    assert (found["z_mode"].sel(sequence="mouse") >= 0).all()


def test_latents_do_not_change_when_the_model_is_applied_again(hmm_fit, recordings):
    xr.testing.assert_identical(hmm_fit.latents(recordings), hmm_fit.latents(recordings))


def test_draws_of_the_posterior_give_nearly_the_latents_of_its_factors(hmm_fit, recordings):
    """With well separated states the parameters' uncertainty hardly matters."""
    draws = Draws({site: value[None] for site, value in hmm_fit.posterior.draws(40).items()})
    sampled = ppgen.Fit(hmm_fit.model, draws, hmm_fit.history, hmm_fit.attrs, hmm_fit.labels)
    exact, averaged = hmm_fit.latents(recordings), sampled.latents(recordings)
    assert float(abs(exact["z"] - averaged["z"]).mean()) < 0.02
    assert float((exact["z_mode"] == averaged["z_mode"]).mean()) > 0.98


def test_imputation_draws_exactly_the_gaps(hmm_fit, recordings):
    filled = hmm_fit.impute(recordings, draws=20, random_seed=0)
    assert filled.dims == ("draw", "sequence", "time", "feature")
    assert list(filled["feature"].values) == ["nose", "tail"]
    for name, frame in recordings.items():
        data = frame.to_numpy()
        drawn = filled.sel(sequence=name).values[:, : len(data)]
        seen = ~np.isnan(data)
        assert (drawn[:, seen] == data[seen]).all()
        assert np.isfinite(drawn).all()
        assert (drawn[:, ~seen].std(0) > 0).all()
        assert np.isnan(filled.sel(sequence=name).values[:, len(data) :]).all()


def test_a_sparse_imputation_holds_the_same_draws_in_less(hmm_fit, recordings):
    full = hmm_fit.impute(recordings, draws=5, random_seed=0)
    sparse = hmm_fit.impute(recordings, draws=5, random_seed=0, sparse=True)
    assert sparse["x"].shape == (5, 4 * 2 + 2)
    place = {dim: sparse[dim].values for dim in ("sequence", "feature")} | {"time": sparse["time"].values}
    for i in range(sparse.sizes["missing"]):
        one = full.sel(sequence=place["sequence"][i], feature=place["feature"][i]).isel(time=place["time"][i])
        assert (one.values == sparse["x"].values[:, i]).all()


def test_an_imputation_shows_no_bar_where_none_is_wanted(hmm_fit, recordings, monkeypatch, capsys):
    monkeypatch.setattr(answers, "DELAY", 0)
    hmm_fit.impute(recordings, draws=3, random_seed=1)
    assert "impute" in capsys.readouterr().err
    hmm_fit.impute(recordings, draws=3, random_seed=1, progressbar=False)
    assert capsys.readouterr().err == ""


def test_forecasts_go_on_behind_each_end(hmm_fit, recordings):
    ahead = hmm_fit.forecast(recordings, 4, draws=6, random_seed=0)
    assert dict(ahead.sizes) == {"draw": 6, "sequence": 2, "ahead": 4, "feature": 2}
    assert ahead["ahead"].values.tolist() == [1, 2, 3, 4]
    assert np.isfinite(ahead.values).all()


def test_a_forecast_starts_where_its_own_sequence_ends(hmm_fit, recordings):
    """The same sequence alone and beside a longer one: |z| < 4.4 per entry, false-alarm rate 1e-4 in all."""
    together = hmm_fit.forecast(recordings, 3, draws=80, random_seed=1).sel(sequence="rat").values
    alone = hmm_fit.forecast({"rat": recordings["rat"]}, 3, draws=80, random_seed=2).sel(sequence="rat").values
    spread = ((together.var(0) + alone.var(0)) / 80) ** 0.5
    assert (abs(together.mean(0) - alone.mean(0)) < 4.4 * spread).all()


def test_the_predictive_density_is_the_mean_over_draws(line):
    fit, x, u = line
    theta = fit.posterior.draws(60)
    mean = torch.einsum("ni,si->sn", torch.as_tensor(u), theta["weight"])
    scores = torch.distributions.Normal(mean, theta["noise"][:, None]).log_prob(torch.as_tensor(np.nan_to_num(x[:, 0])))
    expected = np.where(np.isnan(x[:, 0]), 0, logsumexp(scores.numpy(), axis=0) - np.log(60))
    found = fit.log_likelihood(x, draws=60, u=u)
    assert found.dims == ("row",)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_replicates_end_where_the_data_ends(hmm_fit, recordings):
    replicated = hmm_fit.posterior_predictive(recordings, draws=3, random_seed=0)
    assert np.isfinite(replicated.sel(sequence="mouse")).all()
    assert np.isnan(replicated.sel(sequence="rat")[:, 30:]).all()


def test_a_seed_repeats_an_answer_and_global_generators_do_not_move(hmm_fit, recordings):
    stream = torch.get_rng_state()
    first, second = (hmm_fit.impute(recordings, draws=2, random_seed=5) for _ in range(2))
    xr.testing.assert_identical(first, second)
    assert not first.equals(hmm_fit.impute(recordings, draws=2, random_seed=6))
    assert torch.get_rng_state().equal(stream)


def test_features_in_another_order_are_put_right_and_others_refused(hmm_fit, recordings):
    swapped = {name: frame[["tail", "nose"]] for name, frame in recordings.items()}
    xr.testing.assert_identical(hmm_fit.latents(swapped), hmm_fit.latents(recordings))
    renamed = {name: frame.rename(columns={"nose": "ear"}) for name, frame in recordings.items()}
    with pytest.raises(
        DataError, match=r"x must have the features of the fit, \['nose', 'tail'\], got \['ear', 'tail'\]"
    ):
        hmm_fit.latents(renamed)


@pytest.mark.parametrize("value", [2.0, "2", None, True, np.nan, np.inf, np.ones(2)])
def test_counts_are_whole_numbers(value):
    with pytest.raises(DataError, match=r"svi: draws must be a whole number, got .*; pass an int"):
        arguments.require_at_least("svi: draws", value, 1)
    arguments.require_at_least("svi: draws", np.int64(2), 1)


@pytest.mark.parametrize("value", [0.0, -1.0, "1", None, True, np.nan, np.inf])
def test_rates_are_positive_numbers(value):
    with pytest.raises(DataError, match=r"svi: lr must be positive, got .*; 0.01 is usual"):
        arguments.require_within("svi: lr", value, 0, np.inf, "0.01 is usual")
    arguments.require_within("svi: lr", np.float32(2), 0, np.inf, "0.01 is usual")


def test_a_checkpoint_that_cannot_be_a_folder_is_refused_before_any_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(
            FileError, match="svi: checkpoint .* must be a folder, but nothing can be written in .*file"
        ):
            arguments.as_folder("svi", path)
    for path in ("", 3):
        with pytest.raises(DataError, match="svi: checkpoint must name a folder, got"):
            arguments.as_folder("svi", path)
    with pytest.raises(FileError, match="svi: checkpoint must name a folder, got: File name too long"):
        arguments.as_folder("svi", "a" * 5000)
    assert arguments.as_folder("svi", tmp_path / "new" / "run") == tmp_path / "new" / "run"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_would_not_fit_in_memory_is_refused_in_words(hmm_fit, recordings, monkeypatch):
    monkeypatch.setattr(arguments, "LARGEST_ANSWER", 2**16)
    with pytest.raises(
        DataError, match="impute: 500 draws of 240 entries must fit in .* pass sparse=True or fewer draws"
    ):
        hmm_fit.impute(recordings)
    hmm_fit.impute(recordings, sparse=True, draws=20)
    with pytest.raises(DataError, match="posterior_predictive: 500 draws .* pass fewer draws"):
        hmm_fit.posterior_predictive(recordings)
    with pytest.raises(DataError, match="log_likelihood: 5000 draws of 2 entries .* pass fewer draws"):
        hmm_fit.log_likelihood(recordings, draws=5000)
    with pytest.raises(DataError, match="to_arviz: .* pass fewer draws, or no x"):
        hmm_fit.to_arviz(recordings)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda fit, x: fit.impute(x, draws=0), "draws must be at least 1, got 0"),
        (lambda fit, x: fit.latents(x, draws=-1), "draws must be at least 0, got -1"),
        (lambda fit, x: fit.forecast(x, 0), "horizon must be at least 1, got 0"),
        (lambda fit, x: fit.latents(np.zeros((1, 4, 3))), r"\(N, T, D=2\), got \(1, 4, 3\)"),
        (lambda fit, x: fit.log_likelihood("text"), "x: must be an array"),
    ],
)
def test_questions_that_have_no_answer_are_refused_in_words(hmm_fit, recordings, ask, message):
    with pytest.raises(DataError, match=message):
        ask(hmm_fit, recordings)


def test_diagnosis_of_a_variational_fit_looks_at_the_exact_posterior_where_data_is_given(hmm_fit, recordings):
    without, given = hmm_fit.diagnose(), hmm_fit.diagnose(recordings, draws=200, random_seed=0)
    assert "Pareto k-hat" not in set(without.table["check"])
    assert "Pareto k-hat" in set(given.table["check"])
    assert given.table["value"].notna().all()


def test_a_variational_fit_without_the_data_is_not_shown_to_be_good(hmm_fit):
    report = hmm_fit.diagnose()
    assert not report.ok
    assert "give diagnose the data" in report.verdict
    assert report.table.set_index("check")["ok"].drop("comparison with the posterior").all()


def test_one_start_is_said_to_be_one(hmm_fit):
    assert "One start was made" in hmm_fit.diagnose().verdict
    several = replace(hmm_fit, attrs={**hmm_fit.attrs, "restart_elbos": [-1.0, -2.0]})
    assert "One start" not in several.diagnose().verdict


def test_nan_in_a_variational_posterior_is_a_verdict(hmm_fit, recordings, line):
    factors = {
        name: factor._replace(eta={key: value * torch.nan for key, value in factor.eta.items()})
        for name, factor in hmm_fit.posterior.factors.items()
    }
    report = replace(hmm_fit, posterior=Factors(factors)).diagnose(recordings)
    assert not report.table.set_index("check").loc["finite posterior", "ok"]
    guided, x, u = normal_guide(line)
    sites = {site: value * torch.nan for site, value in guided.posterior.sites.items()}
    report = replace(guided, posterior=Draws(sites, guided.posterior.stats)).diagnose(x, u=u)
    assert not report.table.set_index("check").loc["finite posterior", "ok"]


def normal_guide(line):
    """The fit of `Line` as if a guide had been fitted: independent normals of the draws' means and sds."""
    fit, x, u = line
    weight = dist.Normal(fit.posterior.sites["weight"].mean((0, 1)), 0.3)
    noise = dist.LogNormal(fit.posterior.sites["noise"].log().mean(), 0.3)
    sites = {"weight": weight.sample((1, 400)), "noise": noise.sample((1, 400))}
    log_q = weight.log_prob(sites["weight"]).sum(-1) + noise.log_prob(sites["noise"])
    history = pd.DataFrame({"step": np.arange(200), "elbo": -1.0})
    return ppgen.Fit(fit.model, Draws(sites, {"log_q": log_q}), history, {"engine": "svi", "converged": None}, {}), x, u


def test_more_draws_than_a_fit_holds_are_said_to_be_missing(line):
    fit, x, u = normal_guide(line)
    assert "Of draws=20,000 the fit holds 400, which were used." in fit.diagnose(x, draws=20000, u=u).verdict
    assert "the fit holds" not in fit.diagnose(x, draws=400, u=u).verdict


def test_a_variational_posterior_that_is_too_narrow_is_not_trusted(hmm_fit, recordings):
    narrow = {
        name: factor._replace(eta={key: value * 30 for key, value in factor.eta.items()})
        for name, factor in hmm_fit.posterior.factors.items()
    }
    wrong = ppgen.Fit(hmm_fit.model, Factors(narrow), hmm_fit.history, hmm_fit.attrs, hmm_fit.labels)
    table = wrong.diagnose(recordings, draws=200, random_seed=0).table.set_index("check")
    assert not table.loc["Pareto k-hat", "ok"]


def test_diagnosis_of_chains_reads_their_records(line):
    fit, _, _ = line
    assert {"divergences", "E-BFMI", "R-hat of weight", "missing share"} - set(fit.diagnose().table["check"]) == {
        "missing share"
    }


def test_a_saved_fit_answers_the_same_bit_for_bit(hmm_fit, recordings, tmp_path):
    hmm_fit.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit")
    xr.testing.assert_identical(again.latents(recordings), hmm_fit.latents(recordings))
    xr.testing.assert_identical(
        again.impute(recordings, draws=2, random_seed=1), hmm_fit.impute(recordings, draws=2, random_seed=1)
    )
    pd.testing.assert_frame_equal(again.history, hmm_fit.history, check_exact=True)
    assert again.attrs == hmm_fit.attrs
    assert {k: list(v) for k, v in again.labels.items()} == {k: list(v) for k, v in hmm_fit.labels.items()}
    assert str(again) == str(hmm_fit)


def test_a_users_own_model_is_passed_to_load_and_never_imported(line, tmp_path):
    fit, x, u = line
    fit.save(tmp_path / "fit")
    with pytest.raises(
        FileError, match="'Line' must be one of ppgen's classes, but it is not; if it is yours, pass load"
    ):
        ppgen.load(tmp_path / "fit")
    for own in (type(fit.model), type(fit.model)()):
        again = ppgen.load(tmp_path / "fit", model=own)
        np.testing.assert_array_equal(again.log_likelihood(x, u=u), fit.log_likelihood(x, u=u))
        assert again.posterior.stats["diverging"].dtype == torch.bool
        pd.testing.assert_frame_equal(again.history, fit.history, check_exact=True)
    with pytest.raises(FileError, match=r"model must be the one that was saved \(Line with"):
        ppgen.load(tmp_path / "fit", model=type(fit.model)(3))
    with pytest.raises(FileError, match="model must be the class Line that was saved, got HMM"):
        ppgen.load(tmp_path / "fit", model=HMM)


def test_a_model_without_a_config_needs_its_instance(line, tmp_path):
    fit, _, _ = line
    plain = type("Plain", (type(fit.model),), {"config": ppgen.Model.config})()
    ppgen.Fit(plain, fit.posterior, fit.history, fit.attrs, fit.labels).save(tmp_path / "fit")
    with pytest.raises(FileError, match=r"Plain was saved without its config; pass load\(folder, model=an instance"):
        ppgen.load(tmp_path / "fit", model=type(plain))
    assert ppgen.load(tmp_path / "fit", model=plain).model is plain


@pytest.mark.parametrize(
    "labels",
    [
        np.array([1, 5], dtype=np.int64),
        np.array([0.1, np.nan]),
        np.array(["nose", "tail"]),
        np.array(["nose", "tail"], dtype=object),
        np.array(["2026-01-01", "2026-01-02"], dtype="datetime64[ns]"),
        np.array([1, 2], dtype="timedelta64[s]"),
        np.array([True, False]),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_labels_of_every_kind_come_back(line, labels, tmp_path):
    fit, _, _ = line
    ppgen.Fit(fit.model, fit.posterior, fit.history, fit.attrs, {"feature": labels}).save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit", model=type(fit.model)).labels["feature"]
    np.testing.assert_array_equal(again, labels)
    assert labels.dtype.kind in "UO" or again.dtype == labels.dtype


def test_importing_ppgen_loads_nothing_heavy():
    import subprocess
    import sys

    code = "import ppgen, sys; print([m for m in ('torch', 'pyro', 'xarray', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert ppgen.__version__
    assert set(ppgen.__all__) <= set(dir(ppgen))
    assert all(getattr(ppgen, name) is not None for name in dir(ppgen) if name not in ("data", "plots"))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ppgen.nothing


def test_steps_of_a_series_are_scored_one_by_one_and_sum_to_its_density(hmm_fit, recordings, line):
    found = hmm_fit.log_likelihood(recordings, per="step", draws=50, random_seed=3)
    assert found.dims == ("sequence", "time")
    whole = hmm_fit.log_likelihood(recordings, draws=50, random_seed=3)
    np.testing.assert_allclose(found.sum("time"), whole, rtol=1e-10)
    assert np.isnan(found.sel(sequence="rat")[30:]).all()
    np.testing.assert_allclose(found.sel(sequence="mouse")[5:9], 0, atol=1e-12)
    with pytest.raises(DataError, match='per="step" is for data with time, got row, target; ask for rows'):
        line[0].log_likelihood(line[1], u=line[2], per="step")
    with pytest.raises(DataError, match='per must be "row", "step" or "site", got \'steps\''):
        hmm_fit.log_likelihood(recordings, per="steps")


def test_one_quantile_may_be_a_number(hmm_fit, recordings):
    one, list_of_one = (hmm_fit.predict(recordings, 20, quantiles=q, random_seed=0)["quantiles"] for q in (0.5, [0.5]))
    assert one.identical(list_of_one)
