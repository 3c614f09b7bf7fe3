"""Maximum a posteriori: the mode of the density in the sites' own units, from one start or several."""

import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from torch.nn.functional import log_softmax

from ppgen.collapsed import HiddenMarkov
from ppgen.emissions import Gaussian
from ppgen.errors import DataError
from ppgen.inference import svi
from ppgen.inference.svi import climbing
from ppgen.model import Model
from ppgen.models import GMM, HMM, LDS

COIN = torch.tensor([1.0, 1, 0, 1, 0, 0, 0, 0, 1, 0], dtype=torch.float64)
X = torch.tensor(np.random.default_rng(0).normal(size=(60, 2)) + np.repeat([[0.0, 0.0], [4.0, 1.0]], 30, 0))
X[::7, 0] = torch.nan


def coin(y):
    share = pyro.sample("share", dist.Beta(3.0, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(share), obs=y)


def two_tops(y):
    """Posterior with a top near 2 and a higher one near -2."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.factor("tilt", -0.3 * mu)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu**2, 1.0), obs=y)


class Centre(Model):
    """Mean and noise of rows; NaN is not observed."""

    data_dims = ("row", "feature")
    dims = {"mu": ("feature",), "noise": ()}

    def model(self, x, *, u=None, total=None):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 1.0))
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, noise).mask(seen).to_event(1), obs=torch.where(seen, x, 0.0))


class Driven(Model):
    """A hidden Markov model whose transitions follow an input of each sequence."""

    dims = {"weight": ("state", "next_state"), "mu": ("state", "feature")}

    def model(self, x, *, u=None, total=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2, 2), 3.0).to_event(2))
        emission = Gaussian(2, covariance="diagonal")
        theta = {"location": mu, "precision": torch.ones(2, 2)}
        moves = log_softmax(weight * u.mean() + 2 * torch.eye(2), -1)
        with pyro.plate("sequence", total or len(x), subsample_size=len(x)):
            states = HiddenMarkov(torch.zeros(2), moves, emission, emission.family.statistic(theta), x.shape[:2])
            pyro.sample("x", states, obs=x)


def fit(program, *args, **options):
    return svi.fit(program, *args, **({"guide": "map", "random_seed": 1, "progressbar": False} | options))


def test_the_mode_is_that_of_the_density_in_the_sites_own_units():
    """Of Beta(3 + 4, 2 + 6): (7 - 1) / (15 - 2); on the logit scale it would be 7 / 15."""
    found = fit(coin, COIN)
    assert found.attrs["converged"]
    assert tuple(found.posterior.sites["share"].shape) == (1, 1)
    assert float(found.posterior.sites["share"]) == pytest.approx(6 / 13, abs=1e-8)


def test_it_is_where_pyros_autodelta_ends():
    torch.set_default_dtype(torch.float64)
    try:
        guide = AutoDelta(two_tops)
        own = svi.fit(two_tops, COIN + 4, guide=guide, random_seed=1, progressbar=False, draws=3)
    finally:
        torch.set_default_dtype(torch.float32)
    mu = own.posterior.sites["mu"][0, 0]
    found = fit(two_tops, COIN + 4, n_init=6)
    near = min(found.posterior.sites["mu"][0, 0], mu, key=lambda one: float((one - mu).abs()))
    torch.testing.assert_close(near, mu, atol=1e-3, rtol=0)
    assert "A point estimate" in own.diagnose(COIN + 4).verdict


@pytest.mark.parametrize("batch_size", [None, 7])
def test_minibatches_end_at_the_mode_of_all_rows(batch_size):
    """The gradient of the joint density in the sites' own units is zero there."""
    found = fit(Centre(), X, batch_size=batch_size)
    assert found.attrs["converged"]
    mu, noise = (found.posterior.sites[name][0, 0].clone().requires_grad_() for name in ("mu", "noise"))
    joint = dist.Normal(0.0, 1.0).log_prob(mu).sum() + dist.LogNormal(0.0, 1.0).log_prob(noise)
    seen = ~X.isnan()
    joint = joint + dist.Normal(mu.expand_as(X)[seen], noise).log_prob(X[seen]).sum()
    for slope in torch.autograd.grad(joint, [mu, noise]):
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-3, rtol=0)


