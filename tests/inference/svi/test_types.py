"""Types of trained parameters: a network that casts at its own border keeps its own, any other is asked in float64."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppgen
from ppgen.inference import svi
from ppgen.model import Model

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
SETTINGS = {"max_steps": 5, "early_stopping": False, "random_seed": 0, "progressbar": False, "draws": 10}


class Autoencoder(Model):
    """One code per row, networks in float32; ``casts`` at their border, or takes what comes."""

    data_dims = ("row", "feature")
    dims = {"h": ("row",)}

    def __init__(self, casts=True, registers=False):
        super().__init__()
        self.casts, self.registers = casts, registers
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.decoder = nn.Linear(1, 3, dtype=torch.float32)
            self.encoder = nn.Linear(3, 2, dtype=torch.float32)

    @property
    def config(self):
        return {"casts": self.casts, "registers": self.registers}

    def applied(self, net, value):
        return net(value.float()).double() if self.casts else net(value)

    def model(self, x, *, u=None, total=None):
        if self.registers:
            pyro.module("net", self)
        scale = pyro.param("scale", torch.tensor(0.5, dtype=torch.float32), constraint=dist.constraints.positive)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(self.applied(self.decoder, h[:, None]), scale).to_event(1), obs=x)

    def guide(self, x, *, u=None, total=None):
        if self.registers:
            pyro.module("net", self)
        mean, log_scale = self.applied(self.encoder, x).unbind(-1)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("h", dist.Normal(mean, log_scale.exp()))


@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize(("casts", "dtype"), [(True, torch.float32), (False, torch.float64)])
def test_a_fit_answers_with_networks_of_the_type_that_its_program_takes(casts, dtype, registers, tmp_path):
    fit = svi.fit(Autoencoder(casts, registers), X, **SETTINGS)
    assert {value.dtype for value in fit.model.parameters()} == {dtype}
    assert fit.params["scale"].dtype == dtype
    found = fit.log_likelihood(X, random_seed=1)
    assert found.dtype == "float64"
    fit.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit", model=Autoencoder)
    assert {value.dtype for value in again.model.parameters()} == {dtype}
    assert again.log_likelihood(X, random_seed=1).identical(found)
