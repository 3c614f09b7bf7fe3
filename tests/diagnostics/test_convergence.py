import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy.signal import lfilter

from ppgen.diagnostics.convergence import convergence, effective_size, nested_rhat, rhat, tail_shape

RATE = 1e-5


@pytest.fixture
def random():
    return np.random.default_rng(0)


def autoregression(random, shape, rho):
    """Gaussian chains of unit variance, stationary, with an autocorrelation time of (1 + rho) / (1 - rho)."""
    noise = random.normal(size=shape)
    noise[..., 0] /= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise, axis=-1) * np.sqrt(1 - rho**2)


@pytest.mark.parametrize(
    ("chains", "draws", "rho"), [(4, 1000, 0.5), (4, 1001, 0.9), (1, 500, 0.3), (64, 100, 0.5), (8, 300, -0.4)]
)
def test_numbers_are_those_of_arviz(random, chains, draws, rho):
    x = autoregression(random, (4, chains, draws), rho)
    x[1] = np.exp(x[1])
    x[2, 0] += 1
    found = convergence(x, RATE)
    for name, method in (("bulk", "bulk"), ("mean", "mean"), ("tail", "tail")):
        prob = {"prob": (0.05, 0.95)} if method == "tail" else {}
        expected = [array_stats.ess(entry, method=method, **prob) for entry in x]
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-10)
    shapes = [array_stats.pareto_khat(entry, r_eff=1) for entry in x]
    np.testing.assert_allclose(found.shape, shapes, rtol=1e-8)
    if 1 < chains < 16:
        np.testing.assert_allclose(found.rhat, [array_stats.rhat(entry) for entry in x], rtol=1e-12)
    if chains == 1:
        assert np.isnan(found.rhat).all()


def test_nested_rhat_is_that_of_arviz(random):
    x = random.normal(size=(8, 50)) + np.repeat([0, 0.3], 4)[:, None]
    expected = array_stats.rhat_nested(x, superchain_ids=np.repeat([0, 1], 4), method="identity")
    np.testing.assert_allclose(nested_rhat(x.reshape(1, 2, 4, 50)), expected, rtol=1e-12)


def test_nested_rhat_of_single_draws_at_stationarity_is_known(random):
    """Its square is 1 + 1 / M on average, whatever the number of superchains; four standard errors."""
    for M in (4, 64):
        square = nested_rhat(random.normal(size=(2000, 8, M, 1))) ** 2
        assert square.mean() == pytest.approx(1 + 1 / M, abs=4 * square.std() / 2000**0.5 + 0.3 / M**2)


def test_rhat_of_short_chains_is_that_of_their_length_and_nested_rhat_is_not(random):
    """Chains of 100 draws, autocorrelation time 3, all of them good: R-hat says 1.02, nested R-hat 1.002."""
    x = autoregression(random, (50, 64, 100), 0.5)
    halves = np.concatenate([x[..., :50], x[..., 50:]], 1)
    assert np.median(rhat(halves)) > 1.015
    assert np.median(convergence(x, RATE).rhat) < 1.004


def test_an_effective_size_is_that_of_the_process(random):
    """(1 - rho) / (1 + rho) of the draws; the mean over 100 entries within 5 %."""
    for rho in (-0.3, 0.0, 0.6):
        x = autoregression(random, (100, 8, 1000), rho)
        assert effective_size(x).mean() == pytest.approx(8000 * (1 - rho) / (1 + rho), rel=0.05)


@pytest.mark.parametrize("power", [0.3, 0.8, 1.2])
def test_a_tail_has_the_shape_it_was_drawn_with(random, power):
    """Powers of a Pareto tail; 0.1 is about four standard errors of the mean over 20 entries, with the prior's pull."""
    x = random.pareto(1 / power, size=(20, 40_000))
    assert tail_shape(x).mean() == pytest.approx(power, abs=0.1)
    np.testing.assert_allclose(tail_shape(-x), tail_shape(x), rtol=1e-9)


@pytest.mark.parametrize("chains", [4, 16, 64])
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_what_chance_allows_is_passed_as_often_as_it_says(random, chains, rho):
    """At a rate of 5 % per entry, 200 entries: 10 expected; more than 26 has probability 1e-5."""
    x = autoregression(random, (200, chains, 200), rho)
    found = convergence(x, 0.05)
    assert (found.rhat > found.noise).sum() <= 26
    assert (found.apart > 0).sum() <= 26


def test_a_lone_chain_among_many_is_found_and_named(random):
    x = random.normal(size=(2, 64, 100))
    x[0, 17] += 1
    x[1, 40] *= 3
    found = convergence(x, RATE)
    assert found.odd.tolist() == [17, 40]
    assert (found.apart > 0.8).all()


def test_nothing_is_known_of_too_few_draws_or_of_what_is_not_finite(random):
    x = random.normal(size=(1, 4, 100))
    for bad in (x[..., :3], np.where(x == x.max(), np.inf, x), np.where(x == x.max(), np.nan, x)):
        found = convergence(bad, RATE)
        assert all(np.isnan(value).all() for value in vars(found).values())
