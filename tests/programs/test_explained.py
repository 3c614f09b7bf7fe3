"""Inputs that do not fit a program are told in words, whichever way it fails; what fits is never refused."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.distributions import observed
from ppgen.errors import DataError
from ppgen.inference import mcmc, svi
from ppgen.inference.calibration.engine import calibrate
from ppgen.programs import task

N, GROUPS = 12, 3
GROUP, DOSE = np.arange(N) % GROUPS, np.zeros(N)
Y = np.random.default_rng(0).normal(size=N)
CODES = pd.Series(np.where(np.arange(N) == 4, -1, GROUP), dtype="int8")  # pandas' codes, of which one is missing


class Groups(ppgen.Model):
    """y = level of the row's group + dose + noise."""

    data_dims = ("row",)
    dims = {"level": ("group",)}
    config = {}

    def model(self, x, *, u=None, total=None):
        level = pyro.sample("level", dist.Normal(x.new_zeros(GROUPS), 2.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", observed(dist.Normal(level[u["group"]] + u["dose"], 0.5)), obs=x)


class Line(Groups):
    """y = inputs times their weights + noise."""

    def model(self, x, *, u=None, total=None):
        level = pyro.sample("level", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(u @ level, 0.5), obs=x)


def function(y, inputs):
    Groups().model(y, u=inputs)


def engine(name, model, *args, **kwargs):
    options = {"random_seed": 0, "progressbar": False}
    if name == "mcmc":
        return mcmc.fit(model, *args, draws=4, tune=4, chains=4, compile="traced", **options, **kwargs)
    return svi.fit(model, *args, max_steps=2, compile="traced", **options, **kwargs)


@pytest.mark.parametrize("name", ["svi", "mcmc"])
@pytest.mark.parametrize(
    ("u", "message"),
    [
        (None, r"Groups takes inputs by name, got none; pass u={'group': ..., 'dose': ...}"),
        ({"group": GROUP, "doze": DOSE}, r"Groups asks for the input 'dose', got 'group', 'doze'; write 'dose' for 'd"),
        ({"group": GROUP * 1.0, "dose": DOSE}, r"Groups takes u\['group'\] as an index, .*; pass whole numbers"),
        ({"group": GROUP + 1, "dose": DOSE}, r"Groups takes u\['group'\] as an index, .* 3 is out of .* from 0"),
        ({"group": CODES, "dose": DOSE}, r"u\['group'\] must be 0 or more where Groups takes it as an index, got -1"),
    ],
)
def test_inputs_that_do_not_fit_a_model_are_told_by_name(name, u, message):
    with pytest.raises(DataError, match=f"{name}: {message}"):
        engine(name, Groups(), Y, u=u)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # torch, of a text as an index
@pytest.mark.parametrize("name", ["svi", "mcmc"])
def test_one_table_where_a_model_asks_for_names_is_told_what_to_write(name):
    table = pd.DataFrame({"group": GROUP, "dose": DOSE})
    with pytest.raises(DataError, match=r"by name, got one array of shape \(12, 2\); .*u=dict\(table\[\['group', 'd"):
        engine(name, Groups(), Y, u=table)
    engine(name, Groups(), Y, u=dict(table[["group", "dose"]]))


def test_a_model_of_one_array_of_inputs_is_told_so():
    with pytest.raises(DataError, match="svi: Line must be given inputs, got none; pass u, with a row for each row"):
        engine("svi", Line(), Y)
    with pytest.raises(DataError, match="svi: Line takes its inputs as one array, got 'group' by name"):
        engine("svi", Line(), Y, u={"group": GROUP})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"group": GROUP, "doze": DOSE}, "function asks for the input 'dose'"),
        ({"group": GROUP + 1, "dose": DOSE}, r"function takes inputs\['group'\] as an index, .* 3 is out of"),
        ({"group": CODES.to_numpy(), "dose": DOSE}, r"inputs\['group'\] must be 0 or more where function takes it"),
        (
            {"group": np.array(list("abc"))[GROUP], "dose": DOSE},
            r"function must be given numbers in inputs\['group'\], got <U1; encode",
        ),
    ],
)
def test_inputs_that_do_not_fit_a_function_are_told_by_name(inputs, message):
    with pytest.raises(DataError, match=f"svi: {message}"):
        engine("svi", function, Y, inputs)


