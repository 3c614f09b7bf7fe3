import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.errors import FitError
from ppgen.inference import predictive
from ppgen.model import Model


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
    draws = torch.stack([predictive.impute(Rows(), theta, x) for _ in range(2000)])
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
