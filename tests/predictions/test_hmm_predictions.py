"""Predictions of a hidden Markov model for many draws at once, against the formulas for one."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import binom

from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.bernoulli import Bernoulli
from ppgen.emissions.categorical import Categorical
from ppgen.emissions.emission import Emission
from ppgen.emissions.gaussian import Gaussian
from ppgen.emissions.poisson import Poisson
from ppgen.errors import FitError
from ppgen.expecting import observed_given
from ppgen.messages import discrete_chain
from ppgen.models.hmm import HMM
from ppgen.predictions import predictive, steps
from ppgen.predictions.predictive import at, gather

MANY = 3000
FAR = 5.2  # standard errors that a mean may be off: false-alarm rate 2e-7 each, 1e-4 for all of this file


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


INITIAL, TRANSITION = doubles([0.6, 0.4]), doubles([[0.8, 0.2], [0.3, 0.7]])
LOCATION = doubles([[-1.0, 0.5], [1.0, 2.0]])
FACTOR = doubles([[[1.0, 0.0], [0.7, 1.2]], [[0.8, 0.0], [-0.5, 1.0]]])
RATES = doubles([[1.0, 4.0], [3.0, 0.5]])
CHANCES = doubles([[0.2, 0.6], [0.7, 0.3]])
SYMBOLS = doubles([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], [[0.2, 0.2, 0.6], [0.4, 0.5, 0.1]]])
STEPS = doubles([[[0.9, 0.0, 0.3], [0.1, 0.8, 0.0]], [[0.5, 0.2, -0.5], [0.0, 0.9, 0.2]]])


class Kind(NamedTuple):
    """An emission, its parameters, and the mean of an observation in each state."""

    emission: Emission
    theta: dict[str, torch.Tensor]
    mean: torch.Tensor | None


KINDS = {
    "gaussian": Kind(Gaussian(2), {"location": LOCATION, "precision_cholesky": FACTOR}, LOCATION),
    "diagonal": Kind(Gaussian(2, covariance="diagonal"), {"location": LOCATION, "precision": RATES}, LOCATION),
    "categorical": Kind(
        Categorical(3, features=2), {"probability": SYMBOLS}, SYMBOLS @ torch.arange(3, dtype=torch.float64)
    ),
    "poisson": Kind(Poisson(2), {"rate": RATES}, RATES),
    "bernoulli": Kind(Bernoulli(2), {"probability": CHANCES}, CHANCES),
    "autoregressive": Kind(Autoregressive(2), {"coefficients": STEPS, "precision_cholesky": FACTOR}, None),
}
closed = pytest.mark.parametrize("kind", [name for name in KINDS if name != "autoregressive"])
every = pytest.mark.parametrize("kind", KINDS)


def given(kind, gaps=True):
    emission, theta, mean = KINDS[kind]
    model = HMM(2, emission=emission)
    theta = {"initial": INITIAL, "transition": TRANSITION, **theta}
    x = predictive.replicate(model, theta, torch.zeros(3, 8, 2).double())
    if gaps:
        x[0, 3], x[1, 2, 0], x[1, 4, 1] = torch.nan, torch.nan, torch.nan
        x[2, 5:] = torch.nan
    return model, theta, x, mean


def repeated(theta, count=MANY):
    return {site: value.expand(count, *value.shape) for site, value in theta.items()}


def near(draws, mean):
    """Means over draws lie within the standard errors stated above."""
    assert ((draws.mean(0) - mean).abs() <= FAR * draws.std(0) / len(draws) ** 0.5 + 1e-12).all()


def states(model, theta, x):
    """Posterior of the states of each step."""
    s = {name: factor.family.statistic(theta) for name, factor in model.natural_prior().items()}
    return observed_given(model, s, x, None)["x"].distribution.latents(x).marginals["z"]


@every
@pytest.mark.parametrize("gaps", [True, False], ids=["gaps", "whole"])
def test_densities_and_latents_are_those_of_each_draw(kind, gaps):
    model, _, x, _ = given(kind, gaps)
    draws = predictive.priors(model, x, 6)
    for function in (predictive.log_likelihood, predictive.log_joint):
        found = gather(lambda theta, f=function: f(model, theta, x), draws)
        expected = torch.stack([function(model, at(draws, index), x) for index in range(6)])
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    averaged = torch.stack([states(model, at(draws, index), x) for index in range(6)]).mean(0)
    found = predictive.latents(model, draws, x).values
    torch.testing.assert_close(found["z"], averaged, rtol=1e-10, atol=1e-10, equal_nan=True)
    inside = predictive.exists(model, x)[..., 0]
    assert found["z_mode"].equal(torch.where(inside, averaged.argmax(-1), -1))


@every
def test_drawn_states_have_the_frequencies_of_their_posterior(kind):
    """Binomial tails above 1e-7: false-alarm rate 1e-5 in all."""
    gaps = kind != "autoregressive"
    model, theta, x, _ = given(kind, gaps)
    drawn = predictive.latents(model, repeated(theta), x, MANY).draws["z_draw"]
    assert not gaps or (drawn[:, 2, 5:] == -1).all()
    counts, chance = (drawn == 1).sum(0), states(model, theta, x)[..., 1].nan_to_num().clamp(0, 1)
    tails = binom.cdf(counts, MANY, chance), binom.sf(counts - 1, MANY, chance)
    assert np.minimum(*tails).min() > 1e-7


@closed
def test_replicated_data_runs_through_fresh_states(kind):
    model, theta, x, mean = given(kind)
    found = gather(lambda one: predictive.replicate(model, one, x), repeated(theta))
    assert found[:, 2, 5:].isnan().all()
    near(found[:, :, 0], (INITIAL @ mean).expand(3, 2))
    near(found[:, :2, 5], (INITIAL @ torch.linalg.matrix_power(TRANSITION, 5) @ mean).expand(2, 2))


@closed
def test_a_missing_step_is_drawn_given_all_others(kind):
    model, theta, x, mean = given(kind)
    found = gather(lambda one: predictive.impute(model, one, x), repeated(theta))
    seen = ~torch.isnan(x)
    assert found[:, seen].equal(x[seen].expand(MANY, -1))
    near(found[:, 0, 3], states(model, theta, x)[0, 3] @ mean)


def test_replicates_and_gaps_have_the_covariance_of_their_state():
    """Of both features, and of one given the other."""
    emission, theta, mean = KINDS["gaussian"]
    s, precision = emission.family.statistic(theta), FACTOR @ FACTOR.mT
    for k in (0, 1):
        z = torch.full((MANY, 1), k)
        centred = emission.sample(s, z)[:, 0] - mean[k]
        near(centred[:, :, None] * centred[:, None, :], torch.linalg.inv(precision[k]))
        x = torch.cat([torch.full((MANY, 1, 1), torch.nan), torch.zeros(MANY, 1, 1)], -1).double()
        gap = emission.fill(x, s, z)[:, 0, 0]
        conditional = mean[k, 0] + precision[k, 0, 1] / precision[k, 0, 0] * mean[k, 1]
        near((gap - conditional) ** 2, 1 / precision[k, 0, 0])


def test_a_missing_feature_is_drawn_given_the_others_of_its_step():
    """Conditional means of a bivariate normal in each state, one place for each feature."""
    model, theta, x, _ = given("gaussian")
    found = gather(lambda one: predictive.impute(model, one, x), repeated(theta))
    posterior, precision = states(model, theta, x), FACTOR @ FACTOR.mT
    for step, lost in ((2, 0), (4, 1)):
        other = 1 - lost
        slope = -precision[:, lost, other] / precision[:, lost, lost]
        conditional = LOCATION[:, lost] + slope * (x[1, step, other] - LOCATION[:, other])
        near(found[:, 1, step, lost], posterior[1, step] @ conditional)


@closed
def test_a_forecast_goes_on_from_the_last_observation(kind):
    model, theta, x, mean = given(kind)
    found = gather(lambda one: predictive.forecast(model, one, x, 3), repeated(theta))
    posterior = states(model, theta, x)
    last = torch.stack([posterior[0, 7], posterior[1, 7], posterior[2, 4]])
    for ahead in range(3):
        near(found[:, :, ahead], last @ torch.linalg.matrix_power(TRANSITION, ahead + 1) @ mean)


def test_an_autoregression_goes_on_from_its_last_frame():
    model, theta, x, _ = given("autoregressive", gaps=False)
    x[2, 5:] = torch.nan
    found = gather(lambda one: predictive.forecast(model, one, x, 2), repeated(theta))
    posterior = states(model, theta, x)
    for n, end in ((0, 7), (1, 7), (2, 4)):
        frame = torch.cat([x[n, end], x.new_ones(1)])
        near(found[:, n, 0], posterior[n, end] @ TRANSITION @ (STEPS @ frame))
    replicated = gather(lambda one: predictive.replicate(model, one, x), repeated(theta))
    near(replicated[:, :, 0], torch.zeros(3, 2).double())
    near(replicated[:, :, 0] ** 2, torch.full((3, 2), 9.0).double())


def test_gaps_of_an_autoregression_are_filled_anew_in_every_draw():
    model, theta, x, _ = given("autoregressive")
    found = gather(lambda one: predictive.impute(model, one, x), repeated(theta, 4))
    seen = ~torch.isnan(x)
    assert found[:, seen].equal(x[seen].expand(4, -1))
    assert found[:, 0, 3].isfinite().all()
    assert len(found[:, 0, 3].unique(dim=0)) == 4


def test_priors_draw_probabilities_that_sum_to_one_and_differ():
    model, _, x, _ = given("gaussian")
    draws = predictive.priors(model, x, 2000)
    assert set(draws) == set(model.dims)
    assert (draws["transition"].sum(-1) - 1).abs().max() < 1e-12
    near(draws["transition"], torch.full((2, 2), 0.5).double())
    near(draws["initial"], torch.full((2,), 0.5).double())
    assert len(draws["transition"].unique(dim=0)) == 2000


def test_the_averaged_posterior_of_states_is_that_of_the_chain():
    """Against message passing written out: potentials of a Gaussian, a chain for each draw."""
    model, theta, x, _ = given("gaussian", gaps=False)
    draws = {site: value + 0.01 * torch.rand(3, *value.shape).double() for site, value in theta.items()}
    draws["precision_cholesky"] = draws["precision_cholesky"].tril()
    factor = draws["precision_cholesky"]
    precision = (factor @ factor.mT)[:, None, None]
    normals = torch.distributions.MultivariateNormal(draws["location"][:, None, None], precision_matrix=precision)
    potential = normals.log_prob(x[None, :, :, None])
    chain = discrete_chain(draws["initial"].log()[:, None], draws["transition"].log()[:, None], potential)
    found = predictive.latents(model, draws, x).values["z"]
    torch.testing.assert_close(found, chain.marginals.mean(0), rtol=1e-9, atol=1e-9)


@every
def test_densities_of_steps_are_differences_of_those_of_beginnings(kind):
    model, theta, x, _ = given(kind, gaps=kind != "autoregressive")
    x[1, 6:] = torch.nan
    found = steps.log_steps(model, theta, x)
    begun = [predictive.log_likelihood(model, theta, x[:, :t]) for t in range(1, 9)]
    torch.testing.assert_close(found.cumsum(-1), torch.stack(begun, -1), rtol=1e-10, atol=1e-10)
    assert (found[1, 6:] == 0).all()
    if kind != "autoregressive":
        assert float(found[0, 3].abs()) < 1e-12
    draws = predictive.priors(model, x, 5)
    each = torch.stack([steps.log_steps(model, at(draws, index), x) for index in range(5)])
    torch.testing.assert_close(gather(lambda one: steps.log_steps(model, one, x), draws), each)
    whole = gather(lambda one: predictive.log_likelihood(model, one, x), draws).logsumexp(0) - np.log(5)
    torch.testing.assert_close(steps.averaged(each).sum(-1), whole, rtol=1e-12, atol=1e-10)


def test_the_steps_seen_so_far_weigh_the_draws():
    """The first step of two equal rows scores all draws alike; the next those that the first made likely."""
    log_steps = torch.log(doubles([[[0.9, 0.9]], [[0.1, 0.1]]]))
    expected = doubles([[0.5, 0.9 * 0.9 + 0.1 * 0.1]]).log()
    torch.testing.assert_close(steps.averaged(log_steps), expected)


def test_a_step_that_no_draw_allows_leaves_nothing_to_say_of_later_ones():
    never = doubles([[[-1.0, -torch.inf, 0.0, 0.0]], [[-1.0, -torch.inf, 0.0, 0.0]]])
    assert steps.averaged(never).tolist() == [[-1.0, -np.inf, 0.0, 0.0]]


def test_a_bound_is_not_called_the_density_of_a_step():
    model, theta, x, _ = given("autoregressive", gaps=True)
    with pytest.raises(FitError, match="needs whole frames of Autoregressive, got gaps, for which only a bound"):
        steps.log_steps(model, theta, x)
