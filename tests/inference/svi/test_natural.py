"""Factors of a conjugate model in svi: natural gradients for them, the optimiser for the rest, in one step."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppgen
from ppgen.emissions import Gaussian
from ppgen.errors import DataError, FitError
from ppgen.families.family import Factor
from ppgen.families.normal_gamma import NormalGamma
from ppgen.inference import svi, vb
from ppgen.model import Conjugate
from ppgen.models import GMM, HMM, LDS
from ppgen.results.posterior import Factors

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.cat([torch.randn(60, 2, generator=GENERATOR) - 2, torch.randn(60, 2, generator=GENERATOR) + 2]).double()
SERIES = torch.stack([ROWS[[*range(n, n + 15), *range(70 + n, 85 + n)]] for n in range(6)])
SERIES[0, 3, 1] = SERIES[1, 5] = SERIES[2, 20:] = torch.nan
SETTINGS = {"random_seed": 0, "progressbar": False}


@pytest.mark.parametrize(
    ("model", "x"),
    [(GMM(3, 2), ROWS), (HMM(2, emission=Gaussian(2)), SERIES), (LDS(2, 2, noise=0.5), SERIES)],
    ids=["mixture", "chain", "system"],
)
def test_whole_steps_are_those_of_variational_bayes_bit_for_bit(model, x):
    one, two = vb.fit(model, x, max_steps=8, tol=0.0, **SETTINGS), svi.fit(model, x, max_steps=8, **SETTINGS)
    np.testing.assert_allclose(two.history["elbo"], one.history["elbo"], rtol=1e-13)
    for name, factor in one.posterior.factors.items():
        for key, value in factor.eta.items():
            torch.testing.assert_close(two.posterior.factors[name].eta[key], value, rtol=1e-10, atol=1e-10)
    assert two.attrs["guide"] == "factors"
    assert two.attrs["optimizer"] == "natural gradients"


def test_without_an_option_it_settles_where_variational_bayes_does():
    one, two = (engine.fit(HMM(2, emission=Gaussian(2)), SERIES, **SETTINGS) for engine in (vb, svi))
    assert two.attrs["converged"]
    assert len(two.history) < 60
    assert abs(two.history["elbo"].iloc[-1] - one.history["elbo"].iloc[-1]) < 0.01
    assert two.latents(SERIES, random_seed=0).z.values.shape == (6, 30, 2)


def test_point_estimates_are_the_optimisers_and_end_where_theirs_do():
    model = HMM(2, emission=Gaussian(2), hierarchical=True, learn_prior=True)
    one = vb.fit(model, SERIES, **SETTINGS)
    two = svi.fit(model, SERIES, lr=0.05, max_steps=1500, **SETTINGS)
    assert two.attrs["optimizer"] == "natural gradients and Adam"
    assert two.history["elbo"].iloc[-1] > one.history["elbo"].iloc[-1] - 0.1
    torch.testing.assert_close(two.posterior.points["usage"].sum(), torch.ones(()).double())


@pytest.mark.slow
def test_minibatches_settle_in_some_hundred_steps_where_whole_steps_do():
    """They took 1,000 while looks were as rare as those of an optimiser."""
    rows = ROWS.repeat(10, 1) + 0.1 * torch.randn(1200, 2, generator=torch.Generator().manual_seed(1)).double()
    found = svi.fit(GMM(2, 2), rows, batch_size=120, **SETTINGS)
    whole = vb.fit(GMM(2, 2), rows, **SETTINGS)
    assert found.attrs["converged"]
    assert len(found.history) <= 400
    both = [float(fit.log_likelihood(rows, draws=100, random_seed=0).mean()) for fit in (found, whole)]
    assert abs(both[0] - both[1]) < 0.005


def test_minibatches_come_near_the_bound_of_whole_steps():
    """Within 2 nats of the exact run over 120 rows, after 30 passes of falling steps."""
    exact = vb.fit(GMM(2, 2), ROWS, **SETTINGS).history["elbo"].iloc[-1]
    fit = svi.fit(GMM(2, 2), ROWS, batch_size=20, max_steps=400, early_stopping=False, forgetting=0.9, **SETTINGS)
    factors = fit.posterior.factors
    for factor in factors.values():
        factor.family.check(factor.eta)
    again = vb.fit(GMM(2, 2), ROWS, start=fit, max_steps=1, **SETTINGS)
    assert again.history["elbo"].iloc[0] > exact - 2
    rates = (np.arange(400) + 1.0) ** -0.9
    np.testing.assert_allclose(fit.history["lr"], rates)


class Bent(Conjugate):
    """A net of single precision bends the inputs; what is added to it, and its precision, have a conjugate prior."""

    data_dims = ("row", "feature")
    dims = {"location": ("feature",), "precision": ("feature",)}
    config = {}

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def natural_prior(self, **points):
        one, family = torch.ones(1, dtype=torch.float64), NormalGamma("location", "precision")
        return {"noise": Factor(family, family.natural(location=0 * one, strength=one, shape=one, rate=0.1 * one))}

    def model(self, x, *, u=None, total=None):
        s = self.statistics()["noise"]
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", Added(s, self.net(u.float()).double()), obs=x)


class Added(dist.TorchDistribution):
    """Normal data, linear in the statistics of its precision and of what is added to its mean."""

    arg_constraints = {}
    support = dist.constraints.real_vector

    def __init__(self, s, mean):
        self.s, self.centre = s, mean
        super().__init__(mean.shape[:1], mean.shape[1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return self

    def log_prob(self, x):
        r, s = x - self.centre, self.s
        score = s["precision"] * r.square() + s["linear"] * r + s["quadratic"] + s["log_det"]
        return (score - 0.5 * np.log(2 * np.pi)).sum(-1)

    def sample(self, sample_shape=()):
        raise NotImplementedError


@pytest.mark.parametrize("batch_size", [None, 50])
def test_a_net_of_single_precision_is_trained_beside_factors(batch_size):
    """The net takes the wave, and the factor its noise: a precision of 25 within a quarter (200 rows: sd .1 of it)."""
    u = torch.linspace(-2, 2, 200, dtype=torch.float64)[:, None]
    x = (2 * u).sin() + 0.2 * torch.randn(200, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fit = svi.fit(
        Bent(),
        x,
        u=u,
        lr=0.02,
        max_steps=1500,
        batch_size=batch_size,
        early_stopping=False,
        schedule="cosine",
        **SETTINGS,
    )
    assert {value.dtype for value in fit.model.net.parameters()} == {torch.float32}
    assert isinstance(fit.posterior, Factors)
    precision = float(fit.posterior.draws(500)["precision"].mean())
    assert 0.75 * 25 < precision < 1.35 * 25
    again = fit.log_likelihood(x[:9], u=u[:9], random_seed=0)
    assert again.dtype == np.float64


def test_factors_of_svi_are_saved_and_answer_as_those_of_variational_bayes(tmp_path):
    fit = svi.fit(GMM(2, 2), ROWS, **SETTINGS)
    fit.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit")
    assert again.log_likelihood(ROWS[:5], random_seed=0).identical(fit.log_likelihood(ROWS[:5], random_seed=0))
    assert fit.diagnose(ROWS, random_seed=0).table is not None
    assert fit.to_arviz(ROWS, draws=20)["posterior"].sizes["draw"] == 20


def test_a_run_of_factors_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    options = {"batch_size": 20, "early_stopping": False, **SETTINGS}
    svi.fit(GMM(2, 2), ROWS, max_steps=30, checkpoint=tmp_path, **options)
    one = svi.fit(GMM(2, 2), ROWS, max_steps=60, checkpoint=tmp_path, **options)
    two = svi.fit(GMM(2, 2), ROWS, max_steps=60, **options)
    for name, factor in two.posterior.factors.items():
        assert all(value.equal(one.posterior.factors[name].eta[key]) for key, value in factor.eta.items())


class Spare(Bent):
    """A latent that no factor draws."""

    def model(self, x, *, u=None, total=None):
        pyro.sample("spare", dist.Normal(0.0, 1.0))
        super().model(x, u=u, total=total)

    def guide(self, x, *, u=None, total=None):
        pyro.sample("spare", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))


def test_latents_beside_the_factors_that_rows_share_are_refused():
    u = torch.zeros(5, 1, dtype=torch.float64)
    with pytest.raises(FitError, match="must be drawn by a factor of natural_prior, got site 'spare'"):
        svi.fit(Spare(), u, u=u, max_steps=2, **SETTINGS)


def test_factors_take_no_other_type():
    with pytest.raises(DataError, match="dtype must be left out for a conjugate model, whose factors are float64"):
        svi.fit(GMM(2, 2), ROWS, dtype=torch.float32, **SETTINGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": 0.5}, "svi: delay must be 1 or more, got 0.5"),
        ({"forgetting": 1.5}, "svi: forgetting must be above 0"),
    ],
)
def test_steps_that_do_not_fall_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        svi.fit(GMM(2, 2), ROWS, batch_size=20, **options, **SETTINGS)
