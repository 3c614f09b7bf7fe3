"""Small fits that several tests of results look at."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.data import as_observations
from ppgen.inference import vb
from ppgen.model import Model
from ppgen.models.hmm import HMM
from ppgen.results import Draws, fit_result


class Line(Model):
    """x = u'weight + noise, as a user writes it: no conjugacy, rows instead of time, inputs, missing targets."""

    data_dims = ("row", "target")
    dims = {"weight": ("input",), "noise": ()}

    def __init__(self, inputs=2):
        super().__init__()
        self.inputs = inputs

    @property
    def config(self):
        return {"inputs": self.inputs}

    @property
    def coords(self):
        return {"input": ["slope", "other"][: self.inputs]}

    def model(self, x, *, u=None, total=None):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(self.inputs), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            line = dist.Normal((u @ weight)[:, None], noise).mask(~torch.isnan(x)).to_event(1)
            pyro.sample("x", line, obs=torch.nan_to_num(x))


@pytest.fixture(scope="session")
def recordings():
    """Two labelled sequences of unequal length with gaps, and the true states of the first."""
    random = np.random.default_rng(0)
    z = (np.arange(60) // 15) % 2
    first = np.array([[0.0, 0.0], [3.0, 1.0]])[z] + 0.5 * random.normal(size=(60, 2))
    second = first[20:50] + 0.1
    first[5:9] = np.nan
    first[20, 0] = np.nan
    second[10, 1] = np.nan
    frames = {"mouse": first, "rat": second}
    return {name: pd.DataFrame(values, columns=["nose", "tail"]) for name, values in frames.items()}


@pytest.fixture(scope="session")
def hmm_fit(recordings):
    return vb.fit(HMM(["rest", "run"], 2), recordings, random_seed=0, progressbar=False, max_steps=40)


@pytest.fixture
def line():
    """Fit of `Line` with two chains of known draws, its data and inputs."""
    u = np.linspace(-1, 1, 12).reshape(6, 2)
    x = np.array([[0.1], [np.nan], [0.3], [0.2], [np.nan], [1.0]])
    draws = Draws(
        {"weight": 1 + 0.1 * torch.randn(2, 30, 2).double(), "noise": torch.rand(2, 30).double() + 0.1},
        {"energy": torch.randn(2, 30).double(), "diverging": torch.zeros(2, 30, dtype=torch.bool)},
    )
    history = pd.DataFrame({"step": [1, 2], "energy": [0.1, np.nan], "tuning": [True, False], "note": ["a", "b, c"]})
    observations = as_observations(x, dims=Line.data_dims)
    return fit_result(Line(), draws, history, {"engine": "mcmc", "random_seed": 3}, observations), x, u


@pytest.fixture(scope="session")
def chains(hmm_fit):
    """Four chains of draws of the two-state posterior, the second and the last of them numbered the other way round."""
    theta = hmm_fit.posterior.draws(1000)
    sites = {site: value.unflatten(0, (4, 250)).clone() for site, value in theta.items()}
    for site, value in sites.items():
        for axis, dim in enumerate(hmm_fit.model.dims[site]):
            if dim.endswith("state"):
                value[1::2] = value[1::2].flip(2 + axis)
    stats = {"energy": torch.randn(4, 250).double(), "diverging": torch.zeros(4, 250, dtype=torch.bool)}
    return replace(hmm_fit, posterior=Draws(sites, stats), attrs={"engine": "mcmc"})
