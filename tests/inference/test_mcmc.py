import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats

from ppgen.errors import DataError, FitError
from ppgen.inference import mcmc
from ppgen.model import Model


class Centre(Model):
    """x ~ N(centre, 1), centre ~ N(0, 2²): the posterior is known."""

    data_dims = ("row", "feature")
    dims = {"centre": ()}

    def __init__(self, interrupt_at=None, floor=None):
        super().__init__()
        self.interrupt_at, self.floor, self.runs = interrupt_at, floor, 0

    def model(self, x, *, u=None, total=None):
        self.runs += 1
        if self.interrupt_at is not None and self.runs > self.interrupt_at:
            raise KeyboardInterrupt
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 2.0))
        if self.floor is not None:
            centre = centre * self.floor
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(centre, 1.0).mask(~torch.isnan(x)).to_event(1), obs=torch.nan_to_num(x))


X = torch.tensor([[1.0], [2.5], [torch.nan], [0.5]], dtype=torch.float64)
MEAN, VARIANCE = 4.0 / (3 + 0.25), 1 / (3 + 0.25)


def sample(model, x=X, **options):
    quick = {"draws": 40, "tune": 40, "chains": 2, "random_seed": 1, "progressbar": False}
    return mcmc.fit(model, x, **(quick | options))


def test_draws_have_the_moments_of_the_exact_posterior():
    """Each |z| < 4.4 is a false-alarm rate of 1e-5."""
    fit = sample(Centre(), draws=250, tune=100)
    centre = fit.posterior.sites["centre"].numpy()
    for values, truth in ((centre, MEAN), ((centre - MEAN) ** 2, VARIANCE)):
        ess = array_stats.ess(values, chain_axis=0, draw_axis=1, method="mean")
        assert abs(values.mean() - truth) / (values.std() / ess**0.5) < 4.4


class Spread(Model):
    """x ~ N(0, spread²): a site that is positive."""

    data_dims = ("row", "feature")
    dims = {"spread": ()}

    def model(self, x, *, u=None, total=None):
        spread = pyro.sample("spread", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(0.0, spread).expand(x.shape).to_event(1), obs=x)


def test_draws_are_in_the_units_of_their_site():
    """The data's spread is 3 within a fifth or so; on the unconstrained scale draws would be near log 3."""
    x = 3 * torch.linspace(-2, 2, 80, dtype=torch.float64)[:, None] / 1.18
    spread = sample(Spread(), x).posterior.sites["spread"]
    assert (spread > 0).all()
    assert float(spread.mean()) == pytest.approx(3, rel=0.25)


def test_what_the_sampler_did_is_recorded():
    fit = sample(Centre())
    stats = fit.posterior.stats
    assert {name: tuple(value.shape) for name, value in stats.items()} == dict.fromkeys(
        ["energy", "diverging", "n_steps", "step_size"], (2, 40)
    )
    assert not stats["diverging"].any()
    assert (stats["n_steps"] >= 1).all()
    # The energy is potential plus kinetic: above the potential of the place the trajectory starts from.
    start = fit.posterior.sites["centre"][:, :-1]
    data = X[~X.isnan()]
    potential = -(dist.Normal(0.0, 2.0).log_prob(start) + dist.Normal(start[..., None], 1.0).log_prob(data).sum(-1))
    assert (stats["energy"][:, 1:] >= potential - 1e-9).all()
    assert fit.history["tuning"].sum() == 80
    assert len(fit.history) == 160


def test_the_same_seed_gives_the_same_draws_and_leaves_globals_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = sample(Centre()), sample(Centre()), sample(Centre(), random_seed=2)
    assert first.posterior.sites["centre"].equal(second.posterior.sites["centre"])
    assert not first.posterior.sites["centre"].equal(other.posterior.sites["centre"])
    assert torch.get_rng_state().equal(before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert not dict(pyro.get_param_store())


def test_an_interruption_keeps_as_many_draws_of_each_chain():
    model = Centre(interrupt_at=700)
    fit = sample(model, draws=10_000, tune=20)
    chains, draws = fit.posterior.shape
    assert chains == 2
    assert 0 < draws < 700
    assert fit.attrs["interrupted"]
    assert not fit.diagnose().ok


def test_an_interruption_before_the_first_draw_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        sample(Centre(interrupt_at=20))


def test_chains_can_start_from_an_earlier_fit():
    first = sample(Centre())
    fit = sample(Centre(), tune=0, draws=1, start=first)
    assert fit.posterior.shape == (2, 1)


def test_a_model_without_a_finite_start_is_refused_in_words():
    with pytest.raises(FitError, match="mcmc: a starting point must have finite density and gradient"):
        sample(Centre(floor=torch.nan))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "mcmc: draws must be at least 1, got 0"),
        ({"tune": -1}, "mcmc: tune must be at least 0, got -1"),
        ({"chains": 0}, "mcmc: chains must be at least 1, got 0"),
        ({"target_accept": 1.0}, "mcmc: target_accept must be between 0 and 1, got 1.0"),
        ({"start": "zero"}, r"mcmc: start must be one of \['mean', 'prior'\] or an earlier fit, got 'zero'"),
        ({"u": np.array([1.0, np.nan, 0, 0])}, r"mcmc: u must be finite, got nan at \(1,\)"),
        ({"u": np.ones((3, 1))}, r"mcmc: u must have 4 rows like x, got shape \(3, 1\)"),
        ({"u": np.array(["a", "b", "c", "d"])}, "mcmc: u must hold numbers"),
    ],
)
def test_bad_options_are_refused_in_words(options, message):
    with pytest.raises(DataError, match=message):
        sample(Centre(), **options)
