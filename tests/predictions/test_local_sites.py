"""Latents that each row owns: answers for the rows of the fit, for others, and for another number of them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import ppgen
from ppgen.distributions import observed
from ppgen.errors import DataError, FitError
from ppgen.inference import mcmc, svi
from ppgen.model import Model
from ppgen.predictions import local_sites, proposals, row_modes, weights
from ppgen.programs.rows import row_sites

NOISE = 0.5
LOADINGS = torch.tensor([[0.9, -0.4, 1.2, 0.3, 0.0], [0.2, 1.1, -0.5, 0.7, 1.0]], dtype=torch.float64)


class Linear(Model):
    """Factor analysis as a linear autoencoder: h ~ N(0, I), x ~ N(W h + b, NOISE²), so that every answer is known."""

    data_dims = ("row", "feature")
    dims = {"h": ("row", "latent")}

    def __init__(self, features=5, latent=2):
        super().__init__()
        self.features, self.latent = features, latent
        self.decoder = nn.Linear(latent, features).double()
        self.encoder = nn.Linear(2 * features, 2 * latent).double()

    @property
    def config(self):
        return {"features": self.features, "latent": self.latent}

    def model(self, x, *, u=None, total=None):
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(len(x), self.latent), 1.0).to_event(1))
            noise = dist.Normal(self.decoder(h), NOISE).mask(seen)
            pyro.sample("x", noise.to_event(1), obs=torch.where(seen, x, 0.0))

    def guide(self, x, *, u=None, total=None):
        seen = ~torch.isnan(x)
        mean, log_scale = self.encoder(torch.cat([torch.where(seen, x, 0.0), seen.to(x)], -1)).chunk(2, -1)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("h", dist.Normal(mean, log_scale.exp()).to_event(1))


def simulated(rows, seed, missing=0.1):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    x = h @ LOADINGS + NOISE * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(x.shape, generator=generator) < missing, torch.nan, x)


def parts(model):
    weight, bias = model.decoder.weight.detach(), model.decoder.bias.detach()
    return weight, bias, weight @ weight.T + NOISE**2 * torch.eye(len(bias), dtype=torch.float64)


def exact_likelihood(model, x):
    _, bias, covariance = parts(model)
    found = torch.zeros(len(x), dtype=torch.float64)
    for row, seen in enumerate(~torch.isnan(x)):
        if seen.any():
            found[row] = MultivariateNormal(bias[seen], covariance[seen][:, seen]).log_prob(x[row, seen])
    return found


def exact_gap(model, row):
    """Mean and covariance of the missing entries of a row, given the others."""
    _, bias, covariance = parts(model)
    seen = ~torch.isnan(row)
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, ~seen]).T
    return bias[~seen] + gain @ (row - bias)[seen], covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]


X = simulated(200, 0)


def fitted(model, *args, engine=svi, **options):
    settings = {"max_steps": 1500, "lr": 0.02, "early_stopping": False, "schedule": "cosine", "draws": 100}
    options = (settings if engine is svi else {}) | options
    return engine.fit(model, *args, random_seed=0, progressbar=False, **options)


@pytest.fixture(scope="module")
def amortised():
    return fitted(Linear(), X)


@pytest.fixture(scope="module")
def alone(amortised):
    """The same decoder, and a guide that knows the rows of the fit alone."""
    return fitted(amortised.model, X, guide="mean_field", max_steps=200, draws=20)


@pytest.fixture(params=["amortised", "alone"])
def fit(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("rows", [*(pytest.param(n, marks=pytest.mark.slow) for n in (200, 201, 7)), 1])
def test_likelihoods_are_exact_for_any_rows(fit, rows):
    """Within .02 nats of each row, the mean within .01."""
    x = simulated(rows, 1)
    off = torch.tensor(fit.log_likelihood(x, random_seed=0).values) - exact_likelihood(fit.model, x)
    assert float(off.abs().max()) < 0.02
    assert abs(float(off.mean())) < 0.01


def test_likelihoods_of_the_rows_of_the_fit_are_exact(fit):
    found = fit.log_likelihood(X, random_seed=0)
    off = torch.tensor(found.values) - exact_likelihood(fit.model, X)
    assert float(off.abs().max()) < 0.03
    assert abs(float(off.mean())) < 0.002
    assert "weighted proposals" in found.attrs["log_likelihood"]


def test_latents_of_new_rows_are_their_posterior(fit):
    x = simulated(6, 2)
    found = fit.latents(x, draws=2000, random_seed=0)
    weight, bias, _ = parts(fit.model)
    for row in range(6):
        seen = ~torch.isnan(x[row])
        precision = torch.eye(2, dtype=torch.float64) + weight[seen].T @ weight[seen] / NOISE**2
        mean = torch.linalg.solve(precision, weight[seen].T @ (x[row] - bias)[seen] / NOISE**2)
        spread = precision.inverse().diagonal().sqrt()
        torch.testing.assert_close(torch.tensor(found.h.values[row]), mean, atol=0.1 * float(spread.max()), rtol=0)
        drawn = torch.tensor(found.h_draw.values[:, row])
        torch.testing.assert_close(drawn.std(0), spread, rtol=0.1, atol=0)
        torch.testing.assert_close(drawn.mean(0), mean, atol=0.15 * float(spread.max()), rtol=0)
    assert found.h.dims == ("row", "latent")
    assert found.h_draw.dims == ("draw", "row", "latent")


def test_gaps_of_new_rows_are_drawn_given_the_rest(fit):
    x = simulated(4, 3, missing=0.0)
    x[0, 1:3] = x[2, 4] = torch.nan
    drawn = torch.tensor(fit.impute(x, draws=3000, random_seed=0).values)
    for row in (0, 2):
        mean, covariance = exact_gap(fit.model, x[row])
        gaps = drawn[:, row, torch.isnan(x[row])]
        spread = covariance.diagonal().sqrt()
        assert bool(((gaps.mean(0) - mean).abs() < 0.12 * spread).all())
        torch.testing.assert_close(torch.cov(gaps.T).reshape(covariance.shape), covariance, rtol=0.15, atol=0.02)
    assert drawn[:, 1].equal(x[1].expand(3000, 5))


def test_new_rows_are_replicated_from_the_prior_of_what_they_own(amortised):
    drawn = torch.tensor(amortised.posterior_predictive(simulated(3, 4), draws=6000, random_seed=0).values)
    _, bias, covariance = parts(amortised.model)
    torch.testing.assert_close(drawn[:, 1].mean(0), bias, atol=0.12, rtol=0)
    torch.testing.assert_close(torch.cov(drawn[:, 1].T), covariance, atol=0.15, rtol=0.1)


def test_a_guide_that_reads_rows_leaves_none_of_their_values_in_the_fit(amortised, alone):
    assert not amortised.posterior.sites
    assert amortised.posterior.size == 100
    assert alone.posterior.sites["h"].shape == (1, 20, 200, 2)


def test_its_report_and_its_tree_are_about_the_rows_they_are_given(amortised):
    x = simulated(40, 5)
    assert "Pareto k-hat of rows" in amortised.diagnose(x, random_seed=0).table["check"].values
    tree = amortised.to_arviz(x, random_seed=0)
    assert tree["posterior"]["h"].shape == (1, 100, 40, 2)
    assert tree["log_likelihood"]["x"].shape == (1, 100, int((~torch.isnan(x)).any(1).sum()))
    assert amortised.to_arviz()["posterior"].to_dataset().sizes == {} or "h" not in amortised.to_arviz()["posterior"]


def test_a_saved_fit_answers_the_same(amortised, tmp_path):
    amortised.save(tmp_path / "fit")
    again, x = ppgen.load(tmp_path / "fit", model=Linear), simulated(9, 6)
    for ask in ("log_likelihood", "impute", "latents"):
        assert getattr(again, ask)(x, random_seed=1).identical(getattr(amortised, ask)(x, random_seed=1))


def test_a_guide_from_elsewhere_is_not_saved_which_is_said(tmp_path, caplog):
    model = Linear()
    fit = fitted(model, X, guide=Linear().guide, max_steps=20)
    assert fit.log_likelihood(simulated(3, 7)).shape == (3,)
    fit.save(tmp_path / "fit")
    assert "the guide of Linear is not its own and is not saved" in caplog.text
    with pytest.raises(FitError, match="it was not saved, since it is not a method of the model"):
        ppgen.load(tmp_path / "fit", model=Linear).log_likelihood(simulated(3, 7))


def schools(y, sigma):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_what_rows_own_is_integrated_out_at_every_draw_of_what_they_share():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)
    fit = fitted(schools, y, sigma, engine=mcmc, draws=50, chains=16)
    theta = fit.posterior.draws(200)
    for data in (y, y.flip(0) + 3):
        exact = dist.Normal(theta["mu"][:, None], (theta["tau"][:, None] ** 2 + sigma**2).sqrt()).log_prob(data)
        found = torch.tensor(fit.log_likelihood(data, random_seed=0).values)
        torch.testing.assert_close(found, exact.logsumexp(0) - math.log(200), atol=0.02, rtol=0)
    shrunk = theta["tau"][:, None] ** 2 / (theta["tau"][:, None] ** 2 + sigma**2)
    mean = (theta["mu"][:, None] * (1 - shrunk) + shrunk * (y + 3)).mean(0)
    torch.testing.assert_close(torch.tensor(fit.latents(y + 3, random_seed=0).theta.values), mean, atol=0.15, rtol=0)


class Counts(Model):
    """A rate per row, beside a switch that is summed out: counts are a mixture of two negative binomials."""

    data_dims = ("row",)
    dims = {"share": (), "rate": ("row",)}
    config = {}

    def model(self, x, *, u=None, total=None):
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Bernoulli(share))
            rate = pyro.sample("rate", dist.Gamma(3.0, torch.where(z > 0, 0.2, 2.0)))
            pyro.sample("x", dist.Poisson(rate).mask(seen), obs=torch.where(seen, x, 0.0))


def test_positive_latents_of_rows_beside_discrete_ones_are_integrated_out():
    x = torch.tensor([0.0, 1, 3, 12, 20, 2, 15, math.nan, 1, 9], dtype=torch.float64)
    fit = fitted(Counts(), x, engine=mcmc, draws=60, chains=16)
    share = fit.posterior.draws(200)["share"]
    new = torch.tensor([0.0, 4.0, 17.0, math.nan], dtype=torch.float64)
    terms = [dist.GammaPoisson(torch.tensor(3.0).double(), b).log_prob(new.nan_to_num()) for b in (2.0, 0.2)]
    exact = torch.logaddexp((1 - share)[:, None].log() + terms[0], share[:, None].log() + terms[1])
    exact = (exact.logsumexp(0) - math.log(200)).where(~torch.isnan(new), 0.0)
    found = torch.tensor(fit.log_likelihood(new, random_seed=0).values)
    torch.testing.assert_close(found, exact, atol=0.04, rtol=0)


class Grid(Model):
    """A value per row and column, rows on the left: h ~ N(0, 1), x ~ N(h, 1), so that x ~ N(0, 2)."""

    data_dims = ("row", "feature")
    dims = {"h": ("row", "feature")}
    config = {}

    def model(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x), dim=-2), pyro.plate("column", 3, dim=-1):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(h, 1.0), obs=x)


def test_rows_may_be_any_axis_of_a_grid_of_plates():
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert row_sites(Grid(), x, None)["h"].axis == -2
    fit = fitted(Grid(), x, guide="mean_field", max_steps=50, draws=10)
    for data in (x, torch.cat([x, x + 1])):
        exact = dist.Normal(0.0, math.sqrt(2)).log_prob(data).sum(-1)
        torch.testing.assert_close(torch.tensor(fit.log_likelihood(data).values), exact, atol=0.02, rtol=0)


class Wide(Linear):
    """More than is searched, and no guide but by name."""

    def __init__(self):
        super().__init__(latent=65)

    def guide(self, x, *, u=None, total=None):
        raise NotImplementedError


def test_rows_that_own_much_need_a_guide_that_reads_them():
    fit = fitted(Wide(), X[:20], guide="mean_field", max_steps=5, draws=5)
    with pytest.raises(FitError, match=r"rows that own 65 numbers \(h\) must have a guide that reads them"):
        fit.log_likelihood(X[:20])


class Declared(Linear):
    """A guide whose scale is a parameter of Pyro's."""

    def guide(self, x, *, u=None, total=None):
        scale = pyro.param("scale", torch.tensor(3.0, dtype=torch.float64), constraint=dist.constraints.positive)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("h", dist.Normal(self.encoder(torch.nan_to_num(x).repeat(1, 2))[:, :2], scale).to_event(1))


