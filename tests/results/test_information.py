"""Which entry to measure next: against the closed form of the Gaussian, brute force over paths, targets, refusals."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from ppgen.emissions import Categorical
from ppgen.errors import DataError
from ppgen.inference import vb
from ppgen.models import CCA, GMM, HMM
from ppgen.predictions import predictive

SETTINGS = {"random_seed": 0, "progressbar": False}
MIXING = np.array([[1.0, 0.9, 0.0, 0.3], [0.0, 0.5, 0.8, 0.0], [0.0, 0.0, 0.6, 0.2], [0.0, 0.0, 0.0, 0.9]])


def gaussian(rows=4000):
    return np.random.default_rng(0).normal(size=(rows, 4)) @ MIXING


def entropy(covariance, entries, given):
    """Entropy of some entries given others, but for the constants of a Gaussian, which cancel."""
    every = np.linalg.slogdet(covariance[np.ix_([*entries, *given], [*entries, *given])])[1]
    return 0.5 * (every - (np.linalg.slogdet(covariance[np.ix_(given, given)])[1] if given else 0.0))


def exact(covariance, candidate, targets, given):
    return (
        entropy(covariance, [candidate], given)
        + entropy(covariance, targets, given)
        - entropy(covariance, [candidate, *targets], given)
    )


@pytest.mark.parametrize("about", [None, [3]])
def test_information_is_that_of_the_conditional_gaussian(about):
    """Eight comparisons at four standard errors, parameters known from 4,000 rows to .02: a false alarm in 2,000."""
    x = gaussian()
    fit = vb.fit(GMM(1, 4), x, **SETTINGS)
    asked = np.full((3, 4), np.nan)
    asked[0, 0], asked[1, 2] = 0.3, -2.0
    found = fit.expected_information(asked, draws=400, about=about, **SETTINGS)
    covariance = np.cov(x.T)
    for row, given in enumerate([[0], [2], []]):
        for entry in set(range(4)) - {*given}:
            targets = [d for d in (about or range(4)) if d != entry and d not in given]
            value, error = (float(found[name][row, entry]) for name in ("information", "mc_error"))
            wanted = exact(covariance, entry, targets, given) if targets else 0.0
            assert abs(value - wanted) <= 4 * error + 0.02
    assert np.isnan(found["information"].values[[0, 1], [0, 2]]).all()


def test_information_of_categories_is_that_of_all_their_values():
    """Two candidates at four standard errors each, densities from the same draws of the parameters: once in 7,800."""
    rng = np.random.default_rng(1)
    z = np.arange(90) // 15 % 2
    x = np.where(rng.random(90) < 0.8, z, rng.integers(0, 3, 90)).astype(float)[None, :, None]
    model = HMM(2, emission=Categorical(3, features=1))
    fit = vb.fit(model, x, **SETTINGS)
    asked = np.array([0.0, np.nan, np.nan, 1.0])[None, :, None]
    found = fit.expected_information(asked, draws=400, **SETTINGS)
    rows = np.repeat(asked, 9, 0)
    rows[:, 1:3, 0] = list(itertools.product(range(3), range(3)))
    theta = fit.posterior.draws(400)
    joint = predictive.gather(lambda one: predictive.log_likelihood(model, one, torch.from_numpy(rows)), theta)
    p = joint.exp().reshape(-1, 3, 3)
    p = p / p.sum((1, 2), keepdim=True)
    wanted = (p * (p / p.sum(1, keepdim=True) / p.sum(2, keepdim=True)).log()).sum((1, 2))
    error = float(wanted.std()) / 20
    for step in (1, 2):
        value, own = (float(found[name][0, step, 0]) for name in ("information", "mc_error"))
        assert abs(value - float(wanted.mean())) < 4 * np.hypot(own, error)
    assert float(wanted.mean()) > 4 * own  # else anything would pass


def test_two_entries_tell_as_much_of_each_other():
    """The terms of both are the same numbers, to rounding."""
    asked = np.array([[0.1, np.nan, np.nan, 1.0]])
    for model in (GMM(3, 4), CCA(4, 2)):
        found = vb.fit(model, gaussian(200), **SETTINGS).expected_information(asked, draws=20, **SETTINGS)
        assert found["information"][0, 1].item() == pytest.approx(found["information"][0, 2].item(), abs=1e-10)


def test_labels_choose_candidates_and_rows_keep_theirs():
    x = pd.DataFrame(gaussian(100), [f"r{i}" for i in range(100)], list("abcd"))
    asked = x.iloc[:3].copy()
    asked.loc[:, ["a", "b"]] = np.nan
    fit = vb.fit(GMM(1, 4), x, **SETTINGS)
    found = fit.expected_information(asked, ["b"], 20, **SETTINGS)
    assert list(found["row"].values) == ["r0", "r1", "r2"]
    assert found["information"].sel(feature="b").notnull().all()
    assert found["information"].sel(feature=["a", "c", "d"]).isnull().all()
    every = fit.expected_information(asked, draws=20, **SETTINGS)
    assert (every["information"].sel(feature="b") == found["information"].sel(feature="b")).all()


def test_an_only_missing_entry_has_nothing_to_teach():
    asked = np.array([[0.1, np.nan, 0.3, 1.0]])
    found = vb.fit(GMM(2, 4), gaussian(100), **SETTINGS).expected_information(asked, draws=10, **SETTINGS)
    assert found["information"][0, 1].item() == pytest.approx(0.0, abs=1e-12)


def test_what_cannot_be_is_said():
    x = gaussian(60)
    fit = vb.fit(GMM(1, 4), x, **SETTINGS)
    with pytest.raises(DataError, match="must lack an entry that could be measured, got none"):
        fit.expected_information(x, **SETTINGS)
    asked = np.full((1, 4), np.nan)
    with pytest.raises(DataError, match=r"about must be labels of 'feature', among \[0, 1, 2, 3\], got \[7\]"):
        fit.expected_information(asked, about=[7], **SETTINGS)
    with pytest.raises(DataError, match="draws must be at least 2"):
        fit.expected_information(asked, draws=1, **SETTINGS)


def test_a_long_gap_is_refused_before_memory_is_taken(monkeypatch):
    monkeypatch.setattr("ppgen.results.information.LARGEST", 2**10)
    fit = vb.fit(GMM(1, 4), gaussian(60), **SETTINGS)
    with pytest.raises(DataError, match="three for each of the 4 candidates .* name fewer candidates"):
        fit.expected_information(np.full((30, 4), np.nan), **SETTINGS)
