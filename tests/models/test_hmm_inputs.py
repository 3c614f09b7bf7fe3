"""Hidden Markov models whose observations are regressions on inputs: enumeration, recovery, forecasts, refusals."""

import itertools

import numpy as np
import pytest
import torch
from dense import log_normal

from ppgen.emissions import DrivenGaussian, Gaussian
from ppgen.errors import DataError
from ppgen.inference import mcmc, vb
from ppgen.models import HMM
from ppgen.predictions import predictive

QUIET = {"random_seed": 0, "progressbar": False}


def driven(states, covariance):
    return HMM(states, emission=DrivenGaussian(2, 2, covariance=covariance), inputs=2)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_the_density_is_the_sum_over_paths(covariance):
    torch.manual_seed(0)
    model, x, u = driven(2, covariance), torch.randn(1, 4, 2).double(), torch.randn(1, 4, 2).double()
    theta = predictive.prior(model, x, u=u)
    x[0, 1, 0], x[0, 2] = torch.nan, torch.nan
    root, line = theta["precision_cholesky"], theta["coefficients"]
    if covariance == "diagonal":
        line, noise = line[:, :, 0], torch.diag_embed(root[..., 0, 0] ** -2)
    else:
        noise = torch.linalg.inv(root @ root.mT)
    total = []
    for z in itertools.product(range(2), repeat=4):
        value = theta["initial"][z[0]].log() + sum(theta["transition"][i, j].log() for i, j in itertools.pairwise(z))
        for t, k in enumerate(z):
            mean = line[k] @ torch.cat([u[0, t], torch.ones(1).double()])
            value = value + (0 if x[0, t].isnan().all() else log_normal(x[0, t], mean, noise[k]))
        total.append(value)
    found = predictive.log_likelihood(model, theta, x, u=u)
    torch.testing.assert_close(found[0], torch.stack(total).logsumexp(0), rtol=1e-10, atol=1e-10)


def test_without_effects_of_the_inputs_it_is_the_plain_model():
    torch.manual_seed(1)
    plain, x, u = HMM(2, emission=Gaussian(2)), torch.randn(2, 5, 2).double(), torch.randn(2, 5, 2).double()
    x[0, 2, 1] = torch.nan
    theta = predictive.prior(plain, x)
    lines = torch.cat([torch.zeros(2, 2, 2).double(), theta["location"][..., None]], -1)
    same = {**theta, "coefficients": lines}
    del same["location"]
    torch.testing.assert_close(
        predictive.log_likelihood(driven(2, "full"), same, x, u=u), predictive.log_likelihood(plain, theta, x)
    )


def simulated(seed, T=600):
    """Two states whose slopes differ in sign, each lasting twenty steps about."""
    rng = np.random.default_rng(seed)
    z = np.zeros(T, int)
    for t in range(1, T):
        z[t] = z[t - 1] if rng.random() < 0.95 else 1 - z[t - 1]
    u = rng.normal(size=(T, 1))
    lines = np.array([[[1.5, 0.5], [0.5, -0.5]], [[-1.5, 0.0], [0.5, 0.5]]])
    x = np.einsum("tdr,tr->td", lines[z], np.c_[u, np.ones(T)]) + 0.4 * rng.normal(size=(T, 2))
    return z, u[None], x[None], lines


@pytest.mark.parametrize("seed", range(3))
def test_slopes_and_states_come_back_with_gaps(seed):
    z, u, x, lines = simulated(seed)
    seen = np.where(np.random.default_rng(seed).random(x.shape) < 0.2, np.nan, x)
    fit = vb.fit(HMM(2, 2, inputs=1), seen, u=u, **QUIET)
    states = np.asarray(fit.latents(seen, u=u)["z_mode"])[0]
    order = [0, 1] if (states == z).mean() > 0.5 else [1, 0]
    assert max((states == z).mean(), (states != z).mean()) > 0.93
    found = fit.posterior.draws(200)["coefficients"].mean(0).numpy()[order]
    np.testing.assert_allclose(found, lines, atol=0.2)
    filled = np.asarray(fit.impute(seen, u=u, draws=50)).reshape(50, *x.shape).mean(0)
    assert np.sqrt(np.mean((filled - x)[np.isnan(seen)] ** 2)) < 0.75


def test_forecasts_follow_the_inputs_ahead():
    z, u, x, lines = simulated(0)
    fit = vb.fit(HMM(2, 2, inputs=1), x, u=u, **QUIET)
    steep = np.concatenate([u, np.full((1, 3, 1), 3.0)], 1)
    ahead = np.asarray(fit.forecast(x, 3, draws=200, u=steep)).reshape(200, 3, 2)
    assert abs(ahead[:, 0, 0].mean() - (lines[z[-1], 0] @ [3.0, 1.0])) < 1.0
    with pytest.raises(DataError, match="and the 3 ahead, 603, got 600"):
        fit.forecast(x, 3, draws=2, u=u)


def test_gibbs_sampling_agrees():
    _, u, x, _ = simulated(1, T=200)
    exact = vb.fit(HMM(2, 2, inputs=1), x, u=u, **QUIET).order("state", by="coefficients", feature=0, regressor="u0")
    drawn = mcmc.fit(HMM(2, 2, inputs=1), x, u=u, sampler="gibbs", tune=30, draws=60, chains=2, **QUIET)
    drawn = drawn.order("state", by="coefficients", feature=0, regressor="u0")
    one, other = (f.posterior.draws(120)["coefficients"].mean(0) for f in (exact, drawn))
    torch.testing.assert_close(one, other, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HMM(2, emission=Gaussian(2), inputs=1), "inputs must be those of a DrivenGaussian emission"),
        (lambda: DrivenGaussian(2, 0), "must be at least 1"),
        (lambda: DrivenGaussian(2, 1, noise=0.0), "must be positive"),
        (lambda: vb.fit(HMM(2, 2, inputs=1), np.zeros((1, 9, 2)), **QUIET), "u must have 1 inputs.*got none"),
        (lambda: vb.fit(HMM(2, 2), np.zeros((1, 9, 2)), u=np.zeros((1, 9, 1)), **QUIET), "takes no inputs u"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(DataError, match=words):
        make()
