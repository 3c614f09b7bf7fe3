"""A mechanism of what is missing: exact sweeps, bias removed, estimates against quadrature, refusals in words."""

import logging

import numpy as np
import pytest
import torch
from scipy.special import expit

import ppgen
from ppgen.collapsed.estimated import estimates
from ppgen.distributions.polya_gamma import polya_gamma
from ppgen.emissions import Autoregressive, Gaussian
from ppgen.errors import DataError, FitError
from ppgen.inference import mcmc, svi, vb
from ppgen.inference.mcmc.gibbs import Chain
from ppgen.models import CCA, GMM, HMM, IOHMM, LDS, SLDS, MissingMechanism
from ppgen.predictions import predictive
from ppgen.programs.task import read

QUIET = {"random_seed": 0, "progressbar": False}
MODELS = {
    "gmm-full": lambda: GMM(2, 2),
    "gmm-diagonal-logistic": lambda: GMM(2, 2, covariance="diagonal"),
    "cca": lambda: CCA(2, 1),
    "hmm": lambda: HMM(2, emission=Gaussian(2, covariance="diagonal")),
    "lds": lambda: LDS(1, 2),
    "slds": lambda: SLDS(2, 1, 2),
}
RATE = 4.5  # standard errors: two-sided false-alarm rate 7e-6 a number, below 2e-3 for all numbers of a test


@pytest.mark.parametrize("tilt", [0.0, 0.4, 1.5, 4.0, 30.0])
def test_polya_gamma_numbers_have_their_mean_and_variance(tilt):
    torch.manual_seed(0)
    draws = polya_gamma(torch.full((40_000,), tilt))
    mean = np.tanh(tilt / 2) / (2 * tilt) if tilt else 0.25
    variance = (np.sinh(tilt) - tilt) / (4 * tilt**3 * np.cosh(tilt / 2) ** 2) if tilt else 1 / 24
    assert abs(draws.mean() - mean) < RATE * (variance / 40_000) ** 0.5
    np.testing.assert_allclose(draws.var(), variance, rtol=0.08)  # 5 standard errors and more


def simulated(model):
    """Parameters from the prior, data and their mask from these; drawn anew where a step has nothing that is seen."""
    shape = (6, 2) if model.data_dims == ("row", "feature") else (2, 6, 2)
    x = torch.zeros(shape, dtype=torch.float64)
    x[0, 0] = torch.nan
    while True:
        theta = predictive.prior(model, x)
        data = predictive.replicate(model, theta, x)
        if len(shape) == 2 or not data.isnan().all(-1).any():
            return theta, data


