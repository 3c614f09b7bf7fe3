import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ppgen.behavior.summaries import SPEED, replicates
from ppgen.behavior.trust import _gone, _rare_words, _starts_words, check_movement, check_rare


def replicas(factor, draws=5):
    generator = np.random.default_rng(0)
    parts = [(-1, 1.0), *((draw, factor) for draw in range(draws))]
    return pd.concat(
        pd.DataFrame({"statistic": SPEED, "draw": draw, "value": scale * generator.gamma(2.0, size=500)})
        for draw, scale in parts
    )


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (2.0, True), (5.0, False), (0.1, False), (1e40, False)])
def test_simulated_animals_must_be_about_as_fast_as_recorded_ones(factor, ok):
    stays, speed = check_movement(replicas(factor), [False] * 5)
    assert stays.ok
    assert speed.ok == ok


def test_one_simulated_set_that_runs_away_is_one_too_many():
    stays, _ = check_movement(replicas(1.0), [False, True, False, False, False])
    assert not stays.ok
    assert stays.value == 0.2


def test_a_check_of_nothing_fails():
    assert not any(check.ok for check in check_movement(replicas(np.nan), []))


def test_a_set_is_gone_when_a_body_part_is_far_or_lost_at_any_time():
    drawn = np.zeros((4, 1, 6, 2))
    drawn[1, 0, 3, 1], drawn[2, 0, 5, 0], drawn[3, 0, 2, 0] = 11.0, np.nan, 9.0
    simulated = xr.DataArray(drawn, dims=("draw", "sequence", "time", "feature"))
    assert _gone(simulated, {"a": np.full((6, 2), 0.5)}) == [False, True, True, False]


def test_a_simulation_beyond_all_numbers_counts_as_far():
    drawn = np.full((1, 1, 6, 2), np.nan)
    simulated = xr.DataArray(drawn, dims=("draw", "sequence", "time", "feature"))
    table = replicates(simulated, {"a": np.zeros((6, 2))}, 2, 10.0)
    assert (table.query("draw == 0")["value"] > 1e5).any()


def syllables(instances, usage):
    return pd.DataFrame({"instances": instances, "usage": usage})


def test_rare_syllables_are_named_and_fail_the_verdict_when_they_take_much_of_the_time():
    few = syllables([40, 30, 4, 1], [0.6, 0.38, 0.01, 0.01])
    assert check_rare(few)[0].ok
    assert "2 of 4 syllables were seen fewer than 5 times: 2, 3." in _rare_words(few)
    many = syllables([40, 1, 1, 1], [0.4, 0.2, 0.2, 0.2])
    assert not check_rare(many)[0].ok
    assert _rare_words(syllables([40, 5], [0.5, 0.5])) == ""


def test_what_is_known_of_other_starts_is_said():
    assert _starts_words([5.0]).endswith("by fitting again with another --seed, and by match.")
    words = _starts_words([-100.0, -60.0, -500.0])
    assert "of the search's 3 starts the best after 30 steps was continued, the second was 40 nats behind" in words
