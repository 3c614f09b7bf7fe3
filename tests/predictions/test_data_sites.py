import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.errors import DataError, FileError, FitError
from ppgen.inference import svi
from ppgen.model import Model

U = torch.linspace(-1, 1, 12, dtype=torch.float64)
Y = 0.5 + 1.3 * U


def fitted(program, *args, steps=5, **options):
    return svi.fit(program, *args, max_steps=steps, draws=20, random_seed=0, progressbar=False, **options)


def inputs_first(u, y):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(u)):
        pyro.sample("y", dist.Normal(b * u, 0.5), obs=y)


def data_first(y, u):
    inputs_first(u, y)


@pytest.mark.parametrize("ask", ["log_likelihood", "posterior_predictive", "impute", "diagnose"])
def test_data_given_where_the_program_has_its_inputs_is_refused(ask):
    fit = fitted(inputs_first, U, Y)
    with pytest.raises(FitError, match=r"site 'y' must observe the first argument.*got argument 2.*data first"):
        getattr(fit, ask)(Y)


def test_with_its_own_first_argument_the_density_of_such_a_program_is_right():
    fit, same = fitted(inputs_first, U, Y), fitted(data_first, Y, U)
    assert fit.diagnose(U, random_seed=0).table.equals(same.diagnose(Y, random_seed=0).table)


def test_data_first_may_equal_another_argument():
    assert fitted(data_first, U, U).log_likelihood(U).shape == (12,)


def in_other_units(y, u):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(u)):
        pyro.sample("y", dist.Normal(b * u, 0.5), obs=(y - y.mean()) / 2)


def test_predictions_in_other_units_than_the_data_are_refused():
    with pytest.raises(FitError, match="site 'y' must observe the data that it is asked about, got other values"):
        fitted(in_other_units, Y, U).posterior_predictive(Y)


def square(x, order):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(b, 1.0).expand(x.shape).to_event(1), obs=order(x))


def test_rows_of_square_data_are_never_its_columns():
    x = torch.randn(5, 5, dtype=torch.float64)
    assert fitted(square, x, torch.clone).log_likelihood(x).shape == (5,)
    with pytest.raises(FitError, match=r"'y' must observe x as it is given.*\(transposed\?\) of square data"):
        fitted(square, x, torch.t).log_likelihood(x)


def with_parameter(y, u):
    a = pyro.param("a", torch.tensor(-5.0, dtype=torch.float64))
    s = pyro.param("s", torch.tensor(3.0, dtype=torch.float64), constraint=dist.constraints.positive)
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(u)):
        pyro.sample("y", dist.Normal(a + b * u, s), obs=y)


@pytest.fixture(scope="module")
def learnt():
    return fitted(with_parameter, Y, U, steps=400, lr=0.05)


def test_what_pyro_param_learnt_is_kept_and_used_by_every_answer(learnt):
    assert learnt.params["a"] > -1
    assert 0 < learnt.params["s"] < 1.5
    mean, sd = float(learnt.posterior_predictive(Y, random_seed=0).mean()), float(learnt.params["s"])
    assert abs(mean - float(learnt.params["a"])) < 6 * sd / math.sqrt(500 * 12) + 0.05
    assert float(learnt.log_likelihood(Y).mean()) > -3
    tree = learnt.to_arviz(Y, draws=5)
    assert float(tree["params"]["a"]) == float(learnt.params["a"])


def test_a_function_is_saved_with_its_arguments_and_opened_with_itself(learnt, tmp_path):
    learnt.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit", model=with_parameter)
    assert again.params["s"].equal(learnt.params["s"])
    for ask in ("log_likelihood", "posterior_predictive"):
        one, two = (getattr(fit, ask)(Y, random_seed=1) for fit in (again, learnt))
        assert one.identical(two)
    with pytest.raises(FileError, match="must be the function with_parameter that was fitted, got none"):
        ppgen.load(tmp_path / "fit")
    with pytest.raises(FileError, match="must be the function with_parameter that was fitted, got data_first"):
        ppgen.load(tmp_path / "fit", model=data_first)


