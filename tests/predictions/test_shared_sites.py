"""Discrete sites that rows share: drawn once given the data of a fit, and known in answers about other rows."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.distributions import observed
from ppgen.errors import DataError, FitError
from ppgen.inference import mcmc, svi
from ppgen.model import Model
from ppgen.predictions.predictive import latents
from ppgen.programs import task
from ppgen.results import Draws, fit_result
from ppgen.results.shared import with_shared

FAR = 4.9  # standard errors: false-alarm rate 1e-6 each
KINDS = torch.tensor([-1.0, 0.0, 2.0]).double()


class Kinds(Model):
    """Rows share a switch and the kind of each column: entries are normal around the kind's mean, plus or minus m."""

    data_dims = ("row", "feature")
    dims = {"m": ()}
    config = {}

    def model(self, x, *, u=None, total=None):
        m = pyro.sample("m", dist.Normal(x.new_tensor(1.0), 0.2))
        switch = pyro.sample("switch", dist.Bernoulli(x.new_tensor(0.4)))
        columns = pyro.plate("column", 2, dim=-1)
        with columns:
            kind = pyro.sample("kind", dist.Categorical(x.new_tensor([0.5, 0.3, 0.2])))
        with pyro.plate("row", total or len(x), subsample_size=len(x), dim=-2), columns:
            mean = KINDS[kind] + (2 * switch - 1) * m
            pyro.sample("x", observed(dist.Normal(mean, 1.5)), obs=x)


X = torch.tensor([[0.3, -0.9], [1.8, torch.nan]]).double()
NEW = torch.tensor([[2.5, torch.nan], [-1.0, 0.5], [0.0, 0.0]]).double()
STATES = list(itertools.product((0, 1), (0, 1, 2), (0, 1, 2)))


def every(x, m):
    """Log p(x | m, state) of each row (S, N), and the log prior of each state (S,), written out by hand."""
    scores, prior = [], []
    for switch, *kinds in STATES:
        mean = KINDS[torch.tensor(kinds)] + (2 * switch - 1) * m
        scores.append(dist.Normal(mean, 1.5, validate_args=False).log_prob(x).nan_to_num(0.0).sum(-1))
        prior.append(math.log(0.4 if switch else 0.6) + sum(math.log((0.5, 0.3, 0.2)[kind]) for kind in kinds))
    return torch.stack(scores), torch.tensor(prior).double()


def posterior(m=1.0):
    """Probability of each state given the data of the fit."""
    scores, prior = every(X, m)
    return (scores.sum(1) + prior).softmax(0)


def fitted(model, draws, x, seed=0):
    given = task.read("test", model, (x,), None)
    sites = {name: torch.as_tensor(value).double()[None] for name, value in draws.items()}
    whole = with_shared(given.model, Draws(sites), given.args[0], None, seed)
    return fit_result(given.model, whole, pd.DataFrame({"draw": [0]}), {"engine": "test"}, given.observations)


@pytest.fixture(scope="module")
def fit():
    return fitted(Kinds(), {"m": torch.ones(20_000)}, X)


def test_what_is_kept_is_a_joint_draw_given_the_data(fit):
    """Pearson's chi-square over all 18 states, 17 degrees of freedom: above 47.6 with probability 1e-4."""
    found = fit.posterior.discrete
    states = 9 * found["switch"][0] + 3 * found["kind"][0, :, 0] + found["kind"][0, :, 1]
    counts, expected = torch.bincount(states.long(), minlength=18), 20_000 * posterior()
    assert float(((counts - expected) ** 2 / expected).sum()) < 47.6


def test_the_likelihood_of_new_rows_is_the_mean_over_what_the_rows_of_the_fit_say(fit):
    scores, _ = every(NEW, 1.0)
    exact = posterior() @ scores.exp()
    spread = (posterior() @ scores.exp() ** 2 - exact**2).sqrt() / exact
    found = torch.tensor(fit.log_likelihood(NEW, draws=20_000, random_seed=0).values)
    assert ((found - exact.log()).abs() < FAR * spread / 20_000**0.5).all()


def test_gaps_and_replicates_of_new_rows_do_not_depend_on_the_rows_beside_them(fit):
    """Means of what is missing in a row alone and beside others, and of replicated rows: |z| < 4.9."""
    means = torch.stack([KINDS[torch.tensor(kinds)] + 2 * switch - 1 for switch, *kinds in STATES])
    exact = posterior() @ means
    error = FAR * (1.5**2 + posterior() @ means**2 - exact**2).sqrt() / 20_000**0.5
    for rows in (NEW, NEW[:1]):
        drawn = fit.impute(rows, draws=20_000, random_seed=0).values[:, 0, 1]
        assert abs(drawn.mean() - float(exact[1])) < float(error[1])
    replicated = torch.tensor(fit.posterior_predictive(NEW, draws=20_000, random_seed=0).values)
    assert ((replicated[:, 2].mean(0) - exact).abs() < error).all()


def test_their_probabilities_are_said_for_new_rows_too(fit):
    """Exact for the rows of the fit; for others shares of 200 draws: |z| < 4.9."""
    share = torch.zeros(2, 3).double()
    for probability, (_, *kinds) in zip(posterior(), STATES, strict=True):
        share[torch.arange(2), torch.tensor(kinds)] += probability
    np.testing.assert_allclose(fit.latents(X, random_seed=0)["kind"], share, atol=1e-12)
    found = fit.latents(NEW, draws=4, random_seed=0)
    assert (
        np.abs(found["kind"].values - share.numpy()) < FAR * (share * (1 - share) / 200).sqrt().numpy() + 0.005
    ).all()
    assert found["kind"].dims == ("column", "kind_value")
    assert found["kind_draw"].dims == ("draw", "column")
    assert found["switch_mode"].dims == ()


