"""Input-output hidden Markov models: every path, the GLM-HMM recovered, peers, inputs ahead, refusals."""

import itertools

import numpy as np
import pytest
import torch
from dense import normal
from pyro import poutine
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression

from ppgen.errors import DataError
from ppgen.inference import mcmc, svi
from ppgen.models import IOHMM
from ppgen.predictions import predictive

K, T, U, D = 3, 4, 2, 2
LIKELIHOODS = {
    "normal": ({}, normal),
    "bernoulli": ({}, lambda *s: torch.randint(2, s).double()),
    "poisson": ({}, lambda *s: torch.randint(5, s).double()),
    "categorical": ({"categories": 3}, lambda *s: torch.randint(3, s).double()),
}


def scored(likelihood, theta, k, x, u):
    """Log density of what is seen of one step in state k, entry by entry."""
    total = torch.zeros(()).double()
    for d in range(D):
        if x[d].isnan():
            continue
        eta = theta["weights"][k, d] @ torch.cat([u, torch.ones(1).double()])
        if likelihood == "normal":
            one = torch.distributions.Normal(eta, theta["noise"][k, d])
        elif likelihood == "bernoulli":
            one = torch.distributions.Bernoulli(logits=eta)
        elif likelihood == "poisson":
            one = torch.distributions.Poisson(eta.exp())
        else:
            one = torch.distributions.Categorical(logits=eta)
        total = total + one.log_prob(x[d])
    return total


def enumerated(model, theta, x, u):
    """Log joint density of a row and each path, and the path."""
    for z in itertools.product(range(K), repeat=len(x)):
        total = theta["initial"][z[0]].log() + scored(model.emission.likelihood, theta, z[0], x[0], u[0])
        for t in range(1, len(x)):
            logits = theta["transition"][z[t - 1]].log()
            if model.transition_inputs:
                logits = logits + theta["transition_weights"] @ u[t, list(model.transition_inputs)]
            total = total + logits.log_softmax(-1)[z[t]] + scored(model.emission.likelihood, theta, z[t], x[t], u[t])
        yield total, z


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("driven", [True, False, [1]])
def test_density_and_probabilities_are_those_of_all_paths(likelihood, driven):
    torch.manual_seed(0)
    options, fill = LIKELIHOODS[likelihood]
    model = IOHMM(K, U, D, emission=likelihood, transition_inputs=driven, **options)
    x, u = fill(3, T, D), normal(3, T, U)
    x[0, 1, 0], x[1, 2], x[2] = torch.nan, torch.nan, torch.nan
    theta = predictive.prior(model, x, u=u)
    found = predictive.log_likelihood(model, theta, x, u=u)
    trace = poutine.trace(poutine.condition(model.model, data=theta)).get_trace(x, u=u)
    z = trace.nodes["x"]["fn"].latents(x).marginals["z"]
    for n in range(2):
        values, paths = zip(*enumerated(model, theta, x[n], u[n]), strict=True)
        assert abs(found[n] - torch.stack(values).logsumexp(0)) < 1e-10
        seen = torch.nn.functional.one_hot(torch.tensor(paths), K).double()
        exact = (torch.stack(values).softmax(0)[:, None, None] * seen).sum(0)
        torch.testing.assert_close(z[n], exact, rtol=0, atol=1e-10)
    assert found[2] == 0.0


@pytest.mark.parametrize("driven", [True, False])
def test_the_gradient_is_that_of_the_sum_over_all_paths(driven):
    torch.manual_seed(2)
    model, x, u = IOHMM(K, U, D, transition_inputs=driven), normal(2, T, D), normal(2, T, U)
    x[0, 1, 0], x[0, 2], x[1, 3] = torch.nan, torch.nan, torch.nan  # an entry, a step, and a shorter sequence
    theta = {site: value.requires_grad_() for site, value in predictive.prior(model, x, u=u).items()}
    rows = [(x[0], u[0]), (x[1, :3], u[1, :3])]
    exact = sum(torch.stack([one for one, _ in enumerated(model, theta, *row)]).logsumexp(0) for row in rows)
    trace = poutine.trace(poutine.condition(model.model, data=theta)).get_trace(x, u=u)
    found = trace.nodes["x"]["fn"].log_prob(x).sum()
    assert abs(found - exact) < 1e-10
    for site in theta:
        pair = (torch.autograd.grad(value, theta[site], retain_graph=True)[0] for value in (found, exact))
        torch.testing.assert_close(*pair, rtol=0, atol=1e-10, msg=site)


