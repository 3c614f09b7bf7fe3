"""Learnt tensors that a density depends on are found by its graph, whoever registered them."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ppgen.inference import mcmc
from ppgen.model import Model
from ppgen.models import HMM
from ppgen.programs.density import density
from ppgen.programs.untrained import untrained

ROWS = torch.linspace(-1, 1, 6).double()


class Line(Model):
    data_dims = ("row",)
    dims = {"noise": ()}

    def __init__(self):
        super().__init__()
        self.net, self.spare = nn.Linear(1, 1).double(), nn.Linear(1, 1)

    def model(self, x, *, u=None, total=None):
        noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(self.net(x.new_ones(1)), noise), obs=x)


def scaled(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.param("scale", torch.ones((), dtype=x.dtype), constraint=dist.constraints.positive)
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def found(program, x):
    return untrained(density(program, x), program)


def test_weights_that_the_density_reads_are_named_and_others_are_not():
    line = Line()
    assert found(line, ROWS) == ["net.bias", "net.weight"]
    line.net.requires_grad_(False)
    assert found(line, ROWS) == []


def test_a_parameter_of_pyro_is_named():
    assert found(scaled, ROWS) == ["scale"]


@pytest.mark.parametrize(
    ("options", "names"), [({}, []), ({"hierarchical": True}, []), ({"learn_prior": True}, ["log_scales"])]
)
def test_estimates_that_the_sampler_draws_are_not_among_them(options, names):
    assert found(HMM(2, 2, **options), torch.randn(2, 8, 2).double()) == names


def test_mcmc_says_what_it_does_not_train(caplog):
    with caplog.at_level(logging.WARNING):
        fit = mcmc.fit(Line(), ROWS, draws=4, chains=16, tune=4, random_seed=0, progressbar=False)
    assert "keeps 2 learnt tensors as they are (net.bias, net.weight)" in caplog.text
    assert "net.bias, net.weight" in str(fit.diagnose())
