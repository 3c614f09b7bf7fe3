"""Densities of hidden values: the Gaussian's closed form, rows that hide nothing, refusals."""

import numpy as np
import pytest
import scipy.stats
import torch

from ppgen.errors import DataError
from ppgen.inference import vb
from ppgen.models import GMM, HMM

QUIET = {"random_seed": 0, "progressbar": False}


def test_it_is_the_mean_of_the_conditional_gaussian_over_draws():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    given = x.copy()
    given[:10, 1] = np.nan
    fit = vb.fit(GMM(1, 2), given, **QUIET)
    found = fit.log_conditional(x, given, draws=2000, random_seed=1)
    torch.manual_seed(5)
    theta = fit.posterior.draws(4000)
    mean, root = theta["location"][:, 0].numpy(), theta["precision_cholesky"][:, 0]
    cov = torch.linalg.inv(root @ root.mT).numpy()
    slope = cov[:, 1, 0] / cov[:, 0, 0]
    center = mean[:, 1] + slope * (x[:10, :1] - mean[:, 0])
    sd = np.sqrt(cov[:, 1, 1] - slope * cov[:, 1, 0])
    exact = np.log(scipy.stats.norm.pdf(x[:10, 1:], center, sd).mean(1))
    np.testing.assert_allclose(found[:10], exact, atol=0.05)  # some standard errors of 2,000 and 4,000 draws
    np.testing.assert_array_equal(found[10:], 0.0)
    assert found.dims == ("row",)


def test_frames_of_a_sequence_hidden_together_are_scored_together():
    rng = np.random.default_rng(1)
    x = np.repeat(rng.integers(0, 2, 20), 10)[None, :, None] * 4.0 + rng.normal(size=(1, 200, 1))
    given = x.copy()
    given[0, 50:55] = np.nan
    fit = vb.fit(HMM(2, 1), given, **QUIET)
    found = float(fit.log_conditional(x, given, random_seed=0)[0])
    assert -14.0 < found < -3.0  # five frames, about 1.4 nats each where the state is known


def test_what_was_changed_is_refused():
    x = np.random.default_rng(0).normal(size=(20, 2))
    fit = vb.fit(GMM(1, 2), x, **QUIET)
    with pytest.raises(DataError, match="given must have the values of x"):
        fit.log_conditional(x, np.where(np.arange(40).reshape(20, 2) == 3, 9.0, x))
    with pytest.raises(DataError, match="given must have the shape of x"):
        fit.log_conditional(x, x[:10])
