import numpy as np
import pytest
from scipy.signal import lfilter

from ppgen.diagnostics import checks as d
from ppgen.diagnostics.relabel import align


@pytest.fixture
def random():
    return np.random.default_rng(0)


def verdict(checks):
    return d.report(list(checks))


def failures(checks):
    return [check.check for check in checks if not check.ok]


def everything(value):
    """All that is said of the draws of one site."""
    return [*d.check_chains({"a": value}), *d.check_modes({"a": value})]


def good(random, shape, rho):
    """Stationary chains of a normal, a skewed and a heavy-tailed (t, 5 degrees of freedom) quantity."""
    noise = random.normal(size=(*shape, 3))
    noise[:, 0] /= np.sqrt(1 - rho**2)
    value = lfilter([1], [1, -rho], noise, axis=1) * np.sqrt(1 - rho**2)
    value[..., 1] = np.exp(0.7 * value[..., 1])
    value[..., 2] *= np.sqrt(5 / random.chisquare(5, size=shape))
    return value


def false_alarms(random, shape, rho, sets):
    return sum(not verdict(everything(good(random, shape, rho))).ok for _ in range(sets))


SHAPES = pytest.mark.parametrize("shape", [(4, 1000), (64, 100), (64, 1000)])


@SHAPES
def test_good_draws_raise_no_alarm(random, shape):
    """R-hat, odd chains and means of chains: three false alarms in a thousand sets; two in 10 has probability 4e-4."""
    assert false_alarms(random, shape, 0.5, 10) < 2


@pytest.mark.slow
@SHAPES
@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.5])
def test_good_draws_raise_alarms_as_rarely_as_is_said(random, shape, rho):
    """Three in a thousand sets; more than 5 in 200 has probability 5e-5."""
    assert false_alarms(random, shape, rho, 200) <= 5


def a_frozen_chain(value, random):
    value[1] = value[1, 0]


def everything_frozen_in_one_place(value, random):
    value[:] = 0.37


def an_entry_that_is_constant(value, random):
    value[..., 1] = 2.5


