"""Names and numbers of states come after the fit, and change nothing that it says."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import ppgen
from ppgen.emissions.gaussian import Gaussian
from ppgen.errors import DataError
from ppgen.expecting import observed_given
from ppgen.inference import vb
from ppgen.model import Model
from ppgen.models import LDS, SLDS, FactorialHMM
from ppgen.models.hmm import HMM
from ppgen.predictions import predictive


def simulated(seed):
    """Two states that differ in speed, as docs/models/hmm.md simulates them."""
    random = np.random.default_rng(seed)
    z = np.repeat(random.integers(0, 2, 16), 5)
    return np.where(z == 0, -1.0, 2.0)[None, :, None] + 0.5 * random.normal(size=(1, 80, 2)), z


def test_named_states_are_those_that_were_meant():
    for seed in range(3):
        x, z = simulated(seed)
        fit = vb.fit(HMM(2, 2), x, start="random", random_seed=seed, progressbar=False)
        fit = fit.order("state", by="location", feature=0).rename(state=["rest", "run"])
        found = fit.latents(x)["z"].sel(state="run").values[0] > 0.5
        assert (found == (z == 1)).mean() > 0.95


@pytest.fixture(scope="module")
def rich(recordings):
    """Three states, their usage and the scales of their prior learnt."""
    model = HMM(3, emission=Gaussian(2), hierarchical=True, learn_prior=True, stickiness=2.0)
    return vb.fit(model, recordings, random_seed=0, progressbar=False, max_steps=15)


def exactly(fit):
    """Everything a variational fit believes of its data."""
    x = torch.zeros(1, 1, 2).double()
    found = observed_given(fit.model, fit.posterior.statistics(), x, None, fit.posterior.points)
    return found["x"].distribution


def test_another_order_of_factors_changes_nothing_but_the_order(rich, recordings):
    x = torch.as_tensor(ppgen.data.as_observations(recordings).values)
    by = rich.posterior.draws(1000)["location"].mean(0)[:, 0]
    order = by.argsort()
    fit = rich.order("state", by="location", feature="nose")
    assert not order.equal(torch.arange(3))
    torch.testing.assert_close(exactly(fit).log_prob(x), exactly(rich).log_prob(x), rtol=0, atol=1e-9)
    before, after = rich.latents(recordings), fit.latents(recordings)
    np.testing.assert_allclose(after["z"].values, before["z"].values[..., order], atol=1e-12)
    ended = before["z_mode"].values < 0
    np.testing.assert_array_equal(after["z_mode"], np.where(ended, -1, order.argsort()[before["z_mode"].values]))
    theta = rich.posterior.draws(5)
    axes = {site: [i for i, dim in enumerate(dims) if dim.endswith("state")] for site, dims in rich.model.dims.items()}
    moved = dict(theta)
    for site, places in axes.items():
        for axis in places:
            moved[site] = moved[site].index_select(1 + axis, order)
    torch.testing.assert_close(fit.posterior.log_prob(moved), rich.posterior.log_prob(theta), rtol=1e-12, atol=1e-12)
    joints = [
        [float(predictive.log_joint(one.model, predictive.at(draws, i), x)) for i in range(5)]
        for one, draws in ((fit, moved), (rich, theta))
    ]
    np.testing.assert_allclose(*joints, rtol=1e-12)
    prior, again = rich.model.natural_prior(), fit.model.natural_prior()
    diagonal = prior["transition"].eta["log_probability"][order][:, order]
    torch.testing.assert_close(again["transition"].eta["log_probability"], diagonal)
    torch.testing.assert_close(fit.posterior.points["usage"], rich.posterior.points["usage"][order])


def test_a_run_goes_on_from_a_fit_in_another_order(rich, recordings):
    model = HMM(3, emission=Gaussian(2), hierarchical=True, learn_prior=True, stickiness=2.0)
    fits = [rich, rich.order("state", by="location", feature="nose")]
    bounds = [
        vb.fit(model, recordings, start=fit, max_steps=2, progressbar=False).history["elbo"].tolist() for fit in fits
    ]
    np.testing.assert_allclose(bounds[0], bounds[1], rtol=1e-10)


def test_another_order_of_draws_changes_nothing_but_the_order(chains, recordings):
    fit = chains.order("state", by="location", feature="tail", descending=True)
    numbered = chains.relabel()
    np.testing.assert_allclose(fit.log_likelihood(recordings), numbered.log_likelihood(recordings), rtol=1e-12)
    flipped = bool((fit.posterior.sites["location"] != numbered.posterior.sites["location"]).all())
    before, after = numbered.latents(recordings)["z"].values, fit.latents(recordings)["z"].values
    np.testing.assert_allclose(after, before[..., ::-1] if flipped else before, atol=1e-12)
    means = fit.posterior.sites["location"].mean((0, 1))[:, 1]
    assert means[0] > means[1]
    assert fit.posterior.stats is chains.posterior.stats
    assert fit.diagnose().ok


def test_states_are_ordered_by_use_with_the_data(rich, recordings):
    share = (
        rich.order("state", by="z", x=recordings, descending=True).latents(recordings)["z"].mean(["sequence", "time"])
    )
    assert (np.diff(share) <= 0).all()


def test_names_given_afterwards_are_in_every_answer_and_are_saved(rich, recordings, tmp_path):
    fit = rich.order("state", by="location", feature="nose").rename(state=["slow", "middle", "fast"])
    fit.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit")
    xr.testing.assert_identical(again.latents(recordings), fit.latents(recordings))
    assert list(again.latents(recordings)["state"].values) == ["slow", "middle", "fast"]
    posterior = again.to_arviz(draws=5)["posterior"]
    assert list(posterior["state"].values) == list(posterior["next_state"].values) == ["slow", "middle", "fast"]
    assert again.attrs["numbered_by"] == {"state": "rename"}


def test_names_given_afterwards_go_with_their_states(rich, recordings):
    named = rich.rename(state=["a", "b", "c"])
    moved = named.order("state", by="location", feature="nose")
    back = moved.latents(recordings)["z"].sel(state=["a", "b", "c"])
    np.testing.assert_allclose(back, named.latents(recordings)["z"], atol=1e-12)
    assert list(moved.to_arviz(draws=2)["posterior"]["next_state"].values) == list(
        moved.latents(recordings)["state"].values
    )


def test_names_given_before_the_fit_are_said_to_be_arbitrary(recordings, caplog):
    with caplog.at_level(logging.WARNING, logger="ppgen"):
        fit = vb.fit(HMM(["rest", "run"], 2), recordings, random_seed=1, max_steps=3, progressbar=False)
    words = r"Names of state (rest, run) were given before the fit and are arbitrary"
    assert words in caplog.text
    assert words in fit.diagnose().verdict
    ordered = fit.order("state", by="location", feature="nose")
    assert words not in ordered.diagnose().verdict
    middle = ordered.posterior.draws(200)["location"].mean(0)[:, 0]
    assert middle[0] < middle[1]
    assert list(ordered.latents(recordings)["state"].values) == ["rest", "run"]
    assert words not in fit.rename(state=["one", "other"]).diagnose().verdict


def test_names_of_states_that_the_prior_tells_apart_are_not_in_doubt(hmm_fit):
    informed = type("Informed", (HMM,), {"exchangeable": (), "__final__": False})
    fit = replace(hmm_fit, model=informed(["rest", "run"], 2))
    assert "arbitrary" not in fit.diagnose().verdict


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda fit: fit.order("feature", by="location"), r"order: axis must be one whose labels HMM .* \['state'\]"),
        (lambda fit: fit.order("state", by="speed"), r"by must be a site of the fit, \['initial', .*got 'speed'"),
        (lambda fit: fit.order("state", by="location"), r"location also has the axis feature; .* \['nose', 'tail'\]"),
        (lambda fit: fit.order("state", by="location", feature="ear"), r"feature must be one of .* got 'ear'"),
        (
            lambda fit: fit.order("state", by="initial", feature="ear"),
            r"the other axes of initial, \[\], got \['feature'\]",
        ),
        (lambda fit: fit.rename(state=["one"]), r"rename: state must have 2 different names, got \['one'\]"),
        (lambda fit: fit.rename(state=["one", "one"]), "must have 2 different names"),
        (lambda fit: fit.rename(feature=["a", "b"]), "axes must be those of parameters, .* data brings its own labels"),
        (lambda fit: fit.rename(nothing=["a"]), "axes must be those of parameters.* got 'nothing'"),
        (lambda fit: fit.relabel({"location": 0}), "relabel: variational factors have one numbering"),
    ],
)
def test_what_cannot_be_named_or_ordered_is_refused_in_words(hmm_fit, ask, message):
    with pytest.raises(DataError, match=message):
        ask(hmm_fit)


def test_a_latent_to_order_by_is_one_of_those_that_are_averaged(hmm_fit, recordings):
    with pytest.raises(DataError, match=r"by must be a variable of latents\(x\), \['z'\], got 'z_mode'"):
        hmm_fit.order("state", by="z_mode", x=recordings)


def test_a_model_with_learnt_tensors_must_say_how_they_follow(chains):
    class Deep(Model):
        exchangeable = ("state",)
        dims = HMM(2, 2).dims

        def __init__(self):
            super().__init__()
            self.decoder = torch.nn.Linear(2, 2)

        def model(self, x, *, u=None, total=None):
            raise NotImplementedError

    deep = replace(chains, model=Deep(), posterior=chains.relabel().posterior)
    with pytest.raises(DataError, match=r"Deep: must say how \['decoder.bias', 'decoder.weight'\] follow another"):
        deep.order("state", by="initial")


@pytest.mark.parametrize(
    ("make", "names", "site", "axis", "labels"),
    [
        (
            lambda: FactorialHMM({"light": 2, "task": 2}, 2), {"light_state": ["off", "on"]}, "effect", "regressor",
            ["light:off", "light:on", "task:0", "task:1", "one"],
        ),
        (
            lambda: SLDS(2, 1, 2, recurrent=True), {"state": ["rest", "move"], "latent": ["drive"]},
            "transition_weights", "cause", ["state rest", "state move", "drive"],
        ),
        (lambda: LDS(1, 2), {"latent": ["drive"]}, "loading", "regressor", ["drive", "one"]),
    ],
)  # fmt: skip
def test_labels_made_of_others_follow_when_these_are_named(make, names, site, axis, labels):
    x = np.random.default_rng(0).normal(size=(1, 30, 2))
    fit = vb.fit(make(), x, max_steps=2, random_seed=0, progressbar=False).rename(**names)
    assert list(fit.to_arviz(draws=5)["posterior"][site][axis].values) == labels