def test_what_pyro_param_learnt_in_a_guide_is_kept(tmp_path):
    fit = fitted(Declared(), X, max_steps=300)
    assert float(fit.model.__dict__["_memory"].guide_params["scale"]) < 1.5
    fit.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit", model=Declared)
    x = simulated(5, 8)
    assert again.log_likelihood(x, random_seed=0).identical(fit.log_likelihood(x, random_seed=0))


class Shared(Model):
    """A mean that rows share beside a value of each, both drawn by one guide."""

    data_dims = ("row",)
    dims = {"mean": (), "h": ("row",)}
    config = {}

    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(1).double())
        self.slope = nn.Parameter(torch.zeros(1).double())

    def model(self, x, *, u=None, total=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(h, 0.5), obs=x)

    def guide(self, x, *, u=None, total=None):
        mean = pyro.sample("mean", dist.Normal(self.centre[0], 0.1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("h", dist.Normal(mean + self.slope * (x - mean), 0.45))


def test_a_guide_proposes_given_what_rows_share():
    x = 2 + 1.1 * torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fit = fitted(Shared(), x, max_steps=600)
    assert set(fit.posterior.sites) == {"mean"}
    mean = fit.posterior.draws(100)["mean"]
    new = x[:5] - 1
    exact = dist.Normal(mean[:, None], math.sqrt(1.25)).log_prob(new).logsumexp(0) - math.log(100)
    found = torch.tensor(fit.log_likelihood(new, draws=100, random_seed=0).values)
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)
    assert fit.diagnose(x, random_seed=0).table is not None


class Blind(Linear):
    """Observes nothing."""

    def model(self, x, *, u=None, total=None):
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    def guide(self, x, *, u=None, total=None):
        pyro.sample("mean", dist.Normal(self.encoder.bias[0], 1.0))


@pytest.mark.parametrize("engine", [svi, mcmc])
def test_a_model_that_observes_nothing_is_refused(engine):
    with pytest.raises(DataError, match="the program of Blind must observe its data, got latent sites only"):
        fitted(Blind(), X, engine=engine)


@pytest.mark.parametrize(("scale", "centre"), [(1e-3, 0.0), (1e4, 5e4)])
def test_what_rows_own_may_be_in_any_units(scale, centre):
    def steps(y):
        with pyro.plate("row", len(y)):
            h = pyro.sample("h", dist.Normal(centre, scale))
            pyro.sample("y", dist.Normal(h, scale / 2), obs=y)

    y = centre + scale * torch.linspace(-2, 3, 9, dtype=torch.float64)
    fit = fitted(steps, y, guide="mean_field", max_steps=20, draws=10)
    exact = dist.Normal(centre, scale * math.sqrt(1.25)).log_prob(y)
    torch.testing.assert_close(torch.tensor(fit.log_likelihood(y).values), exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("mean", [0.0, 0.2])
def test_rows_with_two_modes_are_answered_by_both(mean):
    """y is near h squared, so that h and -h are both likely; exact by a fine grid."""

    def squares(y):
        with pyro.plate("row", len(y)):
            h = pyro.sample("h", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(h.square(), 0.1), obs=y)

    y = torch.tensor([4.0, 1.0, 0.3, 9.0, 0.05], dtype=torch.float64)
    grid = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    joint = dist.Normal(mean, 1.0).log_prob(grid) + dist.Normal(grid.square(), 0.1).log_prob(y[:, None])
    exact = joint.logsumexp(-1) + math.log(float(grid[1] - grid[0]))
    fit = fitted(squares, y, guide="mean_field", max_steps=20, draws=10)
    new = y.flip(0)
    found = torch.tensor(fit.log_likelihood(new, random_seed=0).values)
    torch.testing.assert_close(found, exact.flip(0), atol=0.05, rtol=0)
    above = torch.tensor((fit.latents(new, draws=2000, random_seed=0).h_draw.values > 0).mean(0))
    share = (joint.softmax(-1) * (grid > 0)).sum(-1).flip(0)
    torch.testing.assert_close(above, share, atol=0.08, rtol=0)


class Driven(Linear):
    """What a row owns is added to its input."""

    def model(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", observed(dist.Normal((u[:, 0] + h)[:, None], 0.5).expand(x.shape).to_event(1)), obs=x)

    dims = {"h": ("row",)}


def test_the_same_rows_with_other_inputs_own_other_values():
    """h given x and u is N(20 mean(x - u) / 21, 1/21), with five features of precision 4."""
    u = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    x = u.expand(30, 5) + 0.3
    fit = fitted(Driven(), x, u=u, guide="mean_field", max_steps=300, draws=200)
    for shift in (0.0, 3.0):
        found = torch.tensor(fit.latents(x, u=u + shift, random_seed=0).h.values)
        torch.testing.assert_close(found, torch.full((30,), (0.3 - shift) * 20 / 21).double(), atol=0.1, rtol=0)


def test_draws_of_the_rows_of_a_fit_are_no_record_of_other_rows(alone):
    """As many other rows: the density of the fit's values there would be a number, and mean nothing."""
    for ask in (alone.diagnose, alone.to_arviz):
        with pytest.raises(
            FitError, match="x must be the data of the fit, for site 'h' has a value for each of its rows"
        ):
            ask(simulated(200, 9))


def test_the_search_of_rows_that_share_nothing_is_made_once(alone, monkeypatch):
    made = []
    monkeypatch.setattr(proposals, "peaks", lambda *args: made.append(1) or row_modes.peaks(*args))
    alone.impute(simulated(6, 9), draws=50, random_seed=0)
    alone.latents(simulated(6, 9), random_seed=0)
    assert len(made) == 2


def test_gaps_of_the_rows_of_a_fit_are_filled_by_the_inputs_they_are_given():
    """Four seen features say h = 16 (0.3 - shift) / 17 on average, and the gap is u + shift + h."""
    u = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    x = u.expand(30, 5) + 0.3
    x[:, 2] = torch.nan
    fit = fitted(Driven(), x, u=u, guide="mean_field", max_steps=300, draws=200)
    for shift in (0.0, 3.0):
        found = torch.tensor(fit.impute(x, u=u + shift, draws=400, random_seed=0).values)[:, :, 2].mean(0)
        torch.testing.assert_close(found, u[:, 0] + shift + (0.3 - shift) * 16 / 17, atol=0.2, rtol=0)


def test_a_row_without_observations_has_a_density_of_one(fit):
    x = simulated(4, 10)
    x[1] = torch.nan
    found = fit.log_likelihood(x, random_seed=0).values
    assert found[1] == 0
    assert (found[[0, 2, 3]] != 0).all()


def test_means_of_latents_are_those_of_all_proposals(amortised):
    """Squared errors in units of the posterior variance: 1/1024 at the least, 1/200 of 200 resampled draws."""
    x = simulated(200, 11, missing=0.0)
    found = torch.tensor(amortised.latents(x, random_seed=0).h.values)
    weight, bias, _ = parts(amortised.model)
    precision = torch.eye(2, dtype=torch.float64) + weight.T @ weight / NOISE**2
    off = found - torch.linalg.solve(precision, weight.T @ (x - bias).T / NOISE**2).T
    assert float(((off @ precision) * off).sum(-1).mean()) / 2 < 0.0025


class Lost(Linear):
    """A guide that proposes far from where every row's own values lie, and is not helped: rows own 18 numbers."""

    def __init__(self):
        super().__init__(latent=18)

    def guide(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            far = 3.0 + 1e-3 * self.encoder.bias[:18].expand(len(x), -1)
            pyro.sample("h", dist.Normal(far, 0.3).to_event(1))


def test_rows_whose_proposals_hardly_count_are_said(fit, caplog):
    fit.log_likelihood(simulated(6, 12), random_seed=0)
    fit.impute(simulated(6, 12), 20, random_seed=0)
    assert "rough" not in caplog.text
    lost = fitted(Lost(), X[:20], max_steps=1)
    for ask, draws in (("log_likelihood", 4), ("impute", 4), ("latents", 0)):
        caplog.clear()
        getattr(lost, ask)(X[:6], draws, random_seed=0)
        assert f"{ask}: of 6 of 6 rows fewer than 5 of the" in caplog.text
    caplog.clear()
    lost.posterior_predictive(X[:6], 4, random_seed=0)
    assert "rough" not in caplog.text


def test_proposals_that_hardly_count_are_said_where_rows_share_something(caplog):
    """Then they are weighed at every draw of what rows share, all mapped at once."""

    def shift(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            h = pyro.sample("h", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(h, 0.5), obs=y)

    y = torch.linspace(-1, 1, 7, dtype=torch.float64)
    fit = fitted(shift, y, guide="mean_field", max_steps=20, draws=10)
    fit.log_likelihood(y + 1, random_seed=0)
    assert "rough" not in caplog.text
    even, odd = torch.zeros(9, 2), torch.zeros(9, 2)
    odd[0, 1] = 50.0  # of the second row
    for draws in ([even, odd], [odd, odd]):
        assert "rough" not in caplog.text  # the second row is served well by every other draw
        with weights.watched("here"):
            torch.func.vmap(lambda one: weights.noted(one) or one, in_dims=2)(torch.stack(draws, 2))
    assert "here: of 1 of 2 rows fewer than 5 of the 9 values count" in caplog.text


def test_proposals_keep_no_graph_and_are_bounded_where_rows_share_nothing(amortised, monkeypatch):
    """A thousand draws proposed 64,000 values a row, and kept what each layer had computed of them."""
    counts = []
    weighed = local_sites.Local.weighed

    def counted(self, n):
        found = weighed(self, n)
        counts.append(n)
        assert not found.log_weight.requires_grad
        return found

    monkeypatch.setattr(local_sites.Local, "weighed", counted)
    amortised.log_likelihood(X[:3], draws=1000, random_seed=0)
    amortised.log_likelihood(X[:3], draws=7000, random_seed=0)
    amortised.log_likelihood(X[:3], draws=10, random_seed=0)
    assert counts == [5000, 7000, 640]