def test_what_drives_the_transitions_is_recovered():
    """Nine weights, six pulls and three noises, with posterior standard deviations of at most .05, .17 and .022 where
    the optimum is the right one: one of them is further away than here once in some thousand simulations.
    """
    rng = np.random.default_rng(0)
    pull = np.array([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])  # sums to zero: what the prior chooses
    lines = np.array([[1.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, -1.0]])
    u, z = rng.normal(size=(6, 120, 2)), np.zeros((6, 120), int)
    for n, t in itertools.product(range(6), range(1, 120)):
        weight = (0.05 + 0.85 * (np.arange(3) == z[n, t - 1])) * np.exp(pull @ u[n, t])
        z[n, t] = rng.choice(3, p=weight / weight.sum())
    x = np.einsum("ntu,ntu->nt", lines[z], np.concatenate([u, np.ones((6, 120, 1))], -1))[..., None]
    x = x + 0.4 * rng.normal(size=x.shape)
    found = svi.fit(IOHMM(3, 2, 1), x, u=u, guide="map", n_init=3, random_seed=0, progressbar=False)
    share, order = matched(found.latents(x, u=u)["z_mode"].values, z)
    theta = found.to_arviz(draws=1).posterior
    assert share > 0.9
    assert abs(theta["weights"].values[0, 0][order, 0] - lines).max() < 0.2
    assert abs(theta["transition_weights"].values[0, 0][order] - pull).max() < 0.8
    assert abs(theta["noise"].values - 0.4).max() < 0.1


def choices(seed, sessions=8, trials=150):
    """Choices of an animal that is engaged, or biased to one side, or to the other; stimulus and the last choice."""
    rng = np.random.default_rng(seed)
    W = np.array([[5.0, -0.3, 0.0], [2.0, 1.0, 1.5], [1.5, -1.0, -1.5]])
    u = np.stack([rng.normal(size=(sessions, trials)), rng.choice([-1.0, 1.0], size=(sessions, trials))], -1)
    z, x = np.zeros((sessions, trials), int), np.zeros((sessions, trials, 1))
    for n, t in itertools.product(range(sessions), range(trials)):
        stays = t > 0 and rng.random() < 0.96
        z[n, t] = z[n, t - 1] if stays else rng.integers(3)
        x[n, t, 0] = rng.random() < 1 / (1 + np.exp(-(W[z[n, t]] @ [*u[n, t], 1.0])))
    return x, u, z, W


def matched(found, z):
    counts = np.zeros((3, 3))
    np.add.at(counts, (found.ravel(), z.ravel()), 1)
    order = linear_sum_assignment(-counts.T)[1]
    return counts[order, range(3)].sum() / z.size, order


@pytest.fixture(scope="module")
def fitted():
    x, u, z, W = choices(1)
    x[2, 20:30] = np.nan
    model = IOHMM(3, 2, 1, emission="bernoulli", transition_inputs=False)
    return svi.fit(model, x, u=u, guide="map", n_init=5, random_seed=0, progressbar=False), x, u, z, W


def test_the_states_of_a_glm_hmm_are_recovered_with_their_weights(fitted):
    found, x, u, z, W = fitted
    latents = found.latents(x, u=u)["z"].values
    share, order = matched(latents.argmax(-1), z)
    assert share > 0.85
    weights = found.to_arviz(draws=1).posterior["weights"].values[0, 0][order, 0]
    assert abs(weights[1:] - W[1:]).max() < 0.8
    assert weights[0, 0] > 3
    assert np.allclose(latents.sum(-1), 1)


def test_a_forecast_takes_the_inputs_of_the_trials_ahead(fitted):
    found, x, u, _, _ = fitted
    ahead = np.concatenate([u, np.full((len(u), 20, 2), [4.0, 0.0])], 1)
    right = found.forecast(x, 20, u=ahead, draws=50, random_seed=0)
    assert right.shape == (50, len(x), 20, 1)
    ahead[:, -20:, 0] = -4.0
    left = found.forecast(x, 20, u=ahead, draws=50, random_seed=0)
    assert float(right.mean()) > 0.85 > 0.15 > float(left.mean())
    with pytest.raises(DataError, match="170"):
        found.forecast(x, 20, u=u)