def test_discrete_sites_are_summed_out():
    def mixture(y):
        mu = pyro.sample("mu", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0).to_event(1))
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    y = torch.tensor([-2.0, -1.5, 0.1, 1.0, 2.2, 3.0], dtype=torch.float64)
    mu = fit(mixture, y).posterior.sites["mu"][0, 0].clone().requires_grad_()
    rows = torch.tensor([0.3, 0.7]).double().log() + dist.Normal(mu, 1.0).log_prob(y[:, None])
    prior = dist.Normal(torch.tensor([-1.0, 1.0]).double(), 2.0).log_prob(mu)
    (slope,) = torch.autograd.grad(rows.logsumexp(-1).sum() + prior.sum(), mu)
    torch.testing.assert_close(slope, torch.zeros(2).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model", "x", "u"),
    [
        (GMM(components=2, features=2), X, None),
        (HMM(states=2, features=2), X.reshape(4, 15, 2), None),
        (LDS(latent=1, features=2), X.reshape(4, 15, 2), None),
        (Driven(), X.reshape(4, 15, 2), torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(4, 15, 1)),
    ],
)
def test_every_kind_of_model_answers_from_one_draw(model, x, u):
    found = fit(model, x, u=u)
    assert found.attrs["converged"]
    assert np.isfinite(found.log_likelihood(x, u=u)).all()
    assert np.isfinite(found.impute(x, draws=5, u=u, progressbar=False)).all()
    assert found.latents(x, u=u).sizes
    tree = found.to_arviz(x, u=u)
    assert dict(tree["posterior"].sizes)["draw"] == 1
    report = found.diagnose(x, u=u)
    assert not report.ok
    assert report.verdict.startswith("A point estimate, without uncertainty")


def test_several_starts_find_the_higher_of_two_tops():
    y = COIN + 4
    found = fit(two_tops, y, n_init=8)
    ends = found.attrs["restart_elbos"]
    assert len(ends) == 8
    assert max(ends) - min(ends) == pytest.approx(4 * 0.3 * float(y.mean()) ** 0.5 / 2, rel=0.1)
    assert float(found.posterior.sites["mu"]) < -2
    kept = found.history[found.history["kept"]]
    assert kept["init"].nunique() == 1
    assert kept["log_joint"].iloc[-1] == max(ends)
    assert "gap between the two best restarts" in set(found.diagnose(y).table["check"])


def test_starts_of_a_normal_guide_begin_in_the_same_frame():
    """A posterior with one top: every start ends at the same bound."""
    ends = fit(coin, COIN, guide="full_rank", n_init=3, draws=10).attrs["restart_elbos"]
    assert max(ends) - min(ends) < 1e-6


def test_killed_restarts_go_on_bit_for_bit(tmp_path, monkeypatch):
    whole = fit(Centre(), X, batch_size=20, n_init=3)
    made, steps = climbing.Climb.step, []

    def dies(self):
        steps.append(1)
        if len(steps) == len(whole.history) // 2:
            raise RuntimeError
        made(self)

    with monkeypatch.context() as patched:
        patched.setattr(climbing.Climb, "step", dies)
        with pytest.raises(RuntimeError):
            fit(Centre(), X, batch_size=20, n_init=3, checkpoint=tmp_path, checkpoint_every=2)
    resumed = fit(Centre(), X, batch_size=20, n_init=3, checkpoint=tmp_path, checkpoint_every=2)
    assert resumed.history.equals(whole.history)
    assert resumed.posterior.sites["mu"].equal(whole.posterior.sites["mu"])
    assert resumed.attrs["restart_elbos"] == whole.attrs["restart_elbos"]


def test_a_density_without_a_maximum_is_said(caplog):
    def schools(y):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("row", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 10.0), obs=y)

    with caplog.at_level(logging.WARNING):
        found = fit(schools, COIN, max_steps=200)
    assert found.attrs["converged"] is False
    assert "it still rises, and site 'tau' is far out" in caplog.text
    assert found.diagnose(COIN).verdict.startswith("A point estimate, without uncertainty. Not to be trusted as it is")


def test_starts_that_cannot_be_made_are_refused():
    class Flat(dist.ImproperUniform):
        def __init__(self):
            super().__init__(dist.constraints.real, (), ())

    def program(y):
        mu = pyro.sample("mu", Flat())
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(DataError, match="n_init above 1 is for a guide by name over fixed draws, got 2"):
        fit(coin, COIN, n_init=2, lr=0.01)
    with pytest.raises(DataError, match="n_init starts from the prior, but that of site 'mu' cannot be drawn from"):
        fit(program, COIN, n_init=2)
    with pytest.raises(DataError, match="svi: n_init must be"):
        fit(coin, COIN, n_init=0)