def test_the_laws_and_calibration_say_the_same():
    with pytest.raises(DataError, match=r"check: u\['group'\] must be 0 or more"):
        ppgen.check(Groups(), Y, u={"group": CODES, "dose": DOSE})
    assert "asks for the input 'dose'" in str(ppgen.check(Groups(), Y, u={"group": GROUP}))
    with pytest.raises(DataError, match=r"calibrate: u\['group'\] must be 0 or more"):
        calibrate(Groups(), Y, u={"group": CODES, "dose": DOSE}, replications=2)
    with pytest.raises(DataError, match=r"calibrate: Groups takes inputs by name, got none"):
        calibrate(Groups(), Y, replications=2)


def test_a_fit_is_asked_about_groups_that_it_knows():
    fit = engine("svi", Groups(), Y, u={"group": GROUP, "dose": DOSE})
    with pytest.raises(DataError, match=r"Fit: Groups takes u\['group'\] as an index, .* 7 is out of"):
        fit.log_likelihood(Y[:1], u={"group": [7], "dose": [0.0]})
    with pytest.raises(
        DataError, match=r"Fit: u\['group'\] must be 0 or more where Groups takes it as an index, got -1"
    ):
        fit.log_likelihood(Y[:2], u={"group": [-1, 2], "dose": [0.0, 0.0]})


def test_negative_whole_numbers_that_are_no_index_are_numbers():
    contrast = np.arange(N) % 3 - 1
    read = task.read("svi", Groups(), (Y,), {"group": GROUP, "dose": contrast})
    assert read.kwargs["u"]["dose"].tolist() == contrast.tolist()
    task.read("svi", Line(), (Y,), np.stack([contrast, contrast], 1))


def test_arguments_that_are_no_plain_tensors_are_left_alone():
    others = [torch.eye(3).to_sparse(), torch.tensor([1j, -2]), torch.tensor([True, False]), "text", None, [1, -1]]
    task.read("svi", lambda y, *more: None, (Y, *others, {"a": others[0]}), None)


def test_a_program_that_means_negative_codes_says_so():
    class Known(Groups):
        def model(self, x, *, u=None, total=None):
            level = pyro.sample("level", dist.Normal(x.new_zeros(GROUPS), 2.0).to_event(1))
            mean = torch.where(u["group"] < 0, level.mean(), level[u["group"].clamp(min=0)])
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("x", dist.Normal(mean, 0.5), obs=x)

    task.read("svi", Known(), (Y,), {"group": CODES})


def test_an_error_of_another_kind_stays_as_it_is():
    class Broken(Groups):
        def model(self, x, *, u=None, total=None):
            super().model(x, u=u, total=total)
            {}["another"]

    with pytest.raises(KeyError, match="another"):
        engine("svi", Broken(), Y, u={"group": GROUP, "dose": DOSE})
    with pytest.raises(RuntimeError, match="size of tensor a"):
        engine("svi", lambda y, u: pyro.sample("z", dist.Normal(torch.zeros(3) + y, 1.0)), torch.zeros(2), {"a": 1.0})


def test_a_function_is_asked_about_its_own_rows_and_a_model_about_others():
    fit = engine("svi", function, Y, {"group": GROUP, "dose": DOSE})
    assert fit.log_likelihood(Y, draws=2).shape == (N,)
    new = np.full(4, np.nan)
    for ask in (fit.predict, fit.log_likelihood, fit.posterior_predictive):
        with pytest.raises(
            DataError, match="must have the rows of the fit, got 4, .* with 12 rows; .* fit a Model that t"
        ):
            ask(new)
    with pytest.raises(DataError, match="a function has no inputs u, .*; leave u out, or to ask about rows with other"):
        fit.predict(Y, u={"dose": DOSE})
    with pytest.raises(
        DataError, match="u is for models, got it beside a function; pass what .* or write a Model with"
    ):
        engine("svi", function, Y, u={"dose": DOSE})


def test_a_function_whose_other_arguments_are_not_of_rows_is_asked_about_any():
    def scaled(y, scales):
        slope = pyro.sample("slope", dist.Normal(0.0, scales[0]))
        with pyro.plate("row", len(y)):
            pyro.sample("y", observed(dist.Normal(slope, scales[1])), obs=y)

    fit = engine("svi", scaled, Y, np.array([1.0, 0.5]))
    assert fit.log_likelihood(Y[:4], draws=2).shape == (4,)