def test_a_function_with_other_numbers_around_it_is_another(tmp_path):
    def made(scale, table):
        def line(y):
            mean = pyro.sample("mean", dist.Normal(table.sum(), scale))
            with pyro.plate("row", len(y)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

        return line

    fitted(made(1.0, torch.zeros(3)), torch.zeros(9, dtype=torch.float64)).save(tmp_path / "fit")
    assert ppgen.load(tmp_path / "fit", made(1.0, torch.zeros(3))).attrs["engine"] == "svi"
    with pytest.raises(FileError, match=r"line was fitted with scale=1.0 from around it, got 100.0"):
        ppgen.load(tmp_path / "fit", made(100.0, torch.zeros(3)))
    with pytest.raises(FileError, match="line was fitted with table="):
        ppgen.load(tmp_path / "fit", made(1.0, torch.ones(3)))


def test_arguments_that_no_file_can_hold_are_refused_by_save(tmp_path):
    x = torch.randn(5, 5, dtype=torch.float64)
    with pytest.raises(FileError, match="got builtin_function_or_method as argument 2 of square|argument 2 of square"):
        fitted(square, x, torch.clone).save(tmp_path / "fit")


def fixed_rows(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", 12):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_rows_of_a_program_that_takes_no_others_are_answered_for_the_data_of_the_fit_only(tmp_path, caplog):
    sigma = torch.ones(12, dtype=torch.float64)
    fit = fitted(fixed_rows, Y, sigma)
    assert fit.posterior_predictive(Y).shape == (500, 12)
    with pytest.raises(FitError, match="log_likelihood must be of rows whose own latents are summed out.*'theta'"):
        fit.log_likelihood(Y)
    assert "log_likelihood" not in fit.to_arviz(Y, draws=5)
    assert "the group log_likelihood is left out" in caplog.text
    fit.save(tmp_path / "fit")
    for one in (fit, ppgen.load(tmp_path / "fit", model=fixed_rows)):
        with pytest.raises(FitError, match="x must be the data of the fit, for site 'theta' has a value for each"):
            one.posterior_predictive(Y + 1)


def noncentred(y, sigma):
    mu, e = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("e", dist.Normal(0.0, 1.0))
    b = pyro.deterministic("b", mu + e)
    with pyro.plate("row", len(y)):
        pyro.deterministic("mean", b * sigma)
        pyro.sample("y", dist.Normal(b, sigma), obs=y)


def test_deterministic_values_come_with_the_parameters():
    tree = fitted(noncentred, Y, torch.ones(12, dtype=torch.float64)).to_arviz(Y, draws=6)
    for group in ("posterior", "prior"):
        found = tree[group]
        assert abs(found["b"] - found["mu"] - found["e"]).max() < 1e-12
        assert found["mean"].shape == (*found["b"].shape, 12)


class Filled(dist.Normal):
    """One that says itself how missing entries follow, without a place for a start."""

    def log_prob(self, value):
        return torch.where(torch.isnan(value), 0.0, super().log_prob(torch.nan_to_num(value)))

    def impute(self, x):
        return torch.nan_to_num(x, nan=7.0)


def test_a_distribution_imputes_with_the_data_alone():
    def program(x, index):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("y", Filled(b.expand(len(x)) + (0.0 if b > 9 else 0.0), 1.0), obs=x)  # looks at its values

    x = torch.tensor([0.0, torch.nan], dtype=torch.float64)
    found = fitted(program, x, 1).impute(x, draws=3)
    assert found.values.tolist() == [[0.0, 7.0]] * 3


class Rows(Model):
    data_dims = ("row", "feature")
    dims = {"mu": ()}

    def __init__(self, told):
        super().__init__()
        self.told = told

    def model(self, x, *, u=None, total=None):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 10.0))
        count = total if self.told else None
        with pyro.plate("row", count or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).expand(x.shape).to_event(1), obs=x)


def test_a_minibatch_of_a_model_that_forgets_total_is_refused_with_the_line_to_write():
    x = torch.randn(40, 1, dtype=torch.float64)
    assert fitted(Rows(told=True), x, batch_size=4).attrs["engine"] == "svi"
    with pytest.raises(DataError, match=r"site 'x' must count for all 40 rows.*'row', total or len\(x\), subsample"):
        fitted(Rows(told=False), x, batch_size=4)


class Line(Model):
    data_dims = ("row",)
    dims = {"mu": ()}

    def __init__(self, told):
        super().__init__()
        self.told = told

    def model(self, x, *, u=None, total=None):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 10.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x) if self.told else None):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_data_of_one_axis_come_in_minibatches_too():
    x = torch.randn(40, dtype=torch.float64)
    assert fitted(Line(told=True), x, batch_size=4).attrs["engine"] == "svi"
    with pytest.raises(DataError, match=r"where they are part of the rows, write the plate with `subsample_size=len"):
        fitted(Line(told=False), x, batch_size=4)
