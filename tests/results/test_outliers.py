"""Entries that look wrong: tails against closed forms, planted errors found, series, counts, refusals."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.metrics import roc_auc_score

from ppgen.emissions import Categorical
from ppgen.errors import DataError
from ppgen.inference import vb
from ppgen.models import CCA, GMM, HMM, LDS

SETTINGS = {"random_seed": 0, "progressbar": False}


def standard(x):
    return (x - x.mean(0)) / x.std(0)


def correlated(rows=1500, seed=0):
    rng = np.random.default_rng(seed)
    return standard(rng.normal(size=(rows, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.7], [0.0, 0.0, 0.7]]))


def test_tails_are_those_of_the_conditional_gaussian():
    """Draws add a standard error of .05 at most, .04 in the middle of 180 entries, whose mean is then .03 off; of 1,500
    rows the parameters are known to a few hundredths.
    """
    x = correlated()
    found = vb.fit(GMM(1, 3), x, **SETTINGS).outliers(x[:60], draws=400, **SETTINGS)
    covariance = np.cov(x.T)
    for d in range(3):
        others = [i for i in range(3) if i != d]
        gain = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, d])
        spread = np.sqrt(covariance[d, d] - gain @ covariance[others, d])
        exact = 2 * norm.sf(abs(x[:60, d] - x[:60][:, others] @ gain) / spread)
        assert abs(found["tail"].values[:, d] - exact).max() < 0.22
        assert abs(found["tail"].values[:, d] - exact).mean() < 0.05


def test_a_value_beyond_all_draws_has_a_tail_that_shrinks_with_distance():
    x = correlated()[:12]
    x[1:3] = x[0]
    x[0, 0], x[1, 0], x[2, 0] = 6.0, 9.0, 20.0
    found = vb.fit(GMM(1, 3), correlated(), **SETTINGS).outliers(x, draws=200, **SETTINGS)
    one, two, three = found["tail"].values[:3, 0]
    assert 1e-3 > one > three > 0
    assert two < 1e-3
    assert found["outlier"].values[:3, 0].all()
    assert (found["tail"].values[:3].argmin(1) == 0).all()  # the others of their rows look wrong too, but less
    assert not found["outlier"].values[3:].any()
    assert abs(found["expected"].values[:3, 0]).max() < 3


def planted(load, seed=0):
    """A fiftieth of the entries is wrong: a decimal point misplaced, or the value of another row, by chance."""
    rng = np.random.default_rng(seed)
    raw = load().data[:, :10].astype(float)
    wrong = rng.random(raw.shape) < 0.02
    other = rng.permuted(np.tile(np.arange(len(raw))[:, None], raw.shape[1]), axis=0)
    swapped = np.take_along_axis(raw, other, 0)
    shifted = raw * np.where(rng.random(raw.shape) < 0.5, 10.0, 0.1)
    return standard(np.where(wrong, np.where(rng.random(raw.shape) < 0.5, swapped, shifted), raw)), wrong


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer, load_diabetes])
def test_planted_errors_come_before_other_entries(load):
    """Areas under the curve are .72, .81 and .69: the value of another row is often no error that anybody could see."""
    x, wrong = planted(load)
    found = vb.fit(CCA(x.shape[1], 4), x, **SETTINGS).outliers(x, draws=100, **SETTINGS)
    assert roc_auc_score(wrong.ravel(), -found["tail"].values.ravel()) > 0.65


def test_an_impossible_jump_of_a_series_is_found_and_gaps_are_not_judged():
    rng = np.random.default_rng(1)
    t = np.arange(120)
    x = np.stack([np.sin(t / 8), np.cos(t / 8), np.sin(t / 8 + 1)], -1) + 0.1 * rng.normal(size=(120, 3))
    x[60:64] = np.nan
    x[100, 1] += 2.5
    found = vb.fit(LDS(2, 3), x[None], **SETTINGS).outliers(x[None], draws=200, **SETTINGS)
    assert np.argwhere(found["outlier"].values).tolist() == [[0, 100, 1]]
    assert np.isnan(found["tail"].values[0, 60:64]).all()
    assert found["expected"].values[0, 100, 1] == pytest.approx(np.cos(100 / 8), abs=0.4)


def test_rare_categories_are_not_called_wrong_for_being_whole_numbers():
    """At most one alarm in 20 of 20 data sets without errors would be the level; here it is one data set."""
    torch.manual_seed(0)
    z = torch.arange(120) // 20 % 2
    x = torch.where(torch.rand(120) < 0.9, z, torch.randint(3, (120,))).double()[None, :, None]
    found = vb.fit(HMM(2, emission=Categorical(3, features=1)), x, **SETTINGS).outliers(x, **SETTINGS)
    assert not found["outlier"].values.any()
    assert ((found["tail"].values[0, :-1] > 0) & (found["tail"].values[0, :-1] <= 1)).all()


def test_labels_and_rows_are_those_of_the_data_and_order_does_not_matter():
    import pandas as pd

    x = pd.DataFrame(correlated(20), [f"r{i}" for i in range(20)], list("abc"))
    fit = vb.fit(GMM(1, 3), x, **SETTINGS)
    found = fit.outliers(x, draws=200, **SETTINGS)
    assert list(found["row"].values[:2]) == ["r0", "r1"]
    assert list(found["feature"].values) == ["a", "b", "c"]
    turned = fit.outliers(x.iloc[::-1], draws=200, **SETTINGS)
    assert abs(turned["tail"].sel(row="r7").values - found["tail"].sel(row="r7").values).max() < 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [({"draws": 50}, "draws must be at least 100"), ({"level": 1.5}, "level must lie between 0 and 1, got 1.5")],
)
def test_what_cannot_be_is_said(options, words):
    x = correlated(30)
    with pytest.raises(DataError, match=words):
        vb.fit(GMM(1, 3), x, **SETTINGS).outliers(x, **SETTINGS, **options)
    with pytest.raises(DataError, match="must hold an observed entry"):
        vb.fit(GMM(1, 3), x, **SETTINGS).outliers(np.full((2, 3), np.nan), **SETTINGS)