def numbers(theta):
    return torch.stack(
        [f(v.double()).mean() for v in theta.values() for f in (torch.tanh, lambda v: torch.tanh(v.abs()))]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sweeps_from_a_draw_of_the_joint_density_end_in_one(name):
    """Parameters that were drawn with data and mask are from the posterior; so they are after sweeps (Geweke 2004).

    Draws in which a step is hidden altogether (the end of a sequence, perhaps) are left out, before and after, so
    compare with none of them missing: the mechanism's prior is narrow here. Rows that are hidden altogether count.
    """
    torch.manual_seed(7)
    kind = "logistic" if name.endswith("logistic") else "self_masking"
    model, moved = MissingMechanism(MODELS[name](), kind, scale=0.5), []
    for _ in range(300):
        theta, x = simulated(model)
        chain = Chain(read("mcmc", model, (x,), None), dict(theta))
        for _ in range(4):
            chain.sweep()
        moved.append(numbers({site: chain.theta[site] for site in theta}) - numbers(theta))
    change = torch.stack(moved)
    error = change.std(0) / len(change) ** 0.5
    assert (change.mean(0).abs() <= RATE * error + 1e-12).all(), (change.mean(0) / error).tolist()


def hidden_by_size(seed, rows=500, slope=3.0):
    """A pair of features, the second of which is hidden the more, the larger it is."""
    rng = np.random.default_rng(seed)
    whole = rng.normal(size=(rows, 2)) @ np.linalg.cholesky([[1.0, 0.8], [0.8, 1.0]]).T
    x = whole.copy()
    x[rng.random(rows) < expit(-0.5 + slope * x[:, 1]), 1] = np.nan
    return whole, x


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_bias_of_ignoring_it_is_gone(seed):
    """The mean of what is seen is .7 too low; regressed on the other feature, still .3."""
    whole, x = hidden_by_size(seed)
    ignoring = vb.fit(GMM(1, 2), x, **QUIET).posterior.draws(200)["location"][:, 0, 1]
    fit = mcmc.fit(MissingMechanism(GMM(1, 2)), x, draws=80, tune=80, chains=2, **QUIET)
    found = fit.posterior.draws(160)["location"][:, 0, 1]
    truth = whole[:, 1].mean()
    assert abs(ignoring.mean() - truth) > 0.2
    assert abs(found.mean() - truth) < 4 * found.std()
    assert abs(found.mean() - truth) < 0.15
    slope = fit.posterior.draws(160)["mask_weights"][:, 1, 0]
    assert abs(slope.mean() - 3.0) < 4 * slope.std()
    gaps = np.isnan(x[:, 1])
    filled = np.asarray(fit.impute(x, draws=20)).reshape(20, *x.shape)
    assert abs(filled[:, gaps, 1].mean() - whole[gaps, 1].mean()) < 0.2
    np.testing.assert_array_equal(filled[:, ~gaps], np.broadcast_to(x[~gaps], filled[:, ~gaps].shape))


def test_where_the_mask_says_nothing_the_answers_are_those_of_the_model():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 2)) @ [[1.0, 0.5], [0.0, 0.8]]
    x[rng.random(x.shape) < 0.25] = np.nan
    fit = mcmc.fit(MissingMechanism(GMM(1, 2)), x, draws=80, tune=30, chains=1, **QUIET)
    plain = mcmc.fit(GMM(1, 2), x, sampler="gibbs", draws=80, tune=30, chains=1, **QUIET)
    slope = fit.posterior.draws(200)["mask_weights"][..., 0]
    assert (slope.mean(0).abs() < 4 * slope.std(0)).all()
    one, other = (f.posterior.draws(200)["location"][:, 0] for f in (fit, plain))
    assert ((one.mean(0) - other.mean(0)).abs() < 3 * one.std(0)).all()


@pytest.mark.parametrize("kind", ["self_masking", "logistic"])
def test_the_estimated_density_is_unbiased(kind):
    """The mean of 2,000 estimates against quadrature over what is hidden, within 4.5 standard errors."""
    torch.manual_seed(1)
    model = MissingMechanism(GMM(1, 2), kind)
    x = torch.tensor([[0.3, torch.nan], [torch.nan, -0.8], [0.5, 1.0]], dtype=torch.float64)
    theta = predictive.prior(model, x)
    mean, root, w = theta["location"][0], theta["precision_cholesky"][0], theta["mask_weights"]
    normal = torch.distributions.MultivariateNormal(mean, precision_matrix=root @ root.mT)
    grid = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    exact = []
    for row in x:
        whole = row.expand(len(grid), 2).clone()
        whole[:, row.isnan()] = grid[:, None]
        ones = torch.ones_like(whole)
        features = torch.stack([whole, ones], -1) if kind == "self_masking" else None
        odds = (features * w).sum(-1) if features is not None else torch.cat([whole, ones[:, :1]], -1) @ w.mT
        mask = torch.where(row.isnan(), odds.sigmoid(), (-odds).sigmoid()).prod(-1)
        density = normal.log_prob(whole).exp() * mask
        exact.append(torch.trapezoid(density, grid) if row.isnan().any() else density[0])
    with estimates():
        many = x.repeat(2000, 1)
        found = predictive.data_distribution(model, theta, many).log_prob(many).exp().reshape(2000, 3)
    error = found.std(0) / 2000**0.5
    assert ((found.mean(0) - torch.stack(exact)).abs() <= RATE * error + 1e-12).all()


def test_states_of_a_chain_are_told_by_what_is_missing():
    """One state is seen seldom because it is large: with the mechanism it is found where nothing is seen."""
    rng = np.random.default_rng(0)
    z = np.repeat(rng.integers(0, 2, 40), 10)
    x = np.where(z == 1, 2.0, -2.0)[:, None] + rng.normal(size=(400, 2)) * [0.6, 3.0]
    x[(rng.random(400) < 0.95) & (z == 1), 0] = np.nan
    fit = mcmc.fit(
        MissingMechanism(HMM(2, emission=Gaussian(2, covariance="diagonal"))),
        x[None],
        draws=40,
        tune=60,
        chains=1,
        **QUIET,
    )
    states = np.asarray(fit.latents(x[None], draws=2)["z"])[0].argmax(-1)
    assert max((states == z).mean(), (states != z).mean()) > 0.95
    assert fit.forecast(x[None], horizon=3, draws=2).shape[-2:] == (3, 2)


