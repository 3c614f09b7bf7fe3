"""Gibbs sampling: its sweeps leave the posterior as it is, and it agrees with samplers that know a density."""

import numpy as np
import pytest
import torch

from ppgen.durations import NegativeBinomialDurations
from ppgen.emissions import Autoregressive, Gaussian
from ppgen.errors import DataError
from ppgen.inference import mcmc, vb
from ppgen.inference.mcmc.enough import least_size
from ppgen.inference.mcmc.gibbs import Chain
from ppgen.models import CCA, GMM, HMM, IOHMM, LDS, SLDS, FactorialHMM
from ppgen.predictions import predictive
from ppgen.programs.task import read

QUIET = {"random_seed": 1, "progressbar": False}
MODELS = {
    "gmm": lambda: GMM(2, 2),
    "hmm": lambda: HMM(2, emission=Gaussian(2, covariance="diagonal")),
    "hmm-autoregressive": lambda: HMM(2, emission=Autoregressive(2, 1)),
    "hmm-durations": lambda: HMM(
        3, emission=Gaussian(2, covariance="diagonal"), durations=NegativeBinomialDurations(2)
    ),
    "lds": lambda: LDS(1, 2),
    "slds": lambda: SLDS(2, 1, 2),
    "slds-recurrent": lambda: SLDS(3, 1, 2, recurrent=True),
    "cca": lambda: CCA({"a": 1, "b": 1}, 1),
    "factorial-held": lambda: FactorialHMM([2, 2], 2, product=1),  # the slowest: each replication settles its blocks
}
SWEEPS, RATE = 5, 4.5  # standard errors: two-sided false-alarm rate 7e-6 a number, below 2e-3 for all of these tests


def simulated(model):
    """Parameters from the prior, and data from them with entries and a step hidden."""
    shape = (6, 2) if model.data_dims == ("row", "feature") else (2, 8, 2)
    x = torch.zeros(shape, dtype=torch.float64)
    theta = predictive.prior(model, x)
    x = predictive.replicate(model, theta, x)
    x[0, 0] = torch.nan
    if x.ndim == 3:
        x[1, 3], x[0, 5, 1] = torch.nan, torch.nan
    return theta, x


def numbers(theta):
    """Bounded functions of the parameters, for their moments may be infinite."""
    return torch.stack([f(value.double()).mean() for value in theta.values() for f in (torch.tanh, absolute)])


def absolute(value):
    return torch.tanh(value.abs())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sweeps_from_a_draw_of_the_joint_density_end_in_one(name):
    """Parameters that were drawn with their data are from the posterior; so they are after sweeps (Geweke 2004)."""
    torch.manual_seed(7)
    model, moved = MODELS[name](), []
    for _ in range(500):
        theta, x = simulated(model)
        chain = Chain(read("mcmc", model, (x,), None), dict(theta))
        for _ in range(SWEEPS):
            chain.sweep()
        moved.append(numbers({site: chain.theta[site] for site in theta}) - numbers(theta))
    change = torch.stack(moved)
    error = change.std(0) / len(change) ** 0.5
    assert (change.mean(0).abs() <= RATE * error + 1e-12).all(), (change.mean(0) / error).tolist()


