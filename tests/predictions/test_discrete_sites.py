"""Discrete sites that were summed out by enumeration: laws against sums over every value written out by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.data import as_observations
from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions import predictive
from ppgen.predictions.predictive import gather
from ppgen.results import Draws, fit_result

MANY = 20_000
FAR = 4.9  # standard errors: false-alarm rate 1e-6 each


class Mixture(Model):
    """Each row is of one kind; both of its entries are normal around the centre of that kind."""

    data_dims = ("row", "feature")
    dims = {"weight": ("kind",), "centre": ("kind", "feature")}

    def __init__(self, kinds=2, local="categorical"):
        super().__init__()
        self.kinds, self.local = kinds, local

    def model(self, x, *, u=None, total=None):
        weight = pyro.sample("weight", dist.Dirichlet(x.new_ones(self.kinds)))
        centre = pyro.sample("centre", dist.Normal(0.0, 3.0).expand([self.kinds, 2]).to_event(2))
        with pyro.plate("row", len(x)):
            if self.local == "poisson":
                pyro.sample("z", dist.Poisson(1.0))
                z = torch.zeros(len(x)).long()
            else:
                z = pyro.sample("z", dist.Categorical(weight))
            if self.local == "continuous":
                pyro.sample("h", dist.Normal(0.0, 1.0))
            entries = dist.Normal(centre[z], 1.0).mask(~torch.isnan(x)).to_event(1)
            pyro.sample("x", entries, obs=torch.nan_to_num(x))


class Shared(Model):
    """A switch that all rows share decides the weights of their kinds, and shifts them."""

    data_dims = ("row",)
    dims = {"centre": ("kind",)}
    weights = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        switch = pyro.sample("switch", dist.Bernoulli(x.new_tensor(0.4)))
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Categorical(self.weights[switch.long()]))
            pyro.sample("x", dist.Normal(centre[z] + switch, 1.0).mask(~torch.isnan(x)), obs=torch.nan_to_num(x))


class Nested(Model):
    """Rows of a kind, their entries of kinds that depend on it: a sum inside a product inside a sum."""

    data_dims = ("row", "entry")
    dims = {"centre": ("kind",)}
    steps = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("row", len(x), dim=-2):
            y = pyro.sample("y", dist.Categorical(x.new_tensor([0.3, 0.7])))
            with pyro.plate("entry", x.shape[1], dim=-1):
                z = pyro.sample("z", dist.Categorical(self.steps[y]))
                pyro.sample("x", dist.Normal(centre[z], 1.0), obs=x)


def normal(x, mean):
    return -0.5 * (x - mean) ** 2 - 0.5 * math.log(2 * math.pi)


@pytest.fixture
def x():
    return torch.tensor([[0.5, -1.0], [torch.nan, 2.0], [torch.nan, torch.nan]], dtype=torch.float64)


@pytest.fixture
def draws():
    return {"weight": torch.rand(7, 2).double(), "centre": 2 * torch.randn(7, 2, 2).double()} | {
        "weight": torch.tensor([[0.3, 0.7]]).double().expand(7, 2)
    }


def kinds(draws, x):
    """Log p(z, x | theta) of each row, (S, N, K)."""
    scores = normal(x[None, :, None], draws["centre"][:, None])
    return torch.where(torch.isnan(x)[None, :, None], 0.0, scores).sum(-1) + draws["weight"].log()[:, None]


def test_sites_of_a_row_are_summed_out_of_its_likelihood(draws, x):
    found = gather(lambda theta: predictive.log_likelihood(Mixture(), theta, x), draws)
    torch.testing.assert_close(found, kinds(draws, x).logsumexp(-1), rtol=1e-12, atol=1e-12)
    assert found[:, 2].abs().max() < 1e-12


def test_the_joint_sums_over_the_sites_too(draws, x):
    found = gather(lambda theta: predictive.log_joint(Mixture(), theta, x), draws)
    prior = dist.Dirichlet(torch.ones(2).double()).log_prob(draws["weight"])
    prior = prior + dist.Normal(0.0, 3.0).log_prob(draws["centre"]).sum((-1, -2))
    torch.testing.assert_close(found, prior + kinds(draws, x).logsumexp(-1).sum(-1), rtol=1e-12, atol=1e-12)


def test_latents_are_the_posterior_of_each_site_averaged_over_draws(draws, x):
    found = predictive.latents(Mixture(), draws, x, 5)
    average = kinds(draws, x).softmax(-1).mean(0)
    torch.testing.assert_close(found.values["z"], average, rtol=1e-12, atol=1e-12)
    assert found.values["z_mode"].equal(average.argmax(-1))
    assert found.draws["z_draw"].shape == (5, 3)
    assert found.dims == {"z": ("row", "z_value"), "z_mode": ("row",), "z_draw": ("row",)}


@pytest.mark.parametrize(("rows", "kinds_"), [(1, 2), (3, 1), (1, 1)])
def test_a_plate_of_one_row_and_a_site_of_one_value_are_no_exception(rows, kinds_):
    x = torch.randn(rows, 2).double()
    draws = {"weight": torch.full((4, kinds_), 1 / kinds_).double(), "centre": torch.randn(4, kinds_, 2).double()}
    found = gather(lambda theta: predictive.log_likelihood(Mixture(kinds_), theta, x), draws)
    torch.testing.assert_close(found, kinds(draws, x).logsumexp(-1), rtol=1e-12, atol=1e-12)
    posterior = predictive.latents(Mixture(kinds_), draws, x, 2).values["z"]
    torch.testing.assert_close(posterior, kinds(draws, x).softmax(-1).mean(0), rtol=1e-12, atol=1e-12)


def test_sums_inside_products_inside_sums_stay_with_their_row():
    x, centre = torch.randn(3, 4).double(), torch.randn(5, 2).double()
    found = gather(lambda theta: predictive.log_likelihood(Nested(), theta, x), {"centre": centre})
    entry = normal(x[None, :, :, None, None], centre[:, None, None, None, :]) + Nested.steps.log()
    rows = entry.logsumexp(-1).sum(2) + x.new_tensor([0.3, 0.7]).log()
    torch.testing.assert_close(found, rows.logsumexp(-1), rtol=1e-12, atol=1e-12)
    posterior = predictive.latents(Nested(), {"centre": centre}, x, 1)
    torch.testing.assert_close(posterior.values["y"], rows.softmax(-1).mean(0), rtol=1e-12, atol=1e-12)
    assert posterior.draws["z_draw"].shape == (1, 3, 4)


class Effects(Model):
    """Each row has an effect of its own, which tells of its kind, and an observation of both."""

    data_dims = ("row",)
    dims = {"effect": ("row",)}

    def model(self, x, *, u=None, total=None):
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.3)))
            effect = pyro.sample("effect", dist.Normal(2 * z, x.new_tensor(1.0)))
            pyro.sample("x", dist.Normal(effect - z, 1.0), obs=x)


def test_the_likelihood_weighs_the_values_of_a_site_by_what_the_parameters_say_of_it():
    """Log p(x | effect), not log p(x, effect): the weights are p(z | effect)."""
    x, effect = torch.randn(4).double(), torch.randn(6, 4).double()
    found = gather(lambda theta: predictive.log_likelihood(Effects(), theta, x), {"effect": effect})
    z = x.new_tensor([0.0, 1.0])
    weight = x.new_tensor([0.7, 0.3]).log() + normal(effect[..., None], 2 * z)
    score = weight.log_softmax(-1) + normal(x[:, None], effect[..., None] - z)
    torch.testing.assert_close(found, score.logsumexp(-1), rtol=1e-12, atol=1e-12)


def every(x, centre):
    """Log p(switch, z, x | centre) for each switch and each z, {(switch, *z): value}."""
    found = {}
    for switch, *z in itertools.product((0, 1), repeat=1 + len(x)):
        score = math.log(0.4 if switch else 0.6)
        for value, kind in zip(x.tolist(), z, strict=True):
            score += math.log(Shared.weights[switch, kind])
            score += 0 if math.isnan(value) else float(normal(value, centre[kind] + switch))
        found[switch, *z] = score
    return found


def shared():
    x, centre = torch.tensor([1.5, -0.5, torch.nan]).double(), torch.tensor([-0.4, 1.0]).double()
    scores = every(x, centre)
    total = torch.tensor(list(scores.values()), dtype=torch.float64).logsumexp(0)
    return x, centre, {state: math.exp(score - total) for state, score in scores.items()}


def test_a_draw_of_sites_that_depend_on_each_other_is_a_joint_one():
    """Pearson's chi-square over all 16 values, 15 degrees of freedom: above 44.3 with probability 1e-4."""
    x, centre, probability = shared()
    found = predictive.latents(Shared(), {"centre": centre.expand(MANY, 2)}, x, MANY).draws
    states = torch.cat([found["switch_draw"][:, None], found["z_draw"]], -1)
    counts = torch.bincount(states @ torch.tensor([8, 4, 2, 1]), minlength=16)
    expected = MANY * torch.tensor(list(probability.values()))
    assert float(((counts - expected) ** 2 / expected).sum()) < 44.3


