"""Hidden semi-Markov models: exact against sums over all segmentations, and durations recovered from data."""

import itertools
import logging

import numpy as np
import pytest
import scipy.stats
import torch

import ppgen
from ppgen.durations import NegativeBinomialDurations, PoissonDurations
from ppgen.emissions import Autoregressive, Gaussian
from ppgen.errors import DataError
from ppgen.inference import mcmc, svi, vb
from ppgen.models import HMM
from ppgen.predictions import predictive

NB = NegativeBinomialDurations(3)
QUIET = {"random_seed": 1, "progressbar": False}


def duration_pmf(model, theta, k, most):
    """P(d) for d = 1 to ``most``, by scipy."""
    after = np.arange(most)
    if isinstance(model.durations, PoissonDurations):
        mass = scipy.stats.poisson.pmf(after, theta["duration_rate"][k].item())
        return np.where(after < model.durations.longest, mass, 0.0)
    p, weights = theta["duration_continuing"][k].item(), theta["duration_phases"][k].numpy()
    return sum(w * scipy.stats.nbinom.pmf(after, r, 1 - p) for r, w in enumerate(weights, start=1))


def path_probability(model, theta, z):
    """Probability of a path: its segments, the last of which goes on for as long as it may."""
    long = 2000
    jumps = theta["transition"].numpy() if "transition" in theta else np.eye(2)[::-1]
    total, runs = theta["initial"][z[0]].item(), [(k, len(list(run))) for k, run in itertools.groupby(z)]
    for i, (k, length) in enumerate(runs):
        pmf = duration_pmf(model, theta, k, long)
        last = i == len(runs) - 1
        total *= pmf[length - 1 :].sum() if last else pmf[length - 1] * jumps[k, runs[i + 1][0]]
    return total


def emitted(theta, x, z):
    """Density of the values that are there, along a path."""
    value = 1.0
    for row, k in zip(x, z, strict=True):
        for d, entry in enumerate(row):
            if not np.isnan(entry):
                sd = theta["precision"][k, d].item() ** -0.5
                value *= scipy.stats.norm.pdf(entry, theta["location"][k, d].item(), sd)
    return value


def enumerated(model, theta, x):
    """Evidence and probabilities of the states, by the sum over all paths."""
    weights = {
        z: path_probability(model, theta, z) * emitted(theta, x.numpy(), z)
        for z in itertools.product(range(model.states), repeat=len(x))
    }
    total = sum(weights.values())
    states = np.zeros((len(x), model.states))
    for z, weight in weights.items():
        states[range(len(x)), z] += weight / total
    return np.log(total), states


def diagonal(states, durations):
    return HMM(states, emission=Gaussian(2, covariance="diagonal"), durations=durations)