@pytest.mark.slow
def test_it_agrees_with_hamiltonian_draws_where_entries_are_missing():
    """Means within five standard errors and spreads within a fifth of those of chees, by its thousand draws."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)) @ [[1.0, 0.7], [0.0, 0.5]] + np.repeat([[0.0], [8.0]], 30, 0)
    x[rng.random(x.shape) < 0.3] = np.nan
    one = mcmc.fit(GMM(2, 2), x, sampler="gibbs", **QUIET).order("component", by="location", feature=0)
    other = mcmc.fit(GMM(2, 2), x, chains=16, min_ess=1000, **QUIET).order("component", by="location", feature=0)
    for site in ("weights", "location", "precision_cholesky"):
        a, b = (fit.posterior.draws(4000)[site].flatten(1) for fit in (one, other))
        assert ((a.mean(0) - b.mean(0)).abs() <= 5 * b.std(0) * (2 / 1000) ** 0.5 + 1e-12).all()
        kept = b.std(0) > 0
        torch.testing.assert_close(a.std(0)[kept], b.std(0)[kept], rtol=0.2, atol=0)
    assert one.diagnose().ok


def test_the_scale_of_a_latent_space_does_not_hold_chains_where_they_began():
    """Drawn in turn with its coefficients alone, it does: the least effective size of 400 draws was 2, and is 44."""
    rng = np.random.default_rng(0)
    h = np.zeros(150)
    for t in range(1, 150):
        h[t] = 0.9 * h[t - 1] + 0.3 * rng.normal()
    x = h[:, None] * [1.0, -0.5, 0.8] + [1.0, 0.0, -1.0] + 0.1 * rng.normal(size=(150, 3))
    fit = mcmc.fit(LDS(1, 3), x[None], sampler="gibbs", draws=120, tune=40, chains=2, **QUIET)
    assert least_size(fit.model, fit.posterior) > 10


def test_no_chain_begins_in_a_mode_far_below_the_others():
    """One of four ended 150 nats below them."""
    rng, steps = np.random.default_rng(0), np.arange(300)
    x = rng.normal(size=(2, 4))[(steps // 50) % 2] + rng.normal(size=(3, 4))[(steps // 17) % 3]
    x = x + 0.3 * rng.normal(size=(300, 4))
    x = (x - x.mean(0)) / x.std(0)
    model = FactorialHMM({"light": 2, "task": 3}, features=4)
    fit = mcmc.fit(model, x[None], sampler="gibbs", draws=20, tune=20, **QUIET)
    assert np.ptp(fit.posterior.stats["lp"].mean(1).numpy()) < 30


def test_states_of_a_switching_system_come_back():
    rng = np.random.default_rng(3)
    z = np.repeat(rng.integers(0, 2, 8), 20)
    h = np.zeros((len(z), 2))
    turn = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) * 0.98 for a in (0.1, 0.8)]
    for t in range(1, len(z)):
        h[t] = turn[z[t]] @ h[t - 1] + 0.2 * rng.normal(size=2)
    x = h @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(len(z), 5))
    fit = mcmc.fit(SLDS(2, 2, 5), x[None], sampler="gibbs", tune=40, draws=20, chains=1, **QUIET)
    states = np.asarray(fit.latents(x[None], draws=2)["z"])[0].argmax(-1)
    assert max((states == z).mean(), (states != z).mean()) > 0.9


@pytest.mark.parametrize(
    "name", ["hmm", "hmm-autoregressive", "hmm-durations", "lds", "slds-recurrent", "factorial-held"]
)
def test_a_sequence_of_which_nothing_was_seen_stays_empty(name):
    x = np.random.default_rng(0).normal(size=(3, 9, 2))
    x[1], x[2, 6:], x[0, 3] = np.nan, np.nan, np.nan
    fit = mcmc.fit(MODELS[name](), x, sampler="gibbs", draws=3, tune=2, chains=1, **QUIET)
    filled = np.asarray(fit.impute(x, draws=2))
    assert np.isnan(filled[:, 1]).all()
    assert np.isfinite(filled[:, 0]).all()
    assert np.isnan(filled[:, 2, 6:]).all()


def test_the_same_seed_gives_the_same_draws_and_a_fit_can_be_gone_on_from():
    x = np.random.default_rng(0).normal(size=(30, 2))
    run = {"sampler": "gibbs", "draws": 20, "tune": 5, "chains": 2, **QUIET}
    one, two = mcmc.fit(GMM(2, 2), x, **run), mcmc.fit(GMM(2, 2), x, **run)
    assert one.posterior.sites["location"].equal(two.posterior.sites["location"])
    on = mcmc.fit(GMM(2, 2), x, start=vb.fit(GMM(2, 2), x, **QUIET), **run)
    assert on.posterior.shape == (2, 20)
    assert {"step", "tuning", "log_joint"} <= set(on.history)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (lambda: IOHMM(2, 1, 1), {"u": np.zeros((2, 5, 1))}, "needs a conjugate model, got IOHMM"),
        (lambda: HMM(2, 1, hierarchical=True), {}, r"got sites \['usage'\] beside them"),
        (lambda: HMM(2, 1), {"target_accept": 0.9}, "target_accept does nothing"),
        (lambda: HMM(2, 1), {"checkpoint": "folder"}, "checkpoint does nothing"),
    ],
)
def test_what_it_cannot_do_is_refused_in_words(model, options, words):
    x = np.random.default_rng(0).normal(size=(2, 5, 1))
    with pytest.raises(DataError, match=words):
        mcmc.fit(model(), x, sampler="gibbs", **options, **QUIET)