def test_marginals_of_sites_that_depend_on_each_other_are_sums_of_the_joint():
    x, centre, probability = shared()
    found = predictive.latents(Shared(), {"centre": centre[None]}, x).values
    for place, name in enumerate(["switch", "z", "z", "z"]):
        one = sum(p for state, p in probability.items() if state[place] == 1)
        value = found[name][1] if place == 0 else found[name][place - 1, 1]
        assert float(value) == pytest.approx(one, abs=1e-12)


def test_a_site_that_rows_share_is_a_parameter_drawn_from_its_posterior():
    """Its share, and the mean of replicated rows, whose own sites come from their prior: |z| < 4.9."""
    x, centre, probability = shared()
    draws = {"centre": centre.expand(MANY, 2)}
    on = sum(p for state, p in probability.items() if state[0])
    scores = gather(lambda theta: predictive.log_likelihood(Shared(), theta, x), draws)
    rows = [(Shared.weights[g].log() + normal(x[0], centre + g)).logsumexp(-1) for g in (0, 1)]
    is_on = torch.isclose(scores[:, 0], rows[1], atol=1e-12)
    assert (is_on | torch.isclose(scores[:, 0], rows[0], atol=1e-12)).all()
    assert abs(float(is_on.double().mean()) - on) < FAR * (on * (1 - on) / MANY) ** 0.5
    replicated = gather(lambda theta: predictive.replicate(Shared(), theta, x), draws)
    mean = sum(p * float(Shared.weights[g] @ (centre + g)) for g, p in ((1, on), (0, 1 - on)))
    spread = replicated.std(0) / MANY**0.5
    assert ((replicated.mean(0) - mean).abs() < FAR * spread).all()


