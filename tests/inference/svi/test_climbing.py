"""Named guides over fixed draws: as wide as the posterior whatever its scale, without an option set."""

import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.errors import FileError, FitError
from ppgen.inference import svi
from ppgen.inference.svi import climbing
from ppgen.inference.svi.fixed_draws import matched_normals
from ppgen.model import Model


class Centre(Model):
    """The mean of rows of two features with unit noise; NaN is not observed."""

    data_dims = ("row", "feature")
    dims = {"mu": ("feature",)}

    def model(self, x, *, u=None, total=None):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).mask(seen).to_event(1), obs=torch.where(seen, x, 0.0))


def regression(y, x):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def normal_of(fit, site):
    """Mean and covariance of the guide, from log densities that are exactly those of a normal (draws in P numbers)."""
    v, log_q = fit.posterior.sites[site][0], fit.posterior.stats["log_q"][0]
    i, j = torch.triu_indices(v.shape[1], v.shape[1])
    features = torch.cat([v[:, i] * v[:, j], v, torch.ones(len(v), 1)], 1)
    found = torch.linalg.lstsq(features, log_q[:, None]).solution[:, 0]
    quadratic = torch.zeros(v.shape[1], v.shape[1], dtype=v.dtype)
    quadratic[i, j] = found[: len(i)]
    covariance = torch.linalg.inv(-(quadratic + quadratic.T))
    return covariance @ found[len(i) : -1], covariance


def fit(program, *args, **options):
    return svi.fit(program, *args, **({"random_seed": 1, "progressbar": False, "draws": 400} | options))


@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
@pytest.mark.parametrize(("rows", "batch_size"), [(50, None), (5000, None), (5000, 50), (1003, 50)])
def test_no_option_set_the_guide_is_the_posterior_of_a_mean(rows, batch_size, guide):
    """Exact: the bound over matched draws is the bound itself where the posterior is normal."""
    x = torch.tensor(np.random.default_rng(0).normal(1.0, 1.0, (rows, 2)))
    found = fit(Centre(), x, batch_size=batch_size, guide=guide)
    assert found.attrs["converged"]
    mean, covariance = normal_of(found, "mu")
    width = (rows + 1) ** -0.5
    torch.testing.assert_close(covariance.diagonal().sqrt() / width, torch.ones(2).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close((mean - x.sum(0) / (rows + 1)) / width, torch.zeros(2).double(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_widths_do_not_depend_on_the_units_of_a_parameter(scale):
    def program(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * scale).to_event(1))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu[0], scale), obs=y)

    y = scale * torch.tensor(np.random.default_rng(1).normal(3.0, 1.0, 40))
    mean, covariance = normal_of(fit(program, y), "mu")
    exact = scale**2 / (40 + 0.01)
    assert float(covariance) == pytest.approx(exact, rel=2e-3)
    assert float(mean) == pytest.approx(float(y.sum()) / 40.01, abs=5e-3 * exact**0.5)


def test_a_full_rank_guide_finds_strongly_correlated_coefficients():
    stream = torch.Generator().manual_seed(3)
    root = torch.linalg.cholesky(0.05 * torch.eye(4) + 0.95).double()
    x = torch.randn(60, 4, generator=stream, dtype=torch.float64) @ root.T
    y = x.sum(1) + torch.randn(60, generator=stream, dtype=torch.float64)
    mean, covariance = normal_of(fit(regression, y, x, guide="full_rank"), "beta")
    exact = torch.linalg.inv(torch.eye(4) + x.T @ x)
    scale = exact.diagonal().sqrt()
    torch.testing.assert_close(covariance / scale / scale[:, None], exact / scale / scale[:, None], atol=5e-3, rtol=0)
    torch.testing.assert_close((mean - exact @ x.T @ y) / scale, torch.zeros(4).double(), atol=2e-2, rtol=0)