MODELS = {
    "negative binomial": lambda: diagonal(3, NB),
    "poisson": lambda: diagonal(3, PoissonDurations(4, expected=3.0)),
    "two states": lambda: diagonal(2, NB),
}
GAPS = {
    "none": [],
    "entries": [(1, 0), (3, 1)],
    "steps": [(2, slice(None)), (3, slice(None))],
    "first": [(0, slice(None))],
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gaps", GAPS)
def test_evidence_and_states_are_the_sums_over_all_segmentations(name, gaps):
    torch.manual_seed(3)
    model, x = MODELS[name](), torch.randn(1, 6, 2, dtype=torch.float64)
    for place in GAPS[gaps]:
        x[(0, *place)] = torch.nan
    theta = predictive.prior(model, x)
    value, states = enumerated(model, theta, x[0])
    np.testing.assert_allclose(predictive.log_likelihood(model, theta, x)[0], value, rtol=1e-10)
    found = predictive.data_distribution(model, theta, x).latents(x).marginals["z"][0]
    np.testing.assert_allclose(found, states, atol=1e-10)


def test_durations_are_those_of_their_distribution():
    """Means and tails in closed form against sums over scipy's probabilities."""
    torch.manual_seed(0)
    for name in ("negative binomial", "poisson"):
        model = MODELS[name]()
        theta = predictive.prior(model, torch.zeros(1, 3, 2).double())
        pmf = duration_pmf(diagonal(3, PoissonDurations(2000)) if name == "poisson" else model, theta, 1, 2000)
        np.testing.assert_allclose(model.durations.mean(theta)[1], pmf @ np.arange(1, 2001), rtol=1e-9)
        np.testing.assert_allclose(model.durations.tail(theta, 4)[1], 1 - pmf[:4].sum(), rtol=1e-7)


def test_gaps_of_an_autoregression_are_summed_over_segmentations():
    """One missing frame: each path's Gaussian integral, weighed by its segments; the first frame knows no state."""
    torch.manual_seed(2)
    model = HMM(2, emission=Autoregressive(1, 1), durations=PoissonDurations(3, expected=2.0))
    x = torch.randn(1, 5, 1, dtype=torch.float64)
    theta = predictive.prior(model, x)
    x[0, 2] = torch.nan
    row, states, total = x[0, :, 0].numpy(), np.zeros((5, 2)), 0.0
    for z in itertools.product(range(2), repeat=5):
        a, b = theta["coefficients"][list(z), 0].T.numpy()
        sd = theta["precision_cholesky"][list(z), 0, 0].numpy() ** -1.0
        density = [scipy.stats.norm.pdf(row[t], a[t] * row[t - 1] + b[t], sd[t]) for t in (1, 4)]
        hidden, spread = a[2] * row[1] + b[2], np.hypot(a[3] * sd[2], sd[3])
        weight = path_probability(model, theta, z) * np.prod(density)
        weight *= scipy.stats.norm.pdf(row[3], a[3] * hidden + b[3], spread)
        states[range(5), z] += weight
        total += weight
    found = predictive.data_distribution(model, theta, x).latents(x).marginals["z"][0]
    np.testing.assert_allclose(found, states / total, atol=1e-10)


def simulated(seed, durations, N=4, T=400):
    """Sequences whose three states last 4, 12 and 20 steps about, with means two deviations apart."""
    rng = np.random.default_rng(seed)
    z = np.zeros((N, T), int)
    for row in z:
        t, k = 0, int(rng.integers(3))
        while t < T:
            d = 1 + durations(rng, (3, 11, 19)[k])
            row[t : t + d] = k
            t, k = t + d, (k + rng.integers(1, 3)) % 3
    return z, 2.0 * np.eye(3)[z] + rng.normal(size=(N, T, 3))


def binomial(rng, mean):
    return rng.negative_binomial(4, 4 / (4 + mean))


def poisson(rng, mean):
    return rng.poisson(mean)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "draw"), [("negative_binomial", binomial), ("poisson", poisson)])
def test_durations_come_back_and_predict_better_than_a_markov_chain(seed, kind, draw):
    (_, x), (_, new) = simulated(seed, draw), simulated(100 + seed, draw)
    fit = vb.fit(HMM(3, 3, durations=kind), x, **QUIET)
    plain = vb.fit(HMM(3, 3), x, **QUIET)
    means = np.sort(fit.model.durations.mean(fit.posterior.draws(200)).mean(0))
    np.testing.assert_allclose(means, [4, 12, 20], rtol=0.25)
    assert fit.log_likelihood(new, random_seed=2).mean() > plain.log_likelihood(new, random_seed=2).mean()


def test_a_forecast_goes_on_with_the_duration_that_has_begun():
    """A state that lasts eleven steps for sure, seen for four: seven more follow, and then the other."""
    x = torch.full((1, 4, 1), 5.0, dtype=torch.float64)
    model = HMM(2, emission=Gaussian(1, covariance="diagonal"), durations=PoissonDurations(12))
    theta = {
        "initial": torch.tensor([1.0, 1e-12]).double(),
        "location": torch.tensor([[5.0], [-5.0]]).double(),
        "precision": torch.full((2, 1), 100.0).double(),
        "duration_rate": torch.tensor([1e3, 1e3]).double(),  # of which only the longest is left: twelve steps
    }
    ahead = predictive.forecast(model, theta, x, 16)[0, :, 0]
    changes = (ahead.sign().diff() != 0).nonzero()[:, 0]
    assert 6 <= changes[0] <= 8
    assert 0 <= 15 - changes[0] <= 12