def test_a_gap_is_filled_given_what_the_rest_of_the_row_says_about_its_kind(x):
    """|z| < 4.9 for the missing entry of a row whose other entry is seen."""
    theta = {"weight": torch.tensor([0.3, 0.7]).double(), "centre": torch.tensor([[-2.0, 1.5], [2.0, -1.0]]).double()}
    draws = {site: value.expand(MANY, *value.shape) for site, value in theta.items()}
    filled = gather(lambda one: predictive.impute(Mixture(), one, x), draws)
    posterior = kinds({site: value[:1] for site, value in draws.items()}, x)[0].softmax(-1)
    score = filled[:, 1, 0].mean() - posterior[1] @ theta["centre"][:, 0]
    assert abs(score) < FAR * filled[:, 1, 0].std() / MANY**0.5
    prior = filled[:, 2].mean(0) - theta["weight"] @ theta["centre"]
    assert (prior.abs() < FAR * filled[:, 2].std(0) / MANY**0.5).all()
    assert filled[:, 0].equal(x[:1].expand(MANY, 2))


@pytest.mark.parametrize(("local", "missing"), [("poisson", "z"), ("continuous", "h")])
def test_a_site_that_cannot_be_summed_over_is_named(local, missing, draws, x):
    with pytest.raises(
        FitError, match=rf"Mixture: the posterior must hold every latent site, \['{missing}'\] not among"
    ):
        gather(lambda theta: predictive.log_likelihood(Mixture(local=local), theta, x), draws)


def test_a_fit_labels_the_sites_by_their_plates(draws, x):
    sites = {site: value[None] for site, value in draws.items()}
    observations = as_observations(x.numpy(), dims=Mixture.data_dims)
    fit = fit_result(Mixture(), Draws(sites), pd.DataFrame(), {"engine": "mcmc"}, observations)
    found = fit.latents(x.numpy(), draws=3, random_seed=0)
    assert {name: value.dims for name, value in found.data_vars.items()} == {
        "z": ("row", "z_value"),
        "z_mode": ("row",),
        "z_draw": ("draw", "row"),
    }
    np.testing.assert_allclose(found["z"].sum("z_value"), 1, atol=1e-12)
    assert np.isfinite(fit.impute(x.numpy(), draws=4, random_seed=0)).all()
    assert fit.to_arviz(x.numpy(), random_seed=0)["log_likelihood"]["x"].shape == (1, 7, 2)
