import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ppgen.errors import DataError
from ppgen.inference import mcmc, svi
from ppgen.predictions import predictive
from ppgen.programs.density import density
from ppgen.programs.program import Function
from ppgen.programs.scores import check_sites

U = torch.linspace(-1, 1, 30, dtype=torch.float64)


def regression(y, u):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(u)):
        pyro.sample("y", dist.Normal(b * u, 0.5), obs=y)


def hidden_by_obs_mask(y, u):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(u)):
        pyro.sample("y", dist.Normal(b * u, 0.5), obs=y, obs_mask=~torch.isnan(y))


def masked_but_not_filled(y, u):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(u)):
        pyro.sample("y", dist.Normal(b * u, 0.5).mask(~torch.isnan(y)), obs=y)


ENGINES = {
    "mcmc": lambda *args: mcmc.fit(*args, draws=2, tune=2, progressbar=False),
    "svi": lambda *args: svi.fit(*args, max_steps=2, progressbar=False),
    "svi, own guide": lambda *args: svi.fit(*args, guide=guide, max_steps=2, progressbar=False),
    "laplace": lambda *args: svi.fit(*args, guide="laplace", max_steps=2, progressbar=False),
}


def guide(y, u):
    pyro.sample("b", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


@pytest.mark.parametrize("fit", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("args", [(U[:, None], U), (U, U[:, None])], ids=["data", "inputs"])
def test_a_column_where_a_vector_is_meant_is_refused_by_every_engine(fit, args):
    with pytest.raises(DataError, match=r"every value of site 'y' must be scored once.*in plates of shape \(30,\)"):
        fit(regression, *args)


def test_predictions_refuse_a_column_where_a_vector_is_meant():
    theta = {"b": torch.tensor(1.0, dtype=torch.float64)}
    model = Function(regression, (U, U))
    for answer in (predictive.log_likelihood, predictive.log_joint, predictive.replicate):
        with pytest.raises(DataError, match="'y' must be scored once, got values of shape"):
            answer(model, theta, U[:, None])


@pytest.mark.parametrize("fit", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("program", [regression, hidden_by_obs_mask, masked_but_not_filled])
def test_nan_that_no_mask_covers_is_named_with_the_lines_to_write(fit, program):
    y = U.clone()
    y[3] = torch.nan
    with pytest.raises(
        DataError, match=r"site 'y' must observe numbers, got NaN at \(3,\)(.|\n)*observed\(dist.Normal\(...\)\), obs=y"
    ):
        fit(program, y, U)


def scored(fn, value, *plates):
    def program():
        with poutine.trace() as run:
            if not plates:
                pyro.sample("y", fn, obs=value)
            elif len(plates) == 1:
                with pyro.plate("a", plates[0]):
                    pyro.sample("y", fn, obs=value)
            else:
                with pyro.plate("a", plates[0], dim=-2), pyro.plate("b", plates[1], dim=-1):
                    pyro.sample("y", fn, obs=value)
        return run.trace

    with pyro.validation_enabled(False):
        return program().nodes


NORMAL = dist.Normal(0.0, 1.0)
ONE_EACH = [
    ("a number", NORMAL, torch.zeros(()), ()),
    ("one distribution for all", NORMAL, torch.zeros(5), ()),
    ("one distribution for a table", NORMAL, torch.zeros(5, 3), ()),
    ("a vector without a plate", NORMAL.expand([5]), torch.zeros(5), ()),
    ("one number of all", NORMAL.expand([5]), torch.zeros(()), ()),
    ("a plate", NORMAL, torch.zeros(5), (5,)),
    ("a table in a plate", NORMAL.expand([3, 5]), torch.zeros(3, 5), (5,)),
    ("two plates", NORMAL, torch.zeros(3, 5), (3, 5)),
    ("events in a plate", NORMAL.expand([5, 2]).to_event(1), torch.zeros(5, 2), (5,)),
    ("a series of any length", NORMAL.expand([1, 2]).to_event(2), torch.zeros(7, 2), ()),
]
BROADCAST = [
    ("a column of a vector", NORMAL.expand([5]), torch.zeros(5, 1), ()),
    ("a vector of a table", NORMAL.expand([5, 5]), torch.zeros(5), ()),
    ("a vector for many vectors", NORMAL.expand([3]), torch.zeros(5, 3), ()),
    ("a column of an event", NORMAL.expand([5]).to_event(1), torch.zeros(5, 1), ()),
    ("a vector of an event table", NORMAL.expand([5, 3]).to_event(2), torch.zeros(3), ()),
    ("a table in a plate", NORMAL, torch.zeros(3, 5), (5,)),
    ("a table's distribution in a plate", NORMAL.expand([3, 5]), torch.zeros(5), (5,)),
    ("a mask as a column", NORMAL.expand([5]).mask(torch.ones(5, 1, dtype=torch.bool)), torch.zeros(5), (5,)),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "value", "plates"), [case[1:] for case in ONE_EACH], ids=[case[0] for case in ONE_EACH])
def test_a_site_that_scores_each_value_once_passes(fn, value, plates):
    check_sites("me", scored(fn, value, *plates))


@pytest.mark.parametrize(
    ("fn", "value", "plates"), [case[1:] for case in BROADCAST], ids=[case[0] for case in BROADCAST]
)
def test_a_site_that_is_broadcast_is_refused(fn, value, plates):
    with pytest.raises(DataError, match="me: every value of site 'y' must be scored once"):
        check_sites("me", scored(fn, value, *plates))


def test_a_distribution_that_takes_nan_itself_may_observe_it():
    class Patient(dist.Normal):
        def log_prob(self, value):
            return super().log_prob(torch.nan_to_num(value))

    value = torch.tensor([0.0, torch.nan])
    check_sites("me", scored(Patient(torch.zeros(2), 1.0), value, 2))


def test_enumerated_sites_do_not_disturb_the_check():
    def mixture(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu[z.long()], 1.0), obs=y)

    assert density(mixture, U).size == 2
    assert svi.fit(mixture, U, max_steps=2, progressbar=False).attrs["gradients"]["z"] == "summed out"
