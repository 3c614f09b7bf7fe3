"""Plates over rows are known by name: a plate over columns or groups may be as long as there are rows, by chance."""

import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.distributions import observed
from ppgen.model import Model
from ppgen.predictions.local_sites import remember_rows
from ppgen.programs import task
from ppgen.programs.memory import memory
from ppgen.programs.rows import at_rows
from ppgen.results import Draws, fit_result

D = 3
FAR = 4.9  # standard errors: false-alarm rate 1e-6 each


def fitted(model, draws, *args):
    """A fit of known draws, read as engines read."""
    given = task.read("test", model, args, None)
    posterior = Draws({name: torch.as_tensor(value).double()[None] for name, value in draws.items()})
    table = pd.DataFrame({"draw": [0]})
    return fit_result(given.model, posterior, table, {"engine": "test"}, given.model.observations(args[0]))


def normal(x, mean, scale=1.0):
    return dist.Normal(mean, scale).log_prob(x)


class Kinds(Model):
    """Each column is of one kind: its mean is m, or -m."""

    data_dims = ("row", "feature")
    dims = {"m": ()}
    config = {}

    def model(self, x, *, u=None, total=None):
        m = pyro.sample("m", dist.Normal(x.new_tensor(1.0), 0.1))
        columns = pyro.plate("column", D, dim=-1)
        with columns:
            z = pyro.sample("z", dist.Bernoulli(x.new_tensor(0.5)))
        with pyro.plate("row", total or len(x), subsample_size=len(x), dim=-2), columns:
            pyro.sample("x", observed(dist.Normal((2 * z - 1) * m, 2.0)), obs=x)


@pytest.mark.parametrize("rows", [D, D + 2])
def test_a_discrete_site_of_each_column_is_shared_by_rows_of_any_number(rows):
    """Each draw's likelihood is that of one kind for each column; a replicated column's mean is between: |z| < 4.9."""
    x = torch.randn(rows, D, generator=torch.Generator().manual_seed(0)).double() + torch.tensor([1.0, -1.0, 0.0])
    fit = fitted(Kinds(), {"m": torch.ones(4000)}, x)
    scores = torch.stack([normal(x, sign, 2.0) for sign in (-1.0, 1.0)])  # (kind, row, column)
    share = scores.sum(1).softmax(0)
    every = torch.cartesian_prod(*[torch.arange(2)] * D)
    of_kinds = torch.stack([scores[kinds, :, torch.arange(D)].sum(0) for kinds in every])  # (2^D, row)
    weight = torch.stack([share[kinds, torch.arange(D)].prod() for kinds in every])
    exact = (weight[:, None].log() + of_kinds).logsumexp(0)
    spread = ((weight[:, None] * of_kinds.exp() ** 2).sum(0) / exact.exp() ** 2 - 1).clamp_min(0).sqrt()
    found = torch.tensor(fit.log_likelihood(x, draws=4000, random_seed=0).values)
    assert ((found - exact).abs() < FAR * spread / 4000**0.5 + 1e-9).all()
    drawn = torch.tensor(fit.posterior_predictive(x, draws=4000, random_seed=0).values).mean((0, 1))
    error = ((4 / rows + 4 * share[0] * share[1]) / 4000).sqrt()
    assert ((drawn - (share[1] - share[0])).abs() < FAR * error).all()


class Columns(Model):
    """A mean for each column, in a plate over columns."""

    data_dims = ("row", "feature")
    dims = {"mean": ("feature",)}
    config = {}

    def model(self, x, *, u=None, total=None):
        columns = pyro.plate("column", D, dim=-1)
        with columns:
            mean = pyro.sample("mean", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x), dim=-2), columns:
            pyro.sample("x", observed(dist.Normal(mean, 1.0)), obs=x)


@pytest.mark.parametrize("rows", [D, D + 1])
@pytest.mark.parametrize("asked", [D, D + 1])
def test_a_mean_of_each_column_is_asked_about_rows_of_any_number(rows, asked):
    mean, x = torch.tensor([0.0, 1.0, -1.0]).double(), torch.randn(rows, D).double()
    fit, new = fitted(Columns(), {"mean": mean.expand(5, D)}, x), torch.randn(asked, D).double()
    torch.testing.assert_close(torch.tensor(fit.log_likelihood(new).values), normal(new, mean).sum(-1))
    assert fit.impute(new).equals(fit.impute(new))
    assert "log_likelihood" in fit.to_arviz(new, random_seed=0)


def groups(y, v, u):
    """One outcome of each row, one of each group."""
    a = pyro.sample("a", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("group", len(v)):
        pyro.sample("v", observed(dist.Normal(a, 1.0)), obs=v)
    with pyro.plate("row", len(y)):
        pyro.sample("y", observed(dist.Normal(a + u, 1.0)), obs=y)


@pytest.mark.parametrize("count", [4, 6])
def test_an_outcome_of_groups_is_none_of_rows(count):
    y, v, u = (torch.randn(n).double() for n in (count, 4, count))
    fit = fitted(groups, {"a": torch.zeros(5)}, y, v, u)
    torch.testing.assert_close(torch.tensor(fit.log_likelihood(y).values), normal(y, u))
    assert list(fit.log_likelihood(y, per="site")) == ["y"]
    assert fit.posterior_predictive(y, 3)["v"].dims == ("draw", "v_dim_0")
    tree = fit.to_arviz(y, random_seed=0)
    assert tree["posterior_predictive"]["v"].dims[2:] == ("v_dim_0",)
    assert tree["log_likelihood"]["x"].sizes["row"] == count


def learnt(model, *args):
    given = task.read("test", model, args, None)
    x = given.args[0]
    remember_rows(given.model, x, None)
    return given.model, x


def test_only_arguments_of_rows_are_cut_with_them():
    y, v, u = (torch.randn(4).double() for _ in range(3))
    model, x = learnt(groups, y, v, {"u": u}["u"])
    assert memory(model).row_plates == ("row",)
    assert memory(model).in_rows == ("y",)
    fewer, some, _ = at_rows(model, x, None, torch.tensor([2, 0]))
    assert some.equal(y[[2, 0]])
    assert fewer.rest[0].equal(v)
    assert fewer.rest[1].equal(u[[2, 0]])


def test_a_program_with_fixed_plates_has_rows_as_long_as_its_plate():
    def eight(y):
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("school", 8):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    y = torch.randn(8).double()
    model, _ = learnt(eight, y)
    assert memory(model).row_plates == ()
    fit = fitted(eight, {"a": torch.zeros(2)}, y)
    torch.testing.assert_close(torch.tensor(fit.log_likelihood(y).values), normal(y, 0.0))


def test_looking_for_the_rows_leaves_random_numbers_alone():
    x = torch.randn(5, D).double()
    fit = fitted(Columns(), {"mean": torch.zeros(2, D)}, x)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fit.log_likelihood(x, random_seed=1)
    assert torch.rand(1).equal(expected)
    assert not math.isnan(float(expected))
