import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy import stats

from ppgen.inference.calibration import ranks


@pytest.fixture
def random():
    return np.random.default_rng(0)


def everything(truth, draws):
    return ranks.pit(truth, draws, np.ones(draws.shape[:2], dtype=bool), np.random.default_rng(1))


def failures(report):
    return report.table["check"][~report.table["ok"].astype(bool)].tolist()


def wrong(values, sizes=None, level=1e-3):
    """Names of the z-tests that failed."""
    sizes = np.full(len(values), 99.0) if sizes is None else sizes
    return [name for name in failures(ranks.verdict({"a": values}, sizes, level)) if " of a" in name]


def test_a_rank_lies_in_its_own_share_of_the_unit_interval():
    draws = np.array([[1.0, 2.0, 3.0]] * 4)
    u = everything(np.array([0.5, 1.5, 2.5, 3.5]), draws)
    assert ((np.arange(4) / 4 < u) & (u < np.arange(1, 5) / 4)).all()


@pytest.mark.parametrize("draws", [1, 3, 20])
def test_ranks_are_uniform_with_ties_and_without(random, draws):
    """Kolmogorov-Smirnov at 1e-4, for numbers that are normal, and for those that take three values."""
    for values in (random.normal(size=(4000, 1 + draws)), random.integers(3, size=(4000, 1 + draws)).astype(float)):
        assert stats.kstest(everything(values[:, 0], values[:, 1:]), "uniform").pvalue > 1e-4


def test_only_the_kept_draws_are_ranked_among():
    draws = np.array([[-5.0, -1.0, 0.0, 1.0]])
    kept = np.array([[False, True, False, True]])
    for seed in range(20):
        assert 1 / 3 < ranks.pit(np.zeros(1), draws, kept, np.random.default_rng(seed))[0] < 2 / 3


def test_nan_and_replications_without_draws_have_no_rank():
    draws = np.ones((4, 3))
    draws[1, 2] = np.nan
    kept = np.ones((4, 3), dtype=bool)
    kept[2] = False
    u = ranks.pit(np.array([1.0, 1.0, 1.0, np.nan]), draws, kept, np.random.default_rng(0))
    assert np.isnan(u).tolist() == [False, True, True, True]
    kept[1, 2] = False
    assert np.isfinite(ranks.pit(np.ones(4), draws, kept, np.random.default_rng(0))[1])


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.5, 0.9])
def test_effective_sizes_are_those_of_arviz(random, correlation):
    x = random.normal(size=(50, 4, 60))
    for step in range(1, 60):
        x[..., step] = correlation * x[..., step - 1] + np.sqrt(1 - correlation**2) * x[..., step]
    theirs = array_stats.ess(x, chain_axis=-2, draw_axis=-1, method="bulk")
    np.testing.assert_allclose(ranks.effective_sizes(x), theirs, rtol=1e-10)


def test_effective_sizes_of_frozen_lost_and_single_draws(random):
    x = random.normal(size=(3, 2, 40))
    x[1] = 7.0
    x[2, 0, 3] = np.nan
    assert ranks.effective_sizes(x)[1:].tolist() == [80.0, 0.0]
    stuck = np.repeat(random.normal(size=(1, 4, 1)), 40, axis=2)
    assert ranks.effective_sizes(stuck)[0] < 10
    assert ranks.effective_sizes(x[:, :, :1]).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        (lambda z: z, []),
        (lambda z: z + 0.25, ["centre of a"]),
        (lambda z: z / 0.85, ["width of a"]),
        (lambda z: z * 0.85, ["width of a"]),
        (lambda z: np.where(np.arange(len(z)) == 3, np.nan, z), []),
        (lambda z: np.full_like(z, np.nan), ["centre of a", "width of a"]),
    ],
)
def test_scores_off_centre_too_wide_or_too_narrow_are_seen(random, plant, seen):
    assert wrong(stats.norm.cdf(plant(random.normal(size=1000)))) == seen


def test_the_words_say_which_way_posteriors_are_wrong(random):
    z = random.normal(size=1000)
    said = str(ranks.verdict({"a": stats.norm.cdf(z / 0.8 + 0.3)}, np.full(1000, 99.0), 1e-3))
    assert "Not calibrated: over 1000 replications the centre of a, the width of a of posteriors is wrong" in said
    assert "too narrow: true values scatter 1.2" in said
    assert "draws are too small: true values lie" in said
    assert "too wide" in str(ranks.verdict({"a": stats.norm.cdf(z * 0.8)}, np.full(1000, 99.0), 1e-3))


def test_what_failed_or_is_too_little_is_not_called_calibrated(random):
    u = random.random((1000, 2))
    good = np.full(1000, 99.0)
    assert ranks.verdict({"a": u}, good, 1e-3).ok
    assert failures(ranks.verdict({"a": u[:100]}, good[:100], 1e-3)) == ["power"]
    assert failures(ranks.verdict({"a": u}, np.full(1000, 4.0), 1e-3)) == ["independent draws"]
    lost = np.where(np.arange(1000) < 3, 0.0, good)
    report = ranks.verdict({"a": u}, lost, 1e-3, "replication 0 (seed 5): oh")
    assert failures(report) == ["failed replications"]
    assert "failed replications: 3 (wanted = 0): replication 0 (seed 5): oh" in str(report)
    assert not ranks.verdict({}, good, 1e-3).ok or "centre" not in str(ranks.verdict({}, good, 1e-3))
    assert not ranks.verdict({"a": u[:1]}, good[:1], 1e-3).ok


def test_holm_by_hand():
    found = ranks._holm(np.array([0.03, 0.01, np.nan, 0.04, 1.0]))
    np.testing.assert_allclose(found, [0.09, 0.04, np.nan, 0.09, 1.0])


def test_false_alarms_are_as_rare_as_the_level_says(random):
    """200 calibrations of an exact posterior at level .05: more than 23 alarms happen once in 1e4 times."""
    alarms = 0
    for _ in range(200):
        x = random.normal(size=(100, 21, 4))
        alarms += bool(wrong(everything(x[:, 0], x[:, 1:]), level=0.05))
    assert 1 < alarms <= 23


def test_the_power_is_what_simulation_finds(random):
    z = random.normal(size=(2000, 500)) / 0.9
    seen = [ranks.scores(stats.norm.cdf(row[:, None]))[0].p_width < 1e-3 / 2 for row in z]
    assert np.mean(seen) == pytest.approx(ranks.power(500, 2, 1e-3), abs=0.045)  # four standard errors
    assert ranks.power(1000, 2, 0.05) > 0.95
