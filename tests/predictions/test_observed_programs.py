"""Plain Pyro programs whose data hold NaN, by every engine and answer: `observed` in the place of a mask."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.distributions import observed
from ppgen.inference import mcmc, svi
from ppgen.model import Model

STREAM = np.random.default_rng(0)
U = torch.tensor(STREAM.normal(size=40))
Y = 1.5 * U + torch.tensor(STREAM.normal(size=40))
Y[::5] = torch.nan
ROOT = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
PAIRS = torch.tensor(STREAM.normal(size=(60, 2))) @ ROOT.T + torch.tensor([1.0, -1.0])
PAIRS[::4, 0], PAIRS[1::4, 1], PAIRS[2] = torch.nan, torch.nan, torch.nan


def regression(y, u):
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", observed(dist.Normal(b * u, 1.0)), obs=y)


def masked(y, u):
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    seen = ~torch.isnan(y)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(b * u, 1.0).mask(seen), obs=torch.where(seen, y, 0.0))


def vectors(x):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
    with pyro.plate("row", len(x)):
        pyro.sample("x", observed(dist.MultivariateNormal(mu, scale_tril=ROOT.to(x))), obs=x)


def kinds(y, u):
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("y", observed(dist.Normal(mu[z], 1.0)), obs=y)


class Counts(Model):
    """Counts of two features; rows in minibatches."""

    data_dims = ("row", "feature")
    dims = {"rate": ("feature",)}

    def model(self, x, *, u=None, total=None):
        rate = pyro.sample("rate", dist.Gamma(torch.ones(2), 1.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", observed(dist.Poisson(rate).to_event(1)), obs=x)


def by_svi(program, *args, **options):
    return svi.fit(program, *args, **({"random_seed": 1, "progressbar": False, "draws": 300} | options))


def by_mcmc(program, *args):
    return mcmc.fit(program, *args, draws=100, tune=200, chains=4, random_seed=1, progressbar=False)


@pytest.mark.parametrize("fit", [by_svi, by_mcmc])
def test_a_program_with_observed_is_the_same_program_with_a_mask(fit):
    found, wanted = fit(regression, Y, U), fit(masked, Y, U)
    torch.testing.assert_close(found.posterior.sites["b"], wanted.posterior.sites["b"])
    np.testing.assert_allclose(found.log_likelihood(Y, random_seed=0), wanted.log_likelihood(Y, random_seed=0))
    filled = found.impute(Y, draws=200, random_seed=0, progressbar=False)
    gaps = Y.isnan().numpy()
    assert (filled.values[:, ~gaps] == Y.numpy()[~gaps]).all()
    centre = float(found.posterior.sites["b"].mean()) * U.numpy()[gaps]
    np.testing.assert_allclose(filled.values[:, gaps].mean(0), centre, atol=5 / 200**0.5 * 1.1)
    assert found.posterior_predictive(Y, draws=5).shape == (5, 40)


def test_the_posterior_of_a_vectors_mean_is_that_given_what_was_seen():
    """Exact: the precision is a sum of those of the seen entries, whatever the pattern."""
    found = by_svi(vectors, PAIRS, guide="full_rank", draws=4000)
    assert found.attrs["compile"] == "traced"
    precision, linear = torch.eye(2).double() / 25, torch.zeros(2).double()
    for row in PAIRS:
        seen = ~row.isnan()
        if seen.any():
            block = torch.linalg.inv((ROOT @ ROOT.T)[seen][:, seen])
            precision[seen.nonzero(), seen.nonzero()[:, 0]] += block
            linear[seen] += block @ row[seen]
    mean, spread = torch.linalg.solve(precision, linear), torch.linalg.inv(precision)
    mu = found.posterior.sites["mu"][0]
    width = spread.diagonal().sqrt()
    torch.testing.assert_close((mu.mean(0) - mean) / width, torch.zeros(2).double(), atol=5 / 4000**0.5 + 0.01, rtol=0)
    torch.testing.assert_close(mu.T.cov() / width / width[:, None], spread / width / width[:, None], atol=0.12, rtol=0)


def test_missing_entries_of_a_vector_follow_from_those_beside_them():
    found = by_svi(vectors, PAIRS, guide="full_rank")
    filled = found.predict(PAIRS, draws=2000, random_seed=0)["estimate"].values
    mu = found.posterior.sites["mu"][0].mean(0)
    gain = 0.8 / 1.0  # of the second entry given the first
    given = PAIRS[1, 0]
    assert filled[1, 1] == pytest.approx(float(mu[1] + gain * (given - mu[0])), abs=0.15)
    assert np.isfinite(found.log_likelihood(PAIRS)).all()
    report = found.diagnose(PAIRS)
    assert "finite posterior" not in set(report.table.loc[~report.table["ok"], "check"])


@pytest.mark.parametrize("fit", [by_svi, by_mcmc])
def test_enumerated_labels_of_rows_that_were_not_seen_are_those_of_the_prior(fit):
    y = torch.where(torch.arange(60) < 25, -2.0, 2.0).double() + torch.tensor(np.random.default_rng(2).normal(size=60))
    y[::6] = torch.nan
    found = fit(kinds, y, y)
    z = found.latents(y)["z"].values
    np.testing.assert_allclose(z[::6], [[0.4, 0.6]] * 10, atol=1e-6)
    assert z[1, 0] > 0.8
    assert np.isfinite(found.impute(y, draws=5, progressbar=False)).all()


def test_minibatches_with_other_gaps_share_one_graph():
    x = torch.tensor(np.random.default_rng(3).poisson([2.0, 5.0], (100, 2)).astype(float))
    x[::3, 0], x[1::7, 1], x[4] = torch.nan, torch.nan, torch.nan
    options = {"batch_size": 10, "lr": 0.02, "max_steps": 100}
    traced, eager = (by_svi(Counts(), x, compile=mode, **options) for mode in ("traced", "eager"))
    np.testing.assert_allclose(traced.history["elbo"], eager.history["elbo"], rtol=1e-9)
    climbed = by_svi(Counts(), x, batch_size=10, guide="map")
    seen = ~x.isnan()
    exact = torch.where(seen, x, 0.0).sum(0) / (1 + seen.sum(0))  # shape 1 + sum, less one, over rate 1 + count
    torch.testing.assert_close(climbed.posterior.sites["rate"][0, 0], exact, rtol=1e-6, atol=0)