def test_a_flat_ridge_is_climbed_to_its_end():
    """Of nearly equal inputs the best independent normals have the posterior's mean, many of their widths away."""
    stream = torch.Generator().manual_seed(0)
    a, away = torch.randn(2, 200, generator=stream, dtype=torch.float64)
    x = torch.stack([a, a + 0.01 * away], 1)
    y = x.sum(1) + torch.randn(200, generator=stream, dtype=torch.float64)
    precision = torch.eye(2) + x.T @ x
    mean, covariance = normal_of(fit(regression, y, x), "beta")
    width = precision.diagonal() ** -0.5
    torch.testing.assert_close(
        (mean - torch.linalg.solve(precision, x.T @ y)) / width, torch.zeros(2).double(), atol=0.1, rtol=0
    )
    torch.testing.assert_close(covariance.diagonal().sqrt() / width, torch.ones(2).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("guide", ["mean_field", "flow"])
def test_a_checkpoint_of_a_program_that_does_something_else_is_refused(tmp_path, guide):
    def program(y, noise):
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, noise), obs=y)

    y = torch.arange(10).double()
    fit(program, y, 0.5, checkpoint=tmp_path, max_steps=3, guide=guide)
    with pytest.raises(FileError, match="must hold this run"):
        fit(program, y, 5.0, checkpoint=tmp_path, max_steps=3, guide=guide)


def test_parameters_of_the_program_are_learnt_with_the_guide():
    def program(y):
        noise = pyro.param("noise", torch.tensor(0.3), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, noise), obs=y)

    y = torch.tensor(np.random.default_rng(2).normal(5.0, 2.0, 200))
    found = fit(program, y)
    assert float(found.params["noise"]) == pytest.approx(float(y.std()), rel=1e-3)


def test_posteriors_that_are_not_normal_get_as_many_draws_as_their_error_asks():

    def program():
        pyro.sample("rate", dist.Gamma(3.0, 1.0))

    found = fit(program, draws=20)
    v, log_q = found.posterior.sites["rate"][0].log(), found.posterior.stats["log_q"][0]
    quadratic = np.polyfit(v.numpy(), (log_q + v).numpy(), 2)
    width = (-0.5 / quadratic[0]) ** 0.5
    # E_q[3 v - e^v] + log width is largest where width^2 = 1 / 3 and mean = log 3 - width^2 / 2.
    assert width == pytest.approx(3**-0.5, rel=0.03)
    assert quadratic[1] * width**2 == pytest.approx(np.log(3) - 1 / 6, abs=0.05 * 3**-0.5)


def test_a_killed_climb_goes_on_bit_for_bit(tmp_path, monkeypatch):
    x = torch.tensor(np.random.default_rng(0).normal(1.0, 1.0, (300, 2)))
    whole = fit(Centre(), x, batch_size=100)
    made = climbing.Climb.step

    def dies(self):
        if self.steps == 5:
            raise RuntimeError
        made(self)

    with monkeypatch.context() as patched:
        patched.setattr(climbing.Climb, "step", dies)
        with pytest.raises(RuntimeError):
            fit(Centre(), x, batch_size=100, checkpoint=tmp_path, checkpoint_every=2)
    resumed = fit(Centre(), x, batch_size=100, checkpoint=tmp_path, checkpoint_every=2)
    assert resumed.history.equals(whole.history)
    assert resumed.posterior.sites["mu"].equal(whole.posterior.sites["mu"])


def test_a_program_that_draws_for_itself_is_not_climbed():
    def program(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y), subsample_size=5) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    assert fit(program, torch.arange(20).double(), max_steps=20).attrs["optimizer"] == "Adam"


def test_a_bound_that_is_infinite_at_the_start_is_refused_with_its_site():
    def program(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Uniform(mu + 5.0, mu + 6.0, validate_args=False), obs=y)

    with pytest.raises(FitError, match=r'the bound must be finite where the guide starts, but it is not \(site "y"\)'):
        fit(program, torch.zeros(3).double())


@pytest.mark.parametrize(("count", "size"), [(16, 2), (64, 16), (64, 200)])
def test_matched_normals_have_mean_zero_and_unit_variance(count, size):
    generator = torch.Generator().manual_seed(0)
    z = matched_normals(count, size, generator, dtype=torch.float64, device=torch.device("cpu"))
    torch.testing.assert_close(z.mean(0), torch.zeros(size).double(), atol=1e-12, rtol=0)
    second = z.T @ z / count
    torch.testing.assert_close(second.diagonal(), torch.ones(size).double())
    if size <= count // 4:
        torch.testing.assert_close(second, torch.eye(size).double(), atol=1e-10, rtol=0)


def test_the_log_says_nothing_of_a_good_run(caplog):
    with caplog.at_level(logging.WARNING):
        fit(Centre(), torch.randn(20, 2).double())
    assert not caplog.messages
