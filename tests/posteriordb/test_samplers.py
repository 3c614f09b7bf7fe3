"""Samplers against reference posteriors: means, sds, no divergences; and exact Gaussians."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from posteriordb.programs import CASES, load, parameters, unordered_mixture

from ppgen.inference import mcmc


def ess(values, method="mean"):
    return float(array_stats.ess(values.numpy(), chain_axis=0, draw_axis=1, method=method))


def standard_errors(values, mean, sd, mcse_mean=0.0, mcse_sd=0.0):
    """How far mean and sd are from the reference, in joint standard errors; and their effective sample size."""
    square = (values - values.mean()) ** 2
    error = float(values.std()) / math.sqrt(ess(values))
    sd_error = float(square.std()) / math.sqrt(ess(square)) / (2 * float(values.std()))
    z = (
        (float(values.mean()) - mean) / math.hypot(error, mcse_mean),
        (float(values.std()) - sd) / math.hypot(sd_error, mcse_sd),
    )
    return max(map(abs, z)), min(ess(values), ess(square))


def check(posterior, fit, least=10_000):
    """|z| < 4 of 150 comparisons is a false alarm in one run of a hundred."""
    assert not fit.posterior.stats["diverging"].any()
    for name, values in parameters(dict(fit.posterior.sites)).items():
        known = posterior.reference["parameters"][name]
        exact = posterior.reference["independent"]["moments"].get(name, {})
        if str(posterior.reference["independent"]["method"]).startswith("exact"):
            known = {**known, "mean": exact["mean"], "sd": exact["sd"], "mcse_mean": 0.0, "mcse_sd": 0.0}
        z, size = standard_errors(values, *(known[key] for key in ("mean", "sd", "mcse_mean", "mcse_sd")))
        assert size >= least, name
        assert z < 4, name
        assert abs(float(values.mean()) - known["mean"]) < 0.05 * known["sd"], name
        assert 0.97 < float(values.std()) / known["sd"] < 1.03, name


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_chees_draws_from_the_reference_posterior(name):
    posterior = load(name)
    fit = mcmc.fit(posterior.program, *posterior.args, draws=1000, random_seed=1, progressbar=False)
    check(posterior, fit)
    assert fit.diagnose().ok


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nuts_draws_from_the_reference_posterior(name):
    posterior = load(name)
    draws = 2000 if name == "bball_drive_event_0-hmm_drive_0" else 1000  # squares of its rates mix at .2 a draw
    options = {"sampler": "nuts", "chains": 32, "draws": draws, "tune": 300, "target_accept": 0.95}
    check(posterior, mcmc.fit(posterior.program, *posterior.args, random_seed=1, progressbar=False, **options))


@pytest.mark.parametrize("sampler", ["chees", pytest.param("nuts", marks=pytest.mark.slow)])
def test_two_modes_are_never_reported_as_converged(sampler):
    posterior = load("low_dim_gauss_mix-low_dim_gauss_mix")
    options = {"draws": 40, "tune": 40, "chains": 8, "random_seed": 2, "progressbar": False, "compile": "traced"}
    fit = mcmc.fit(unordered_mixture, posterior.args[0][::10].clone(), sampler=sampler, **options)
    mu = fit.posterior.sites["mu"]
    first = mu[..., 0] < 0
    assert 0.1 < float(first.double().mean()) < 0.9  # chains in both modes
    assert (first.all(1) | ~first.any(1)).all()  # each stays in its own
    assert float(fit.posterior.stats["acceptance_rate"].mean()) > 0.5
    report = fit.diagnose()
    assert not report.ok
    assert "R-hat" in report.verdict


def check_gaussian(parts, root, least=1e6, limit=4.4):
    """Moments of draws (C, S, P) of several runs, whitened with the exact ``root``, and correlations of the unwhitened.

    Chains are independent, so the spread of their means is the standard error, whatever the autocorrelation; of 512
    chains it knows the ESS to 6 %.
    """
    correlation = (root @ root.T).diagonal(1) / (root[:-1].square().sum(-1) * root[1:].square().sum(-1)).sqrt()
    means, squares = [], []
    for white in parts:
        x = white @ root.T / root.square().sum(-1).sqrt()
        values = torch.cat([white, white.square(), x[..., 1:] * x[..., :-1]], -1)
        means.append(values.mean(1))
        squares.append(values.square().mean((0, 1)))
    of_chains = torch.cat(means)
    mean, error = of_chains.mean(0), of_chains.std(0) / math.sqrt(len(of_chains))
    variance = torch.stack(squares).mean(0) - mean**2
    truth = torch.cat([torch.zeros(len(root)), torch.ones(len(root)), correlation])
    assert float((variance / error**2).min()) >= least
    assert float(((mean - truth) / error).abs().max()) < limit


SAMPLERS = pytest.mark.parametrize("sampler", ["chees", "nuts"])


@pytest.mark.slow
@SAMPLERS
def test_a_correlated_gaussian_has_its_moments(sampler):
    """Correlation .75, at ESS of a million; five comparisons at |z| < 4.4 are a false-alarm rate of 5e-5."""
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.75], [0.75, 1.0]], dtype=torch.float64))

    def program():
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=root))

    options = {"chains": 512, "draws": 6000, "tune": 300, "random_seed": 1, "progressbar": False}
    x = mcmc.fit(program, sampler=sampler, **options).posterior.sites["x"]
    check_gaussian([x @ torch.linalg.inv(root).T], root)


@pytest.mark.slow
@SAMPLERS
def test_a_hundred_correlated_dimensions_have_their_moments(sampler):
    """Condition number 1e4, no axis along a coordinate, at ESS of a million; 299 comparisons at |z| < 5 are 2e-4."""
    basis = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(4))).Q
    scale = torch.logspace(-1, 1, 100, dtype=torch.float64)  # variances .01 to 100

    def program():
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (100,)))
        pyro.factor("normal", -0.5 * (x @ basis / scale).square().sum())

    options = {"sampler": sampler, "chains": 1024, "draws": 1000, "tune": 300, "progressbar": False}
    runs = range({"chees": 5, "nuts": 4}[sampler])  # one at a time in memory
    fits = (mcmc.fit(program, random_seed=run, memory_limit=1 << 34, **options) for run in runs)
    check_gaussian((fit.posterior.sites["x"] @ basis / scale for fit in fits), basis * scale, limit=5)


@pytest.mark.slow
def test_a_hundred_scales_are_found_without_correlations():
    """Variances from .01 to 100 and a metric of scales alone; 300 comparisons at |z| < 5 are a rate of 2e-4."""
    scale = torch.logspace(-1, 1, 100, dtype=torch.float64)

    def program():
        pyro.sample("x", dist.Normal(torch.zeros(100), scale).to_event(1))

    fit = mcmc.fit(program, chains=512, draws=800, random_seed=1, dense_mass=False, progressbar=False)
    check_gaussian([fit.posterior.sites["x"] / scale], scale.diag(), least=5e4, limit=5)
