import numpy as np
import pytest

from ppgen.inference import diagnostics as d


@pytest.fixture
def random():
    return np.random.default_rng(0)


def verdict(checks):
    return d.report(list(checks))


def failures(checks):
    return [check.check for check in checks if not check.ok]


def test_independent_chains_pass(random):
    report = verdict(d.check_chains({"a": random.normal(size=(4, 1000, 3)), "b": random.normal(size=(4, 1000))}))
    assert report.ok
    assert "No problem found: 8 of 8" in str(report)


def plant_a_shift(value):
    value[0] += 1


def plant_a_frozen_chain(value):
    value[1] = value[1, 0]


def plant_a_nan(value):
    value[2, 5, 0] = np.nan


def plant_a_random_walk(value):
    value[:] = value.cumsum(1)


@pytest.mark.parametrize(
    ("plant", "seen_by"),
    [
        (plant_a_shift, "R-hat of a"),
        (plant_a_frozen_chain, "moving chains of a"),
        (plant_a_nan, "R-hat of a"),
        (plant_a_random_walk, "ESS (bulk) of a"),
    ],
)
def test_a_bad_chain_is_seen(random, plant, seen_by):
    value = random.normal(size=(4, 500, 2))
    plant(value)
    assert seen_by in failures(d.check_chains({"a": value}))


def test_everything_frozen_is_a_failure_and_one_chain_alone_too(random):
    assert failures(d.check_chains({"a": np.ones((4, 100))})) == ["moving chains"]
    assert failures(d.check_chains({"a": random.normal(size=(1, 4000))})) == ["R-hat of a"]


def test_what_is_constant_by_construction_is_left_out(random):
    triangle = random.normal(size=(4, 1000, 2, 2))
    triangle[..., 0, 1] = 0
    assert verdict(d.check_chains({"factor": triangle, "initial": np.ones((4, 1000, 1))})).ok


def test_divergences_and_slow_energy_are_seen(random):
    diverging = np.zeros((2, 500), dtype=bool)
    energy = random.normal(size=(2, 500))
    assert not failures(d.check_sampler({"diverging": diverging, "energy": energy}))
    diverging[0, 3] = True
    assert failures(d.check_sampler({"diverging": diverging, "energy": energy.cumsum(1)})) == ["divergences", "E-BFMI"]
    assert failures(d.check_sampler({"energy": np.full((2, 500), np.nan)})) == ["E-BFMI"]


@pytest.mark.parametrize(("scale", "ok"), [(1.0, True), (1.05, True), (0.4, False)])
def test_a_guide_that_is_too_narrow_is_seen_by_its_importance_ratios(random, scale, ok):
    draws = random.normal(size=2000) * scale
    log_ratio = -0.5 * draws**2 + 0.5 * (draws / scale) ** 2
    assert verdict(d.check_importance(log_ratio)).ok is ok


def test_heavier_ratios_have_a_larger_shape(random):
    """Ratios exp(k E) with E exponential are Pareto with shape k; 0.15 is about four standard errors."""
    exponential = random.exponential(size=8000)
    for k in (0.4, 0.9):
        assert next(iter(d.check_importance(k * exponential))).value == pytest.approx(k, abs=0.15)


def test_ratios_that_are_nan_or_too_few_fail():
    assert failures(d.check_importance(np.full(500, np.nan)))
    assert failures(d.check_importance(np.arange(5.0)))


def test_a_bound_that_drops_or_is_nan_is_seen():
    rising = -100 / np.arange(1.0, 50)
    assert not failures(d.check_elbo(rising, monotone=True))
    dropped = rising.copy()
    dropped[20] -= 1
    assert failures(d.check_elbo(dropped, monotone=True)) == ["ELBO drop"]
    assert not failures(d.check_elbo(dropped, monotone=False))
    rising[3] = np.nan
    assert "finite ELBO" in failures(d.check_elbo(rising, monotone=True))
    assert failures(d.check_elbo(np.empty(0), monotone=True))


def test_a_run_that_did_not_end_well_is_not_trusted():
    assert failures(d.check_convergence(False, np.arange(5.0)))
    assert failures(d.check_convergence(None, np.empty(0)))
    assert failures(d.check_interrupted())


def test_a_lone_best_restart_is_seen():
    assert not failures(d.check_restarts([-100.0, -101.0, -300.0]))
    assert failures(d.check_restarts([-100.0, -150.0]))
    assert failures(d.check_restarts([-100.0, np.nan]))
    assert not list(d.check_restarts([-100.0]))


def test_mostly_missing_data_is_said():
    assert not failures(d.check_missing(0.2))
    assert failures(d.check_missing(0.8))
    assert failures(d.check_missing(np.nan))


def test_switched_labels_are_told_from_chains_that_disagree(random):
    value = random.normal(size=(4, 500, 2)) * 0.1 + np.array([0.0, 3.0])
    assert not failures(d.check_labels({"location": value}, {"location": 0}))
    switched = value.copy()
    switched[1] = switched[1, :, ::-1]
    assert failures(d.check_labels({"location": switched}, {"location": 0})) == ["label switching of location"]
    elsewhere = value.copy()
    elsewhere[1] += 5
    assert not failures(d.check_labels({"location": elsewhere}, {"location": 0}))


def test_a_report_without_checks_is_not_good():
    assert not verdict([]).ok


def test_a_report_says_what_was_checked_the_number_the_threshold_and_what_to_do():
    text = str(verdict(d.check_missing(0.8)))
    assert "Not to be trusted" in text
    assert "FAIL missing share: 0.8 (wanted <= 50%): more is imagined than seen" in text