@pytest.mark.slow
def test_every_engine_finds_the_same_durations():
    _, x = simulated(5, binomial, N=2, T=150)
    model = HMM(3, emission=Gaussian(3, covariance="diagonal"), durations=NegativeBinomialDurations(2))
    exact = vb.fit(model, x, **QUIET)
    drawn = mcmc.fit(model, x, tune=150, draws=150, **QUIET)
    guided = svi.fit(HMM(**model.config), x, **QUIET)
    means = [np.sort(model.durations.mean(f.posterior.draws(400)), -1).mean(0) for f in (exact, drawn, guided)]
    np.testing.assert_allclose(means[1], means[0], rtol=0.15)
    np.testing.assert_allclose(means[2], means[0], rtol=0.15)


def test_a_longest_duration_that_cuts_is_told(caplog):
    _, x = simulated(0, poisson, N=1, T=300)
    with caplog.at_level(logging.WARNING):
        vb.fit(HMM(3, 3, durations=PoissonDurations(12)), x, **QUIET)
    assert "would last more than 12 steps" in caplog.text
    assert "durations=PoissonDurations(24)" in caplog.text


def test_durations_longer_than_every_sequence_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        vb.fit(HMM(2, 1, durations="poisson"), np.random.default_rng(0).normal(size=(3, 20, 1)), **QUIET)
    assert "no sequence is longer than 20 steps" in caplog.text


def test_a_saved_fit_keeps_its_durations(tmp_path):
    _, x = simulated(0, binomial, N=1, T=100)
    fit = vb.fit(HMM(3, 3, durations=NegativeBinomialDurations(4, expected=7.0)), x, **QUIET)
    fit.save(tmp_path / "fit")
    loaded = ppgen.load(tmp_path / "fit")
    assert loaded.model.durations.config == fit.model.durations.config
    np.testing.assert_array_equal(loaded.log_likelihood(x, random_seed=3), fit.log_likelihood(x, random_seed=3))


def test_states_in_another_order_say_the_same():
    z, x = simulated(0, poisson, N=2, T=200)
    fit = vb.fit(HMM(3, 3, durations="negative_binomial"), x, **QUIET)
    other = fit.order("state", by="location", feature=2, descending=True)
    theta, moved = fit.posterior.statistics(), other.posterior.statistics()
    order = theta["emission"]["linear"][:, 2].argsort(descending=True)
    jumps = theta["transition"]["log_probability"][order][:, order]
    torch.testing.assert_close(moved["transition"]["log_probability"], jumps)
    torch.testing.assert_close(moved["duration_continuing"]["log_one"], theta["duration_continuing"]["log_one"][order])
    states = [np.asarray(f.latents(x)["z"]) for f in (fit, other)]
    np.testing.assert_allclose(states[1], states[0][..., order.numpy()], atol=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HMM(3, 2, durations="gamma"), "durations must be one of"),
        (lambda: HMM(1, 2, durations="poisson"), "two states or more"),
        (lambda: HMM(3, 2, durations="poisson", stickiness=5.0), "no stickiness"),
        (lambda: PoissonDurations(1), "longest must be a whole number of at least 2"),
        (lambda: NegativeBinomialDurations(0), "most must be a whole number of at least 1"),
        (lambda: NegativeBinomialDurations(expected=1.0), "expected must be more than 1"),
        (lambda: NegativeBinomialDurations(strength=float("inf")), "strength must be more than 0"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(DataError, match=words):
        make()