def test_one_state_is_logistic_regression():
    x, u, _, _ = choices(2, 2, 200)
    found = svi.fit(IOHMM(1, 2, 1, emission="bernoulli"), x, u=u, guide="map", random_seed=0, progressbar=False)
    weights = found.to_arviz(draws=1).posterior["weights"].values[0, 0, 0, 0]
    design = np.concatenate([u, np.ones_like(u[..., :1])], -1).reshape(-1, 3)
    peer = LogisticRegression(C=4.0, fit_intercept=False, tol=1e-10).fit(design, x.ravel())
    np.testing.assert_allclose(weights, peer.coef_[0], atol=2e-3)


def test_inputs_keep_their_names_and_those_of_transitions_are_their_own():
    xr = pytest.importorskip("xarray")
    x, u, _, _ = choices(3, 3, 30)
    named = xr.DataArray(u, dims=("sequence", "time", "input"), coords={"input": ["stimulus", "last"]})
    model = IOHMM(2, 2, 1, emission="bernoulli", transition_inputs=[1], emission_inputs=[0])
    found = svi.fit(model, x, u=named, guide="map", random_seed=0, progressbar=False)
    tree = found.to_arviz(draws=1).posterior
    gap = named.copy()
    gap[1, 4, 0] = np.nan
    with pytest.raises(DataError, match=r"nan at \(1, 4, 0\), of input 'stimulus'; .* make that input a column of x"):
        svi.fit(model, x, u=gap)
    assert list(tree["regressor"].values) == ["stimulus", "one"]
    assert list(tree["transition_input"].values) == ["last"]
    turned = found.log_likelihood(x, u=named[..., ::-1], random_seed=0)
    np.testing.assert_allclose(turned.values, found.log_likelihood(x, u=named, random_seed=0).values)


@pytest.mark.slow
def test_a_sampler_is_as_sure_as_it_is_right():
    """Each of 9 weights lies within four posterior standard deviations of its true value."""
    x, u, _, W = choices(4)
    model = IOHMM(3, 2, 1, emission="bernoulli", transition_inputs=False)
    found = mcmc.fit(model, x, u=u, chains=8, draws=200, tune=300, random_seed=0, progressbar=False)
    share, order = matched(found.latents(x, u=u)["z"].values.argmax(-1), choices(4)[2])
    draws = found.to_arviz(draws=400).posterior["weights"]
    mean, sd = (getattr(draws, kind)(("chain", "draw")).values[order, 0] for kind in ("mean", "std"))
    assert share > 0.8
    assert (abs(mean - W) < 4 * sd).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: IOHMM(0, 2, 1), "states must be a whole number of at least 1, got 0"),
        (lambda: IOHMM(2, 0, 1), "inputs must be a whole number of at least 1, got 0; without any, take HMM"),
        (lambda: IOHMM(2, 2, 1, transition_inputs=[False, True]), "True, False or different numbers below 2"),
        (lambda: IOHMM(2, 2, 1, emission="beta"), "emission must be one of normal, bernoulli"),
        (lambda: IOHMM(2, 2, 1, emission="categorical"), "categories must be given"),
        (lambda: IOHMM(2, 2, 1, transition_inputs=[2]), "transition_inputs must be True, False or different numbers"),
        (lambda: IOHMM(2, 2, 1, stickiness=-1.0), "concentration must be positive and stickiness zero or more"),
        (lambda: fit(np.full((1, 5, 1), 2.0), np.zeros((1, 5, 2))), "x must be zeros and ones or NaN, got 2.0 at"),
        (lambda: fit(np.zeros((1, 5, 1)), np.zeros((1, 5, 3))), "u must have 2 inputs"),
        (lambda: fit(np.zeros((1, 5, 1)), np.full((1, 5, 2), np.nan)), "u"),
        (lambda: fit(np.zeros((1, 5, 1)), None), "u"),
    ],
)
def test_what_cannot_be_is_said(make, words):
    with pytest.raises(DataError, match=words):
        make()


def fit(x, u):
    return svi.fit(IOHMM(2, 2, 1, emission="bernoulli"), x, u=u, max_steps=2, random_seed=0, progressbar=False)
