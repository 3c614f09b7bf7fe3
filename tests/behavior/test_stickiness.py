import math

import numpy as np
import pytest

from ppgen.behavior.stickiness import choose_stickiness
from ppgen.errors import DataError, FitError


def growing(slope, start=2.0, noise=0.0, seed=0):
    """A median that grows with log stickiness, with multiplicative noise; each trial counts the ones before it."""
    generator = np.random.default_rng(seed)

    def fit_once(stickiness, previous):
        median = start * math.exp(slope * math.log(stickiness)) * math.exp(noise * generator.standard_normal())
        return (previous or 0) + 1, median

    return fit_once


@pytest.mark.parametrize("slope", [0.02, 0.05, 0.2, 0.8])
@pytest.mark.parametrize("target", [4.0, 12.0, 40.0])
def test_the_target_is_reached_within_a_tenth_in_ten_trials(slope, target):
    found = choose_stickiness(growing(slope), target)
    assert found.reached or 2 * 10 ** (40 * slope) < target
    if found.reached:
        assert abs(found.median - target) <= max(0.1 * target, 0.5)
        assert 1 <= found.stickiness <= 1.0001e40


def test_noise_of_a_tenth_does_not_derail_the_search():
    """20 of 20 within a fifth: noise of 10 % alone moves a right answer that far in under 5 % of the searches."""
    ends = [choose_stickiness(growing(0.08, noise=0.1, seed=seed), 12.0).median for seed in range(20)]
    assert sum(abs(end - 12) <= 2.4 for end in ends) >= 19


def test_a_trial_starts_from_the_fit_at_the_next_smaller_stickiness():
    """Starting from the latest one instead would go down from a merged fit after every overshoot."""
    starts = []

    def fit_once(stickiness, previous):
        starts.append((stickiness, previous))
        return stickiness, 2.0 * stickiness**0.08

    choose_stickiness(fit_once, 12.0)
    tried = [stickiness for stickiness, _ in starts]
    assert any(np.diff(tried) < 0)
    for i, (stickiness, previous) in enumerate(starts):
        assert previous == max((other for other in tried[:i] if other < stickiness), default=None)


def test_a_target_out_of_reach_ends_at_the_edge_and_says_so():
    above = choose_stickiness(lambda k, s: (None, 2.0), 12.0)
    below = choose_stickiness(lambda k, s: (None, 200.0), 12.0)
    assert not above.reached
    assert not below.reached
    assert above.trail["stickiness"].max() == pytest.approx(1e40)
    assert below.trail["stickiness"].min() == 1
    assert len(above.trail) <= 10


def test_the_closest_trial_is_kept_when_none_is_close_enough():
    """The median jumps over the target, as it does when one state swallows another."""
    found = choose_stickiness(lambda k, s: (k, 9.0 if k < 1e9 else 40.0), 12.0)
    assert found.median == 9.0
    assert found.state == found.stickiness
    assert not found.reached


def test_a_fit_without_instances_is_never_the_best():
    found = choose_stickiness(lambda k, s: (None, float("nan") if k > 1e5 else 3.0), 12.0)
    assert found.median == 3.0


def test_a_target_below_one_frame_is_refused_in_words():
    with pytest.raises(DataError, match=r"choose_stickiness: the target must be at least one frame, got 0.3 frames"):
        choose_stickiness(growing(0.1), 0.3)


def failing_from(limit, slope=0.02, start=2.0):
    """A median that grows slowly, and fits that fail from ``limit`` on; the stickinesses that were tried."""
    tried = []

    def fit_once(stickiness, previous):
        tried.append(stickiness)
        if stickiness >= limit:
            raise FitError("the bound went down")
        return stickiness, start * stickiness**slope

    return fit_once, tried


def test_a_search_stays_below_the_stickiness_at_which_fits_fail():
    fit_once, tried = failing_from(1e15)
    found = choose_stickiness(fit_once, 400.0)
    assert not found.reached
    assert found.stickiness < 1e15
    assert found.stickiness == found.trail["stickiness"].max() > 1e11
    assert len(tried) <= 16


def test_a_target_just_below_the_stickiness_at_which_fits_fail_is_still_found():
    fit_once, _ = failing_from(1e18, slope=0.05)
    found = choose_stickiness(fit_once, 2.0 * 1e14**0.05)
    assert found.reached


def test_a_search_whose_first_trial_fails_goes_below_it():
    fit_once, _ = failing_from(1e12, slope=0.1)
    assert choose_stickiness(fit_once, 12.0, first=1e14, step=1.0, max_evaluations=1).stickiness < 1e12


def test_when_every_trial_fails_the_failure_is_told():
    fit_once, tried = failing_from(0.0)
    with pytest.raises(FitError, match="the bound went down"):
        choose_stickiness(fit_once, 12.0)
    assert len(tried) <= 8