def test_a_saved_fit_answers_as_before(tmp_path):
    _, x = hidden_by_size(0, rows=40)
    fit = mcmc.fit(MissingMechanism(GMM(1, 2), "logistic", slope=1.0), x, draws=10, tune=5, chains=2, **QUIET)
    fit.save(tmp_path / "fit")
    loaded = ppgen.load(tmp_path / "fit")
    assert loaded.model.config.keys() == fit.model.config.keys()
    one, two = (np.asarray(f.impute(x, draws=3, random_seed=1)) for f in (fit, loaded))
    np.testing.assert_array_equal(one, two)


def test_questions_that_hide_entries_are_refused():
    _, x = hidden_by_size(0, rows=30)
    fit = mcmc.fit(MissingMechanism(GMM(1, 2)), x, draws=5, tune=5, chains=1, **QUIET)
    for ask in (fit.outliers, fit.expected_information, lambda data: fit.log_conditional(data, data)):
        with pytest.raises(FitError, match="ask a fit of the model inside it"):
            ask(x)


def test_the_laws_of_densities_are_not_asked_of_a_model_without_one():
    with pytest.raises(DataError, match="has none in closed form; check the model inside"):
        ppgen.check(MissingMechanism(GMM(1, 2)), torch.from_numpy(hidden_by_size(0, rows=30)[1]))


@pytest.mark.parametrize("engine", [vb.fit, svi.fit])
def test_other_engines_say_which_one_to_take(engine):
    with pytest.raises((FitError, DataError), match=r"use mcmc.fit\(model, x\)"):
        engine(MissingMechanism(GMM(1, 2)), hidden_by_size(0, rows=30)[1], **QUIET)


@pytest.mark.parametrize(
    ("make", "x", "words"),
    [
        (lambda: MissingMechanism(GMM(1, 2)), np.zeros((20, 2)) + np.arange(20)[:, None], "must have missing entries"),
        (lambda: MissingMechanism(IOHMM(2, 1, 1)), None, "must be a conjugate model"),
        (lambda: MissingMechanism(GMM(1, 2), "censoring"), None, "mechanism must be one of"),
        (lambda: MissingMechanism(GMM(1, 2), scale=0.0), None, "scale must be positive"),
        (lambda: MissingMechanism(GMM(1, 2), slope=np.nan), None, "slope must be finite"),
        (
            lambda: MissingMechanism(HMM(2, emission=Autoregressive(2, 1))),
            np.where(np.arange(40).reshape(1, 20, 2) % 7 == 0, np.nan, np.arange(40).reshape(1, 20, 2) / 20),
            "must not depend on each other given the states",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, x, words):
    with pytest.raises(DataError, match=words):
        mcmc.fit(make(), x, **QUIET)


def test_a_mechanism_is_sampled_without_asking_for_it(caplog):
    with caplog.at_level(logging.WARNING):
        fit = mcmc.fit(MissingMechanism(GMM(1, 2)), hidden_by_size(0, rows=30)[1], draws=5, tune=5, chains=1, **QUIET)
    assert fit.attrs["sampler"] == "gibbs"


def test_rows_of_which_nothing_was_seen_count():
    """Half of one column is hidden because it is large: each gap is such a row. The mean came out at -.69, not 0.

    Within four posterior standard deviations, .1 each.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 1))
    x[rng.random(x.shape) < 1 / (1 + np.exp(-3 * x))] = np.nan
    model = MissingMechanism(GMM(1, 1), "self_masking", slope=3.0, scale=0.5)
    fit = mcmc.fit(model, x, tune=60, draws=100, chains=2, random_seed=0, progressbar=False)
    assert abs(float(fit.posterior.draws(200)["location"].mean())) < 0.4
    assert 0.4 < float(np.isnan(fit.posterior_predictive(x, draws=20, random_seed=0).values).mean()) < 0.6
