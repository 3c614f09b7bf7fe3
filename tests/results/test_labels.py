from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import ppgen
from ppgen.errors import DataError
from ppgen.results import Draws


def rhat(report, site):
    table = report.table.set_index("check")
    return table.loc[f"R-hat of {site}"]


def named(fit):
    """The same fit of a model that does not say which labels are exchangeable."""
    plain = type("Named", (type(fit.model),), {"exchangeable": ()})
    model = plain(["rest", "run"], 2)
    return replace(fit, model=model)


def test_chains_that_number_the_states_differently_agree_once_they_are_aligned(chains):
    report = chains.diagnose()
    assert report.ok
    assert "Labels of state switched (2 numberings among the chains, changes at 0.0% of steps" in report.verdict
    assert report.table.set_index("check").loc["label switching of state", "value"] == 0.5
    before = named(chains).diagnose()
    assert not rhat(before, "location")["ok"]
    assert "2 modes: 2 chains here, 2 there" in before.verdict


def test_modes_that_no_numbering_makes_alike_still_fail(chains):
    sites = dict(chains.posterior.sites)
    sites["location"] = sites["location"].clone()
    sites["location"][3] += 5
    report = replace(chains, posterior=Draws(sites, chains.posterior.stats)).diagnose()
    assert not rhat(report, "location")["ok"]
    assert "2 modes: 3 chains here, 1 there; they differ in location" in report.verdict


def test_summaries_and_latents_mean_one_numbering(chains, hmm_fit, recordings):
    tree = chains.to_arviz()
    middle = tree["posterior"]["location"].mean("draw")
    assert float(middle.std("chain").max()) < 0.1
    raw = chains.posterior.sites["location"].mean(1)
    assert float(raw.std(0).max()) > 1
    exact, found = hmm_fit.latents(recordings)["z"], chains.latents(recordings)["z"]
    assert min(float(abs(exact - found).mean()), float(abs(exact - found[..., ::-1].values).mean())) < 0.02


def test_a_relabelled_fit_says_the_same_of_data(chains, recordings):
    again = chains.relabel()
    xr.testing.assert_allclose(again.log_likelihood(recordings), chains.log_likelihood(recordings), atol=1e-9)
    assert again.posterior.stats is chains.posterior.stats


LATER = {
    "relabelled": lambda fit: fit.relabel(),
    "twice": lambda fit: fit.relabel().relabel(),
    "ordered": lambda fit: fit.order("state", by="location", feature="nose"),
    "renamed": lambda fit: fit.rename(state=["still", "quick"]),
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_a_verdict_says_what_the_chains_did_after_their_labels_were_aligned(chains, later, tmp_path):
    fit = later(chains)
    fit.save(tmp_path / "fit")
    for one in (fit, ppgen.load(tmp_path / "fit")):
        report = one.diagnose()
        assert "Labels of state switched (2 numberings among the chains" in report.verdict
        assert "never switched" not in report.verdict
        assert report.table.set_index("check").loc["label switching of state", "value"] == 0.5


def test_labels_can_be_named_by_hand(chains):
    axes = {"location": 0, "initial": 0, "transition": (0, 1)}
    fit = named(chains).relabel(axes)
    assert rhat(fit.diagnose(), "location")["ok"]
    assert "switched (2 numberings" in fit.diagnose().verdict
    with pytest.raises(DataError, match=r"relabel: axes must name sites of the fit, .* got \['nothing'\]"):
        chains.relabel({"nothing": 0})


def test_fits_without_labels_to_align_are_given_back(hmm_fit, line):
    assert hmm_fit.relabel() is hmm_fit
    fit, _, _ = line
    assert fit.relabel() is fit


def test_draws_that_are_not_finite_are_reported_not_aligned(chains):
    sites = {site: value.clone() for site, value in chains.posterior.sites.items()}
    sites["initial"][0, 0] = torch.nan
    report = replace(chains, posterior=Draws(sites, chains.posterior.stats)).diagnose()
    assert not rhat(report, "initial")["ok"]
    assert np.isnan(rhat(report, "initial")["value"])