def test_a_fit_of_few_draws_keeps_many_of_them(tmp_path):
    """A thousand at one point, so that its answers are a mean over the states: |z| < 4.9."""
    fit = fitted(Kinds(), {"m": torch.ones(1)}, X)
    assert fit.posterior.discrete["kind"].shape == (1, 1000, 2)
    scores, _ = every(NEW, 1.0)
    exact = posterior() @ scores.exp()
    spread = (posterior() @ scores.exp() ** 2 - exact**2).sqrt() / exact
    found = fit.log_likelihood(NEW, draws=1000, random_seed=0)
    assert (np.abs(found.values - exact.log().numpy()) < FAR * (spread / 1000**0.5).numpy()).all()
    fit.save(tmp_path / "fit")
    assert ppgen.load(tmp_path / "fit", model=Kinds).log_likelihood(NEW, draws=1000, random_seed=0).identical(found)


def test_each_is_drawn_at_the_draw_of_the_parameters_that_it_comes_with():
    """Far from the data for one m, near them for the other: the switch follows."""
    x = 3 * torch.ones(40, 2).double()
    fit = fitted(Kinds(), {"m": torch.tensor([-3.0, 3.0])}, x)
    for draws in (
        fit.posterior.draws(7),
        fit.posterior.draws(2000),
        {k: v[0] for k, v in fit.posterior.chains(2).items()},
    ):
        assert ((draws["m"] > 0) == (draws["switch"] > 0)).all()


SETTINGS = {"random_seed": 0, "progressbar": False}


@pytest.mark.parametrize("engine", ["svi", "map", "mcmc"])
def test_engines_keep_them_and_reports_and_trees_know_of_them(engine):
    if engine == "mcmc":
        fit = mcmc.fit(Kinds(), X, draws=20, chains=8, tune=100, compile="traced", **SETTINGS)
    else:
        fit = svi.fit(Kinds(), X, guide="map" if engine == "map" else "mean_field", draws=300, **SETTINGS)
    assert set(fit.posterior.discrete) == {"switch", "kind"}
    assert set(fit.posterior.sites) == {"m"}
    tree = fit.to_arviz(X, random_seed=0)
    assert tree["posterior"]["kind"].shape == (*tree["posterior"]["m"].shape, 2)
    if engine == "svi":
        ratio = tree["sample_stats"]["lp"] - tree["sample_stats"]["log_q"]
        assert float(ratio.std()) < 0.3
    assert "m" in str(fit.diagnose(X, random_seed=0).table)
    assert fit.log_likelihood(NEW, random_seed=0).shape == (3,)


class Types(Model):
    """Means of exchangeable types, and the type of each column."""

    data_dims = ("row", "feature")
    dims = {"mean": ("type",)}
    exchangeable = ("type",)
    config = {}

    def model(self, x, *, u=None, total=None):
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
        columns = pyro.plate("column", 2, dim=-1)
        with columns:
            kind = pyro.sample("kind", dist.Bernoulli(x.new_tensor(0.5))).long()
        with pyro.plate("row", total or len(x), subsample_size=len(x), dim=-2), columns:
            pyro.sample("x", observed(dist.Normal(mean[kind], 1.0)), obs=x)


def test_where_labels_have_other_numbers_they_are_not_kept_and_other_rows_are_refused():
    """Values of the site may be such labels."""
    x = torch.tensor([[-3.0, 3.0], [-2.0, 2.0], [-3.0, 4.0]]).double()
    fit = fitted(Types(), {"mean": torch.tensor([[3.0, -3.0], [3.1, -2.9]])}, x)
    assert fit.log_likelihood(x + 1, random_seed=0).shape == (3,)
    turned = fit.order("type", by="mean")
    assert not turned.posterior.discrete
    assert turned.log_likelihood(x, random_seed=0).shape == (3,)
    words = "rows share the discrete site 'kind' and no draws of it given those data are kept"
    for ask in ("log_likelihood", "impute", "posterior_predictive", "latents"):
        with pytest.raises(FitError, match=words):
            getattr(turned, ask)(x + 1)


def test_what_cannot_be_drawn_is_not_kept_which_is_said(monkeypatch, caplog):
    def fails(*_):
        raise DataError("too many values")

    monkeypatch.setattr("ppgen.results.shared.draw_shared", fails)
    assert not fitted(Kinds(), {"m": torch.ones(3)}, X).posterior.discrete
    assert "no draws are kept of discrete sites that rows share: too many values" in caplog.text


def test_sites_given_have_one_value_each():
    draws = {
        "m": torch.ones(2).double(),
        "switch": torch.tensor([1.0, 0.0]).double(),
        "kind": torch.tensor([[0, 2]] * 2),
    }
    found = latents(Kinds(), draws, NEW, 2, given=("switch", "kind"))
    assert found.values["switch"].tolist() == [0.5, 0.5]
    assert found.values["kind"].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert found.draws["kind_draw"].tolist() == [[0, 2]] * 2
