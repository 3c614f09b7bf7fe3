"""Every engine and every answer reads data by the model's own `observations`."""

from collections import Counter

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest

import ppgen
from ppgen.data import as_observations
from ppgen.inference import calibration, mcmc, svi, vb
from ppgen.models.gmm import GMM


def test_a_fit_of_views_answers_with_their_labels():
    rng = np.random.default_rng(0)
    names = [f"r{i:02d}" for i in range(40)]
    one = pd.DataFrame(rng.normal(size=(40, 2)), columns=["a", "b"], index=names)
    two = pd.DataFrame(rng.normal(size=(30, 1)), columns=["a"], index=names[5:35])
    fit = vb.fit(GMM(2, 3), {"one": one, "two": two[::-1]}, max_steps=5, progressbar=False, random_seed=0)
    filled = fit.impute({"two": two, "one": one[::-1]}, draws=5)
    assert filled["view"].values.tolist() == ["one", "one", "two"]
    again = filled.isel(draw=0).sel(feature="one.b", row=names)
    np.testing.assert_array_equal(again, one["b"])
    assert fit.to_arviz(draws=3)["posterior"]["feature"].values.tolist() == ["one.a", "one.b", "two.a"]


class Tokens(ppgen.Model):
    """Words of a vocabulary are drawn from one distribution; documents come as lists of words, or as counts."""

    data_dims = ("document", "word")
    dims = {"topic": ("word",)}
    words = ["cat", "dog"]

    @property
    def config(self):
        return {}

    def observations(self, x):
        if isinstance(x, list):
            x = np.array([[Counter(document)[word] for word in self.words] for document in x], dtype=float)
        return as_observations(x, dims=self.data_dims, coords={"word": self.words})

    def model(self, x, *, u=None, total=None):
        topic = pyro.sample("topic", dist.Gamma(x.new_ones(2), 1.0).to_event(1))
        with pyro.plate("document", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Poisson(topic).to_event(1), obs=x)


DOCUMENTS = [["cat", "cat", "dog"], ["cat"], ["dog", "cat", "cat", "cat"], ["cat", "dog"]] * 5


@pytest.mark.parametrize("engine", ["svi", "mcmc"])
def test_every_engine_and_answer_reads_data_as_the_model_says(engine):
    if engine == "svi":
        fit = svi.fit(Tokens(), DOCUMENTS, held_out=DOCUMENTS[:5], random_seed=0, progressbar=False, compile="traced")
    else:
        fit = mcmc.fit(
            Tokens(), DOCUMENTS, draws=60, tune=100, chains=8, random_seed=0, progressbar=False, compile="traced"
        )
    mean = fit.posterior.draws(400)["topic"].mean(0)
    np.testing.assert_allclose(mean, [(1 + 35) / 21, (1 + 15) / 21], rtol=0.1)
    found = fit.posterior_predictive(DOCUMENTS, draws=5)
    assert found.dims == ("draw", "document", "word")
    assert found["word"].values.tolist() == ["cat", "dog"]
    assert fit.log_likelihood(DOCUMENTS[:3], draws=10).sizes == {"document": 3}
    assert len(fit.diagnose(DOCUMENTS).table)
    for tree in (fit.to_arviz(draws=3), fit.to_arviz(DOCUMENTS, draws=3)):
        assert tree["posterior"]["word"].values.tolist() == ["cat", "dog"]


def test_calibration_and_the_laws_read_data_as_the_model_says():
    assert ppgen.check(Tokens(), DOCUMENTS).table.set_index("check")["ok"]["rows in another order"]
    found = calibration.calibrate(Tokens(), DOCUMENTS[:4], replications=10, random_seed=0, progressbar=False)
    assert not len(found.failures)
    one = calibration.calibrate(
        Tokens(), DOCUMENTS[:4], engine="svi", batched=False, replications=2, random_seed=0, progressbar=False
    )
    assert not len(one.failures), one.failures
