"""The laws that `ppgen.check` tries on a user's own model: each is broken once on purpose."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.errors import DataError
from ppgen.model import Model


class Right(Model):
    """x = u'weight + noise with rows, inputs and missing targets, as the page on own models writes it."""

    data_dims = ("row", "target")
    dims = {"weight": ("input",), "noise": ()}
    config = {}

    def priors(self, x):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        return weight, pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 1.0))

    def model(self, x, *, u=None, total=None):
        weight, noise = self.priors(x)
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            line = dist.Normal((u @ weight)[:, None], noise).mask(seen).to_event(1)
            pyro.sample("x", line, obs=torch.where(seen, x, 0.0))


class Forgets(Right):
    """``total``: a batch counts for itself alone."""

    def model(self, x, *, u=None, total=None):
        super().model(x, u=u)


class PriorInRows(Right):
    """A factor that counts with the rows lies outside their plate."""

    def model(self, x, *, u=None, total=None):
        super().model(x, u=u, total=total)
        pyro.factor("penalty", -x.nan_to_num().square().sum())


class Unmasked(Right):
    """NaN reaches the distribution."""

    def model(self, x, *, u=None, total=None):
        weight, noise = self.priors(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal((u @ weight)[:, None], noise).to_event(1), obs=x)


class Filled(Right):
    """NaN is scored as if zero had been seen."""

    def model(self, x, *, u=None, total=None):
        weight, noise = self.priors(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal((u @ weight)[:, None], noise).to_event(1), obs=x.nan_to_num())


class Broadcasts(Right):
    """(N,) against (N, 1) is (N, N)."""

    def model(self, x, *, u=None, total=None):
        weight, noise = self.priors(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(u @ weight, noise), obs=x)


class Misnamed(Right):
    dims = {"weight": ("input", "target"), "noise": ()}


class Unnamed(Right):
    dims = {"weight": ("input",)}


class Stranger(Right):
    dims = {"weight": ("input",), "noise": (), "intercept": ()}


class Centres(Right):
    """A statistic of all rows is in the density of each."""

    def model(self, x, *, u=None, total=None):
        super().model(x - x.nanmean(), u=u, total=total)


class ByPlace(Right):
    """The density of a row depends on its place."""

    def model(self, x, *, u=None, total=None):
        weight, noise = self.priors(x)
        seen = ~torch.isnan(x)
        drift = torch.arange(len(x), dtype=x.dtype)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            line = dist.Normal((u @ weight + drift)[:, None], noise).mask(seen).to_event(1)
            pyro.sample("x", line, obs=torch.where(seen, x, 0.0))


class Keeps(Right):
    def model(self, x, *, u=None, total=None):
        self.data = x
        super().model(x, u=u, total=total)


class Writes(Right):
    def model(self, x, *, u=None, total=None):
        x[0] += 1.0
        super().model(x, u=u, total=total)


