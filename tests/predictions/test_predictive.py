import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.errors import FitError
from ppgen.model import Model
from ppgen.predictions import predictive
from ppgen.predictions.predictive import gather
from ppgen.programs.program import Function


class Rows(Model):
    """x[n] ~ N(centre, 1) with a shared centre whose axis lies outside the plate, as a user might write it."""

    data_dims = ("row", "feature")
    dims = {"centre": ("feature",)}

    def __init__(self, likelihood="factorised", plate=True, extra=False):
        super().__init__()
        self.likelihood, self.plate, self.extra = likelihood, plate, extra

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        if self.extra:
            pyro.sample("extra", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * centre)
        seen = ~torch.isnan(x)
        entries = dist.Normal(centre, 1.0).expand(x.shape).mask(seen).to_event(1)
        if self.likelihood == "correlated":
            entries = dist.MultivariateNormal(centre, torch.eye(2, dtype=x.dtype))
        if self.likelihood == "collapsed":
            entries = Coin(centre, x.shape).mask(seen.all(-1))
        if not self.plate:
            pyro.sample("x", entries.to_event(1), obs=torch.nan_to_num(x))
            return
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", entries, obs=torch.nan_to_num(x))


class Coin(dist.TorchDistribution):
    """A collapsed distribution with two latent states, whose probabilities are those of its parameter."""

    arg_constraints = {}
    support = dist.constraints.real_vector

    def __init__(self, centre, shape):
        self.centre = centre
        super().__init__(torch.Size(shape[:1]), torch.Size(shape[1:]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Coin(self.centre, (*batch_shape, *self.event_shape))

    def log_prob(self, x):
        return x.sum(-1)

    def latents(self, x):
        return CoinLatents(self.centre, len(x))


class CoinLatents:
    dims = {"z": ("row", "state"), "z_mode": ("row",), "z_draw": ("row",)}

    def __init__(self, centre, rows):
        self.marginals = {"z": centre.softmax(-1).expand(rows, 2)}
        self.mode = {"z_mode": torch.cat([self.marginals["z"].argmax(-1)[:-1], torch.tensor([-1])])}

    def sample(self):
        return {"z_draw": self.mode["z_mode"]}


@pytest.fixture
def x():
    return torch.tensor([[0.5, -1.0], [torch.nan, 2.0], [torch.nan, torch.nan]], dtype=torch.float64)


@pytest.fixture
def theta():
    return {"centre": torch.tensor([0.2, 1.0], dtype=torch.float64)}


def normal(value):
    return -0.5 * value**2 - 0.5 * math.log(2 * math.pi)


def test_the_likelihood_of_a_row_is_that_of_what_was_seen_of_it(x, theta):
    expected = [normal(0.3) + normal(-2.0), normal(1.0), 0.0]
    torch.testing.assert_close(predictive.log_likelihood(Rows(), theta, x), torch.tensor(expected, dtype=x.dtype))


def test_the_joint_is_prior_times_likelihood(x, theta):
    expected = normal(0.2) + normal(1.0) + predictive.log_likelihood(Rows(), theta, x).sum()
    torch.testing.assert_close(predictive.log_joint(Rows(), theta, x), expected)


def test_imputation_keeps_observed_entries_and_draws_the_others_from_the_model(x, theta):
    draws = gather(lambda one: predictive.impute(Rows(), one, x), {"centre": theta["centre"].expand(2000, 2)})
    assert (draws[:, ~x.isnan()] == x[~x.isnan()]).all()
    score = (draws[:, 1, 0] - 0.2).mean() * 2000**0.5
    assert abs(score) < 4.4  # false-alarm rate 1e-5
    assert abs(draws[:, 1, 0].var() - 1) < 4.4 * (2 / 2000) ** 0.5


def test_entries_that_depend_on_each_other_are_not_imputed_one_by_one(x, theta):
    with pytest.raises(FitError, match=r"Rows: the distribution of the data must say how.*got MultivariateNormal"):
        predictive.impute(Rows("correlated"), theta, x)


@pytest.mark.parametrize(
    ("model", "theta", "message"),
    [
        (Rows(extra=True), {"centre": torch.zeros(2)}, r"must hold every latent site, \['extra'\] not among"),
        (Rows(), {"centre": torch.zeros(4)}, r"'centre' must have shape \(2,\) for this data, got \(4,\)"),
        (Rows(plate=False), {"centre": torch.zeros(2)}, r"sampled in a plate over its 3 rows, found none"),
    ],
)
def test_a_posterior_that_does_not_fit_the_model_is_refused(model, theta, message, x):
    with pytest.raises(FitError, match=message):
        predictive.log_likelihood(model, {site: value.double() for site, value in theta.items()}, x)


def test_a_model_without_time_has_no_forecast_and_without_sums_no_latents(x, theta):
    with pytest.raises(FitError, match="forecast needs a distribution over time series, got Independent"):
        predictive.forecast(Rows(), theta, x, 3)
    with pytest.raises(FitError, match="has no summed-out latents"):
        predictive.latents(Rows(), {"centre": theta["centre"][None]}, x)


def test_latents_are_found_through_wrappers_and_averaged_over_draws(x):
    draws = {"centre": torch.tensor([[0.0, 3.0], [1.0, 0.0], [1.0, 0.0]], dtype=x.dtype)}
    found = predictive.latents(Rows("collapsed"), draws, x, 7)
    average = draws["centre"].softmax(-1).mean(0)
    torch.testing.assert_close(found.values["z"], average.expand(3, 2))
    assert found.values["z_mode"].tolist() == [average.argmax(), average.argmax(), -1]
    assert found.draws["z_draw"][:, 0].tolist() == [1, 1, 1, 0, 0, 0, 0]


def test_one_draw_keeps_the_mode_of_its_distribution(x):
    found = predictive.latents(Rows("collapsed"), {"centre": torch.tensor([[0.0, 3.0]], dtype=x.dtype)}, x)
    assert found.values["z_mode"].tolist() == [1, 1, -1]


def test_predictions_leave_the_parameter_store_and_settings_alone(x, theta):
    pyro.param("mine", torch.ones(1))
    before = dict(pyro.get_param_store()), pyro.settings.get("module_local_params")
    predictive.replicate(Rows(), theta, x)
    predictive.prior(Rows(), x)
    assert (dict(pyro.get_param_store()), pyro.settings.get("module_local_params")) == before


def test_the_end_of_a_sequence_is_its_last_observation_only_where_there_is_time(x):
    class Series(Rows):
        data_dims = ("sequence", "time")

    gap = torch.tensor([[1.0, torch.nan, 2.0, torch.nan], [torch.nan] * 4])
    assert predictive.exists(Series(), gap).tolist() == [[True, True, True, False], [False] * 4]
    assert predictive.exists(Rows(), gap).all()
    assert predictive.missing_share(Series(), gap) == pytest.approx(1 / 3)


class Bent(Model):
    """x[n] ~ N(beta[0] + beta[1] u[n], noise) as a user indexes it: an event dim outside the plate.

    Broadcasting draws to the left of the plates, as Pyro's parallel predictive does, makes beta[0] the first draw.
    """

    data_dims = ("row",)
    dims = {"beta": ("coefficient",), "shift": ("group", "coefficient")}

    def model(self, x, *, u=None, total=None):
        beta = pyro.sample("beta", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        shift = pyro.sample("shift", dist.Normal(x.new_zeros(3, 2), 1.0).to_event(2))
        with pyro.plate("row", len(x)):
            slope = beta[1] + shift[1, 0] + shift[2].sum()
            pyro.sample(
                "x", dist.Normal(beta[0] + slope * u[:, 0], 1e-6).mask(~torch.isnan(x)), obs=torch.nan_to_num(x)
            )


class Crossed(Model):
    """Effects of rows and of columns in plates of their own, and a scale in neither."""

    data_dims = ("row", "column")
    dims = {"scale": (), "tall": ("row",), "wide": ("column",)}

    def model(self, x, *, u=None, total=None):
        scale = pyro.sample("scale", dist.HalfCauchy(x.new_ones(())))
        rows, columns = pyro.plate("row", x.shape[0], dim=-2), pyro.plate("column", x.shape[1], dim=-1)
        with rows:
            tall = pyro.sample("tall", dist.Normal(x.new_zeros(()), scale))
        with columns:
            wide = pyro.sample("wide", dist.Laplace(x.new_zeros(()), scale))
        with rows, columns:
            entry = dist.Normal(tall + wide, scale).mask(~torch.isnan(x))
            pyro.sample("x", entry, obs=torch.nan_to_num(x))


def plain(x, scale):
    """A user's own function: a correlated location outside the plate, counts of events in it."""
    rate = pyro.sample("rate", dist.MultivariateNormal(torch.zeros(2).to(x), torch.eye(2).to(x)))
    with pyro.plate("data", len(x)):
        pyro.sample("obs", dist.Poisson((scale * rate).exp()).to_event(1), obs=x)


def looped(answer, draws):
    count = len(next(iter(draws.values())))
    return torch.stack([answer(predictive.at(draws, index)) for index in range(count)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["rows", "bent", "crossed", "plain"])
def test_densities_for_all_draws_at_once_are_those_of_each(kind, dtype):
    x = torch.randn(5, 4 if kind == "crossed" else 2, dtype=dtype)
    x[1, 0] = torch.nan
    u = torch.randn(5, 1, dtype=dtype)
    model = {"rows": Rows(), "bent": Bent(), "crossed": Crossed()}.get(kind) or Function(plain, (x, 0.5))
    x = {"bent": x[:, 0], "plain": torch.randint(4, (5, 2)).to(dtype)}.get(kind, x)
    draws = predictive.priors(model, x, 9, u=u)
    for function in (predictive.log_likelihood, predictive.log_joint):
        found = gather(lambda theta, f=function: f(model, theta, x, u=u), draws)
        expected = looped(lambda theta, f=function: f(model, theta, x, u=u), draws)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found, expected, **({} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12})
        )
    assert gather(lambda theta: predictive.replicate(model, theta, x, u=u), draws).dtype == dtype


@pytest.mark.parametrize("rows", [2, 5])
def test_event_dims_outside_plates_stay_those_of_one_draw(rows):
    """Against the formula: each replicate lies on the line of its own draw, to within 6 of its 1e-6.

    With as many rows as coefficients, Pyro's parallel predictive is wrong here by whole units, and does not say so.
    """
    u, x = torch.linspace(-1, 1, rows).double()[:, None], torch.zeros(rows).double()
    draws = predictive.priors(Bent(), x, 50, u=u)
    slope = draws["beta"][:, 1] + draws["shift"][:, 1, 0] + draws["shift"][:, 2].sum(-1)
    line = draws["beta"][:, :1] + slope[:, None] * u[:, 0]
    for ask in (predictive.replicate, predictive.impute):
        data = x if ask is predictive.replicate else torch.full_like(x, torch.nan)
        found = gather(lambda theta, ask=ask, data=data: ask(Bent(), theta, data, u=u), draws)
        assert (found - line).abs().max() < 6e-6
        assert ((found - line)[:, 1:] != (found - line)[:, :-1]).all()  # noise of its own everywhere


def test_priors_are_draws_of_the_prior():
    """Moments of N(0, 1), of a half-Cauchy's logarithm (0, pi^2/4), |z| < 4.9: false-alarm rate 1e-5 in all."""
    draws = predictive.priors(Crossed(), torch.zeros(3, 2).double(), 4000)
    assert {site: tuple(value.shape) for site, value in draws.items()} == {
        "scale": (4000,),
        "tall": (4000, 3, 1),
        "wide": (4000, 2),
    }
    log_scale, tall = draws["scale"].log(), draws["tall"][..., 0] / draws["scale"][:, None]
    wide = draws["wide"] / draws["scale"][:, None]
    for value, variance in ((log_scale, math.pi**2 / 4), (tall, 1.0), (wide, 2.0)):
        assert (value.mean(0).abs() < 4.9 * (variance / 4000) ** 0.5).all()
        square = value**2
        assert ((square.mean(0) - variance).abs() < 4.9 * square.std(0) / 4000**0.5).all()


def test_a_plate_that_takes_a_part_of_its_rows_is_refused_in_words():
    def minibatch(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])

    model, x = Function(minibatch, (torch.zeros(5),)), torch.zeros(5)
    with pytest.raises(FitError, match=r"Function: plate 'data' must run over all its 5 rows to predict them, got 2"):
        gather(lambda theta: predictive.log_likelihood(model, theta, x), {"mean": torch.zeros(3)})


def test_a_program_that_looks_at_its_values_gives_the_same_densities():
    class Branching(Rows):
        def model(self, x, *, u=None, total=None):
            centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            width = x.new_tensor(1.0 if centre[0] > 0 else 2.0)
            with pyro.plate("row", len(x)):
                pyro.sample("x", dist.Normal(centre, width).to_event(1), obs=x)

    x = torch.randn(4, 2).double()
    centre = torch.randn(6, 2).double()
    found = gather(lambda theta: predictive.log_likelihood(Branching(), theta, x), {"centre": centre})
    width = torch.where(centre[:, :1, None] > 0, x.new_tensor(1.0), x.new_tensor(2.0))
    score = normal((x[None] - centre[:, None]) / width) - width.log()
    torch.testing.assert_close(found, score.sum(-1), rtol=1e-12, atol=1e-12)