def a_chain_that_rarely_moves(value, random):
    value[1] = value[1, np.arange(value.shape[1]) // 25 * 25]


def a_chain_that_stops_half_way(value, random):
    value[1, value.shape[1] // 2 :] = value[1, value.shape[1] // 2]


def a_chain_that_stops_at_last(value, random):
    late = value.shape[1] // 5
    value[1, -late:] = value[1, -late - 1]


def some_chains_a_little_off(value, random):
    value[: max(1, len(value) // 8)] += 0.4


def a_copy_of_a_chain(value, random):
    value[1] = value[0]


def a_chain_elsewhere(value, random):
    value[0] += 1


def a_wider_chain(value, random):
    value[0] *= 2


def a_chain_under_way(value, random):
    value[0] += np.linspace(-2, 2, value.shape[1])[:, None]


def every_chain_in_its_own_place(value, random):
    value += 0.5 * np.linspace(-1, 1, len(value))[:, None, None]


def every_chain_with_its_own_scale(value, random):
    value *= np.exp(0.5 * np.linspace(-1, 1, len(value)))[:, None, None]


def a_drift_of_all_chains(value, random):
    value += np.linspace(0, 1.5, value.shape[1])[:, None]


def a_start_that_was_kept(value, random):
    early = value.shape[1] // 8
    value[:, :early] += 3 * np.linspace(1, 0, early)[:, None]


def chains_in_two_modes(value, random):
    value[: len(value) // 2] += 8


def one_chain_in_another_mode(value, random):
    value[0] += 8


def jumps_between_modes_once_a_chain(value, random):
    S = value.shape[1]
    value += 8 * (np.arange(S)[:, None] > random.integers(0, S, size=(len(value), 1, 1)))


def chains_that_hardly_forget(value, random):
    for t in range(1, value.shape[1]):
        value[:, t] = 0.99 * value[:, t - 1] + 0.14 * value[:, t]


def chains_that_go_round(value, random):
    S = value.shape[1]
    value[:] = 0.3 * value + np.sin(2 * np.pi * (np.arange(S)[:, None] / S + random.random((len(value), 1, 1))))


def one_nan(value, random):
    value[2, 5, 0] = np.nan


def one_infinity(value, random):
    value[2, 5, 0] = np.inf


def tails_without_a_mean(value, random):
    value[:] = random.standard_cauchy(value.shape)


RHAT = {(4, 1000): "R-hat of a", (64, 100): "nested R-hat of a", (64, 1000): "nested R-hat of a"}
ODD = {(4, 1000): "R-hat of a", (64, 100): "odd chain of a", (64, 1000): "odd chain of a"}


@SHAPES
@pytest.mark.parametrize(
    ("plant", "seen_by"),
    [
        (a_frozen_chain, "moving chains of a"),
        (everything_frozen_in_one_place, "moving chains of a"),
        (an_entry_that_is_constant, "moving chains of a"),
        (a_chain_that_rarely_moves, "moving chains of a"),
        (a_chain_that_stops_half_way, "moving chains of a"),
        (a_chain_that_stops_at_last, "longest stay"),
        (some_chains_a_little_off, "chain means of a"),
        (a_copy_of_a_chain, "distinct chains"),
        (a_chain_elsewhere, ODD),
        (a_wider_chain, ODD),
        (a_chain_under_way, ODD),
        (every_chain_in_its_own_place, RHAT),
        (every_chain_with_its_own_scale, RHAT),
        (a_drift_of_all_chains, RHAT),
        (a_start_that_was_kept, {(4, 1000): "ESS (bulk) of a"} | {shape: RHAT[shape] for shape in list(RHAT)[1:]}),
        (chains_in_two_modes, "modes"),
        (one_chain_in_another_mode, "modes"),
        (jumps_between_modes_once_a_chain, RHAT),
        (chains_that_hardly_forget, "ESS (bulk) of a"),
        (chains_that_go_round, RHAT),
        (one_nan, "R-hat of a"),
        (one_infinity, "moving chains of a"),
        (tails_without_a_mean, "tail shape of a"),
    ],
)
def test_a_fault_is_seen(random, shape, plant, seen_by):
    value = random.normal(size=(*shape, 2))
    plant(value, random)
    wanted = seen_by[shape] if isinstance(seen_by, dict) else seen_by
    assert any(wanted in name for name in failures(everything(value)))


def test_a_number_that_is_not_finite_fails_whatever_needs_it(random):
    value = random.normal(size=(4, 500))
    value[0, 0] = np.nan
    report = verdict(everything(value))
    assert report.table.set_index("check").drop("distinct chains")["value"].isna().all()
    assert report.table.set_index("check").drop("distinct chains")["ok"].eq(False).all()
    assert "99.95% of draws are finite" in str(report)


def test_everything_frozen_is_a_failure_and_one_chain_alone_too(random):
    assert failures(d.check_chains({"a": np.ones((4, 100))})) == ["moving chains"]
    assert failures(everything(random.normal(size=(1, 4000)))) == ["R-hat of a"]
    assert "one chain cannot check itself" in str(verdict(everything(random.normal(size=(1, 4000)))))


def test_stays_that_rejections_explain_raise_no_alarm(random):
    """Acceptance 0.4: the longest of some 25,000 stays is 20 draws or so; and whole numbers that persist."""
    moved = random.random((64, 200)) < 0.4
    moved[:, 0] = True
    at = np.maximum.accumulate(np.where(moved, np.arange(200), 0), 1)
    rejecting = np.take_along_axis(random.normal(size=(64, 200)), at, 1)
    persisting = np.repeat(random.integers(0, 2, size=(64, 10)), 20, axis=1).astype(float)
    for value in (rejecting, persisting, np.stack([rejecting, persisting], -1)):
        assert "longest stay" not in failures(d.check_chains({"a": value}))
    rejecting[3, 150:] = rejecting[3, 150]
    stay = [check for check in d.check_chains({"a": rejecting}) if check.check == "longest stay"]
    assert not stay[0].ok
    assert "chain 3 stood still" in stay[0].advice


def test_too_few_draws_are_not_trusted_however_good(random):
    assert "ESS (bulk) of a" in failures(everything(random.normal(size=(4, 60))))
    assert "ESS (bulk) of a" in failures(everything(random.normal(size=(64, 3))))


def test_what_is_constant_by_construction_is_left_out(random):
    triangle = random.normal(size=(4, 1000, 2, 2))
    triangle[..., 0, 1] = 0
    assert verdict(d.check_chains({"factor": triangle, "initial": np.ones((4, 1000, 1))})).ok


def test_a_probability_that_is_all_but_one_still_moves(random):
    value = random.normal(size=(4, 1000, 2))
    value[..., 0] = np.where(random.random((4, 1000)) < 0.5, 1.0, 1 - 1e-9 * random.random((4, 1000)))
    assert "moving chains of a" not in failures(everything(value))


def test_with_hundreds_of_quantities_chance_is_allowed_for_and_no_more(random):
    """Autocorrelation time 4; among 400 entries of 4 x 1000 the worst R-hat is above 1.01 in nearly every set."""
    value = lfilter([1], [1, -0.6], random.normal(size=(4, 1050, 400)), axis=1)[:, 50:]
    checks = {check.check: check for check in d.check_chains({"a": value})}
    assert checks["R-hat of a"].value > 1.01
    assert checks["R-hat of a"].ok
    assert "by chance" in checks["R-hat of a"].threshold
    value[0, :, 7] += 1.25  # the sd, so one of four chains is elsewhere in one entry of 400
    assert "R-hat of a" in failures(d.check_chains({"a": value}))


def test_modes_are_counted_in_the_verdict(random):
    value = random.normal(size=(64, 100))
    value[:31] += 8
    report = verdict(everything(value))
    assert "2 modes: 33 chains here, 31 there; they differ in a" in report.verdict
    assert "where they began, not what it weighs" in report.verdict


def test_a_switch_of_labels_is_no_failure_but_labels_that_cannot_be_told_apart_are(random):
    value = random.normal(size=(4, 500, 2)) * 0.1 + np.array([0.0, 3.0])
    value[1] = value[1, :, ::-1]
    switched = align({"location": value}, {"location": (0,)})
    assert verdict(d.check_labels("component", switched)).ok
    assert "2 numberings among the chains, changes at 0.0% of steps" in switched.words("component")
    unclear = align({"location": random.normal(size=(4, 500, 2))}, {"location": (0,)})
    assert failures(d.check_labels("component", unclear)) == ["labels of component"]


def test_divergences_and_slow_energy_are_seen(random):
    diverging = np.zeros((2, 500), dtype=bool)
    energy = random.normal(size=(2, 500))
    assert not failures(d.check_sampler({"diverging": diverging, "energy": energy}))
    diverging[0, 3] = True
    assert failures(d.check_sampler({"diverging": diverging, "energy": energy.cumsum(1)})) == ["divergences", "E-BFMI"]
    assert failures(d.check_sampler({"energy": np.full((2, 500), np.nan)})) == ["E-BFMI"]
    assert failures(d.check_sampler({"energy": np.ones((2, 500))})) == ["E-BFMI"]


def test_short_chains_raise_no_alarm_about_their_energy(random):
    """E-BFMI of 0.6 in 200 sets of 64 chains of 50 draws: alone, the worst of the chains would be under 0.3."""
    for _ in range(200):
        energy = lfilter([1], [1, -0.7], random.normal(size=(64, 100)), axis=1)[:, 50:]
        assert not failures(d.check_sampler({"energy": energy}))
    energy[::2] = energy[::2].cumsum(1)
    assert failures(d.check_sampler({"energy": energy})) == ["E-BFMI"]


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


def test_a_bound_that_still_rises_is_seen_whatever_the_engine_says(random):
    noise = random.normal(size=2000)
    assert not failures(d.check_convergence(True, noise))
    assert failures(d.check_convergence(True, noise + 0.05 * np.arange(2000))) == ["ELBO slope"]
    assert not failures(d.check_convergence(True, -100 / np.arange(1.0, 60)))


def test_without_early_stopping_the_slope_alone_decides(random):
    noise = random.normal(size=2000)
    assert not failures(d.check_convergence(None, noise))
    assert not failures(d.check_convergence(None, noise - 0.001 * np.arange(2000)))
    rising = list(d.check_convergence(None, noise + 0.05 * np.arange(2000)))
    assert failures(rising) == ["ELBO slope"]
    assert "cosine" in rising[0].advice
    assert failures(d.check_convergence(None, np.arange(5.0))) == ["ELBO slope"]


def test_a_lone_best_restart_is_seen():
    assert not failures(d.check_restarts([-100.0, -101.0, -300.0]))
    assert failures(d.check_restarts([-100.0, -150.0]))
    assert failures(d.check_restarts([-100.0, np.nan]))
    assert not list(d.check_restarts([-100.0]))


def test_mostly_missing_data_is_said():
    assert not failures(d.check_missing(0.2))
    assert failures(d.check_missing(0.8))
    assert failures(d.check_missing(np.nan))


def test_a_report_without_checks_is_not_good():
    assert not verdict([]).ok


def test_a_report_says_what_was_checked_the_number_the_threshold_and_what_to_do():
    text = str(verdict(d.check_missing(0.8)))
    assert "Not to be trusted" in text
    assert "FAIL missing share: 0.8 (wanted <= 50%): more is imagined than seen" in text
