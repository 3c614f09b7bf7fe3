"""The importance-weighted bound against closed forms: what is averaged inside the logarithm, and what is not."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen.errors import DataError, FitError
from ppgen.inference import svi
from ppgen.inference.svi.objective import Objective
from ppgen.inference.svi.weighted import Weighted
from ppgen.model import Model
from ppgen.programs.isolated import isolated

ROW = frozenset({"row"})
X = torch.tensor([[0.5, 1.0], [-1.0, math.nan], [2.0, 0.3], [math.nan, math.nan]], dtype=torch.float64)
LOADING = torch.tensor([1.0, -0.5], dtype=torch.float64)


@pytest.fixture(autouse=True)
def quiet():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with isolated():
        yield
    torch.set_default_dtype(torch.float32)


class Linear(Model):
    """h ~ N(0, 1), x ~ N(loading h, 1), with a guide that knows little: N(.3, .8²) for every row."""

    data_dims = ("row", "feature")
    dims = {"h": ("row",)}

    def __init__(self, features=2):
        super().__init__()
        self.loading = nn.Parameter(LOADING[:features].clone())
        self.log_scale = nn.Parameter(torch.tensor(math.log(0.8)))

    def model(self, x, *, u=None, total=None):
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            fn = dist.Normal(h[:, None] * self.loading, 1.0).mask(seen).to_event(1)
            pyro.sample("x", fn, obs=torch.where(seen, x, 0.0))

    def guide(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("h", dist.Normal(torch.full((len(x),), 0.3), self.log_scale.exp()))


def marginal(x):
    """Log density of the observed entries of each row, h integrated out."""
    covariance = torch.eye(2) + LOADING[:, None] * LOADING
    found = torch.zeros(len(x))
    for row, seen in enumerate(~torch.isnan(x)):
        if seen.any():
            normal = dist.MultivariateNormal(torch.zeros(int(seen.sum())), covariance[seen][:, seen])
            found[row] = normal.log_prob(x[row, seen])
    return found


def bound_of(module, draws, x=X, plates=ROW, **kwargs):
    made = Objective(module.model, module.guide, (module,), Weighted(draws, plates))
    made.learn((x,), kwargs)
    return made


def estimates(made, n, x=X, at_once=True, copies=1, **kwargs):
    """Estimates of the bound, each of them the mean over ``copies`` of the rows."""
    x = x.repeat(copies, *(1,) * (x.ndim - 1))
    with torch.no_grad():
        found = [made((x,), kwargs, {}, torch.zeros(0), 1, at_once)[1] for _ in range(n)]
    return torch.stack(found) / copies


def elbo(x):
    """E_q of each term, in closed form."""
    mean, variance = 0.3, 0.64
    seen = ~torch.isnan(x)
    square = (torch.where(seen, x, 0.0) - mean * LOADING) ** 2 + LOADING**2 * variance
    data = torch.where(seen, -0.5 * square - 0.5 * math.log(2 * math.pi), 0.0).sum()
    return data - len(x) * torch.distributions.kl_divergence(dist.Normal(mean, 0.8), dist.Normal(0.0, 1.0))


def close(found, wanted):
    """The mean of estimates is right to five standard errors: a false alarm in two million."""
    error = 5 * float(found.std()) / len(found) ** 0.5
    assert float(found.mean()) == pytest.approx(float(wanted), abs=error)


@pytest.mark.parametrize("at_once", [True, False])
def test_one_draw_gives_the_elbo(at_once):
    close(estimates(bound_of(Linear(), 1), 40, at_once=at_once, copies=100), elbo(X))


def test_the_bound_rises_with_draws_to_the_evidence_of_what_was_observed():
    """With gaps too (MIWAE): each mean is above the last by more than their errors, and 3,000 draws leave .01 nat."""
    found = [estimates(bound_of(Linear(), draws), 25, copies=20) for draws in (1, 4, 16, 64)]
    exact = float(marginal(X).sum())
    means, errors = [float(one.mean()) for one in found], [float(one.std()) / 5 for one in found]
    for low, high, error in zip(means, means[1:], errors, strict=False):
        assert high > low + 3 * error or exact - high < 0.02
    assert float(estimates(bound_of(Linear(), 3000), 5, copies=6).mean()) == pytest.approx(exact, abs=0.03)
    in_turn = estimates(bound_of(Linear(), 16), 10, at_once=False, copies=20)
    assert float(in_turn.mean()) == pytest.approx(means[2], abs=5 * float(in_turn.std()) / 10**0.5 + 5 * errors[2])


def test_a_row_without_an_observation_adds_nothing_on_average():
    """Its weights p(h) / q(h) have mean one: of many draws the logarithm of their mean is zero."""
    assert float(estimates(bound_of(Linear(), 3000, X[3:]), 4, X[3:], copies=10).mean()) == pytest.approx(0.0, abs=0.02)


def test_batches_add_up_to_all_rows():
    made = bound_of(Linear(), 2000, X[:2], total=4)
    parts = [float(estimates(made, 30, part, total=4).mean()) for part in (X[:2], X[2:])]
    assert sum(parts) / 2 == pytest.approx(float(marginal(X).sum()), abs=0.05)


class Shared(nn.Module):
    """theta ~ N(0, 1), h ~ N(0, 1) and x ~ N(theta + h, 1) of each row; q(theta) = N(.2, .3²)."""

    def model(self, x, *, total=None):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(theta + h, 1.0), obs=x)

    def guide(self, x, *, total=None):
        theta = pyro.sample("theta", dist.Normal(0.2, 0.3))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("h", dist.Normal((x - theta) / 2, 0.9))


@pytest.mark.parametrize("total", [None, 9])
def test_what_rows_share_stays_outside_the_logarithm(total):
    """Of many draws: the ELBO of theta alone, with h integrated out; rows of a batch count for all."""
    x = X[:3, 0]
    scale = (total or 3) / 3
    square = (x - 0.2) ** 2 + 0.3**2
    rows = (-square / 4 - 0.5 * math.log(4 * math.pi)).sum()
    exact = scale * rows - torch.distributions.kl_divergence(dist.Normal(0.2, 0.3), dist.Normal(0.0, 1.0))
    kwargs = {} if total is None else {"total": total}
    found = estimates(bound_of(Shared(), 500, x, **kwargs), 150, x, **kwargs)
    assert float(found.mean()) == pytest.approx(float(exact), abs=5 * float(found.std()) / 150**0.5 + 0.005 * scale)


def test_discrete_sites_of_a_row_are_summed_out_inside_the_logarithm():
    class Kinds(nn.Module):
        def model(self, x, *, total=None):
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
                h = pyro.sample("h", dist.Normal(torch.tensor([-2.0, 2.0])[z], 1.0))
                pyro.sample("x", dist.Normal(h, 1.0), obs=x)

        def guide(self, x, *, total=None):
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("h", dist.Normal(x / 2, 2.0))

    x = torch.tensor([-2.5, 0.1, 3.0])
    each = torch.tensor([0.3, 0.7]).log() + dist.Normal(torch.tensor([-2.0, 2.0]), 2**0.5).log_prob(x[:, None])
    for kwargs, scale in (({}, 1.0), ({"total": 12}, 4.0)):
        found = estimates(bound_of(Kinds(), 2000, x, **kwargs), 12, x, **kwargs)
        error = 5 * float(found.std()) / 12**0.5 + 0.005 * scale
        assert float(found.mean()) == pytest.approx(scale * float(each.logsumexp(-1).sum()), abs=error)


def coin(y):
    share = pyro.sample("share", dist.Beta(3.0, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(share), obs=y)


def test_where_rows_own_nothing_whole_draws_are_weighed():
    class Coin(nn.Module):
        def model(self, y):
            coin(y)

        def guide(self, y):
            pyro.sample("share", dist.Beta(2.0, 2.0))

    y = torch.tensor([1.0, 1, 0, 1])
    found = estimates(bound_of(Coin(), 3000, y, frozenset()), 20, y)
    exact = torch.lgamma(torch.tensor([6.0, 3.0, 5.0, 9.0, 3.0, 2.0])) @ torch.tensor([1.0, 1, 1, -1, -1, -1])
    assert float(found.mean()) == pytest.approx(float(exact), abs=0.01)


@pytest.mark.parametrize("batch_size", [pytest.param(None, marks=pytest.mark.slow), 100])
def test_a_decoder_learnt_by_many_draws_is_nearer_the_most_likely_one(batch_size):
    """A guide that knows nothing of its row pulls the loading to zero under the ELBO; 64 draws undo most of it."""
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(400, 1, generator=generator)
    x = h * torch.tensor([2.0, -1.5]) + torch.randn(400, 2, generator=generator)
    x[::5, 1] = torch.nan
    options = {"batch_size": batch_size, "max_steps": 300, "lr": 0.04, "random_seed": 1, "progressbar": False}
    few, many = (
        svi.fit(Linear(), x, bound=bound, particles=particles, **options)
        for bound, particles in (("elbo", 1), ("iwae", 64))
    )
    assert (many.attrs["bound"], many.attrs["compile"]) == ("iwae", "traced")
    assert few.attrs["bound"] == "elbo"
    away = [abs(float(fit.model.loading.detach()[0].abs()) - 2.0) for fit in (few, many)]
    assert away[0] > 0.8
    assert away[1] < 0.3
    assert np.isfinite(many.log_likelihood(x)).all()
    assert "uncertainty" not in set(many.diagnose().table["check"])


def test_programs_of_which_the_bound_would_be_wrong_are_refused():
    class Away(Linear):
        def guide(self, x, *, u=None, total=None):
            pyro.sample("h", dist.Normal(torch.zeros(len(x)), self.log_scale.exp()).to_event(1))

    class Beside(Linear):
        def model(self, x, *, u=None, total=None):
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                h = pyro.sample("h", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(h[:, None], 1.0).to_event(1), obs=torch.nan_to_num(x))
            pyro.factor("penalty", -h.square().sum())

    class Rough(Linear):
        def model(self, x, *, u=None, total=None):
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                z = pyro.sample("z", dist.Bernoulli(0.5))
                pyro.sample("x", dist.Normal(z[:, None], 1.0).to_event(1), obs=torch.nan_to_num(x))

        def guide(self, x, *, u=None, total=None):
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("z", dist.Bernoulli(self.log_scale.exp().expand(len(x)) / 2))

    class Scaled(Linear):
        def model(self, x, *, u=None, total=None):
            with pyro.poutine.scale(scale=0.5):
                super().model(x, u=u, total=total)

    def fit(model, x=X, **options):
        svi.fit(model, x, **({"bound": "iwae", "particles": 3, "max_steps": 2, "progressbar": False} | options))

    for model, message in (
        (Away(), "the guide must draw site 'h' in the plate over rows, as the model does"),
        (Beside(), "needs every site that depends on what a row owns in the plate over rows"),
        (Rough(), "needs draws with a derivative, but site 'z' of the guide has none"),
        (Scaled(), r"needs all sites of a row scaled alike, got \[0.5, 1.0\]"),
    ):
        with pytest.raises(FitError, match=message):
            fit(model)
    with pytest.raises(DataError, match="bound must be one of"):
        fit(Linear(), bound="renyi")


def test_minibatches_of_a_model_whose_rows_own_nothing_are_refused():
    class Centre(Model):
        data_dims = ("row",)
        dims = {}

        def model(self, x, *, u=None, total=None):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = torch.randn(20)
    with pytest.raises(FitError, match="weighs whole draws where rows own no latents, which no minibatch can estimate"):
        svi.fit(Centre(), x, bound="iwae", particles=3, batch_size=5, progressbar=False)
    found = svi.fit(Centre(), x, bound="iwae", particles=8, max_steps=20, progressbar=False)
    assert found.attrs["optimizer"] == "Adam"