class Scaled(Right):
    """A scale that its config forgets."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def model(self, x, *, u=None, total=None):
        super().model(x, u=self.scale * u, total=total)


class Needy(Scaled):
    def __init__(self, scale):
        super().__init__(scale)


class Raises(Right):
    def model(self, x, *, u=None, total=None):
        if len(x) == 2:
            raise IndexError("no row 2")
        super().model(x, u=u, total=total)


class Generator(Right):
    """Noise of a generator of its own."""

    def model(self, x, *, u=None, total=None):
        super().model(x, u=u + Generator.noise.normal(), total=total)

    noise = np.random.default_rng(1)


class NoKeywords(Right):
    def model(self, x):
        super().model(x)


@pytest.fixture
def data():
    x, u = torch.randn(9, 1, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    x[2] = torch.nan
    return x, u


@pytest.mark.parametrize(
    ("model", "law", "words"),
    [
        (Forgets(), "batches with total", "total or len(x)"),
        (PriorInRows(), "batches with total", "inside"),
        (Unmasked(), "NaN is not observed", "mask"),
        (Filled(), "an empty row adds nothing", "mask"),
        (Broadcasts(), "each value is scored once", "broadcast"),
        (Misnamed(), "dims", "must name its 1 axes"),
        (Unnamed(), "dims", "'noise'"),
        (Stranger(), "dims", "'intercept'"),
        (Centres(), "another number of rows", "statistic"),
        (ByPlace(), "rows in another order", "order"),
        (Keeps(), "keeps and changes no data", "'data'"),
        (Writes(), "keeps and changes no data", "clone"),
        (Scaled(2.0), "config", "config"),
        (Needy(2.0), "config", "scale"),
        (Raises(), "another number of rows", "IndexError: no row 2"),
        (Generator(), "same seed, same draws", "generator"),
        (NoKeywords(), "keywords", "u and total"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else "",
)
def test_a_law_that_is_broken_is_named_with_what_to_write(model, law, words, data):
    found = ppgen.check(model, data[0], u=data[1], random_seed=1)
    assert not found.ok
    row = found.table.set_index("check").loc[law]
    assert not row["ok"]
    assert words in row["advice"]
    assert "Traceback" not in str(found)


def test_a_model_that_keeps_the_laws_passes_all_of_them(data):
    x, u = data
    before = x.clone()
    found = ppgen.check(Right(), x, u=u, random_seed=1)
    assert found.ok, str(found)
    assert x.nan_to_num(9.0).equal(before.nan_to_num(9.0))
    assert len(found.table) == 10


def test_data_that_nobody_can_take_are_refused_before_any_law(data):
    with pytest.raises(DataError, match="2 axes"):
        ppgen.check(Right(), data[0][:, 0], u=data[1])


def test_one_row_is_enough(data):
    found = ppgen.check(Right(), data[0][:1], u=data[1][:1], random_seed=1)
    assert found.ok, str(found)


def test_a_model_without_config_is_said_to_need_its_instance(data):
    class NoConfig(Right):
        config = Model.config

    found = ppgen.check(NoConfig(), data[0], u=data[1], random_seed=1)
    assert found.ok
    assert "an instance" in found.verdict


def regression(y, u):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(slope * u, 1.0), obs=y)


def reversed_arguments(u, y):
    regression(y, u)


def test_a_function_is_asked_what_makes_sense():
    y, u = torch.randn(2, 7)
    assert ppgen.check(regression, y, u, random_seed=1).ok
    wrong = ppgen.check(reversed_arguments, u, y, random_seed=1)
    assert "the data come first" in wrong.table["check"][~wrong.table["ok"]].tolist()
    y[0] = torch.nan
    assert "mask" in str(ppgen.check(regression, y, u, random_seed=1))


def funnel():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, scale))


def test_a_function_of_nothing_has_its_sites_checked():
    assert ppgen.check(funnel, random_seed=1).ok


class Coded(Right):
    """A code for each row, beside what rows share."""

    dims = {"weight": ("target",), "code": ("row",)}

    def model(self, x, *, u=None, total=None):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            code = pyro.sample("code", dist.Normal(x.new_zeros(()), 1.0))
            line = dist.Normal(code[:, None] * weight, 1.0).mask(seen).to_event(1)
            pyro.sample("x", line, obs=torch.where(seen, x, 0.0))


class Mixture(Right):
    """A discrete site for each row, which is summed out."""

    dims = {"centre": ("component",), "z": ("row",)}

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Categorical(x.new_ones(3) / 3))
            line = dist.Normal(centre[z][..., None], 1.0).mask(seen).to_event(1)
            pyro.sample("x", line, obs=torch.where(seen, x, 0.0))


@pytest.mark.parametrize("model", [Coded(), Mixture()], ids=["coded", "mixture"])
def test_latents_of_rows_go_with_their_rows(model, data):
    found = ppgen.check(model, data[0], random_seed=1)
    assert found.ok, str(found)
