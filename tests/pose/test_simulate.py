"""Simulated mice: what the truth says is what was simulated."""

import numpy as np
import pytest

from ppgen.errors import DataError
from ppgen.pose.pose import read_poses
from ppgen.pose.recording import Recording
from ppgen.pose.simulate import simulate_mice, write_deeplabcut_csv


def test_recordings_have_the_lengths_names_and_sizes_asked_for():
    recordings, truth = simulate_mice(random_seed=1)
    assert [len(r) for r in recordings] == [3000, 2400, 1800]
    assert recordings[0].positions.shape == (3000, 8, 2)
    assert len({round(t.scale, 3) for t in truth}) == 3
    assert all(len(t.syllable) == len(r) for r, t in zip(recordings, truth, strict=True))


def test_the_same_seed_gives_the_same_mice():
    (a,), _ = simulate_mice(1, 300, random_seed=4)
    (b,), _ = simulate_mice(1, 300, random_seed=4)
    (c,), _ = simulate_mice(1, 300, random_seed=5)
    assert a.positions.tobytes() == b.positions.tobytes()
    assert a.positions.tobytes() != c.positions.tobytes()


def test_durations_and_missing_share_are_as_promised():
    recordings, truth = simulate_mice(1, 60_000, random_seed=2)
    z = truth[0].syllable
    starts = np.flatnonzero(np.r_[True, z[1:] != z[:-1], True])
    seconds = np.diff(starts) / 30
    assert 0.4 < seconds.mean() < 0.8
    assert seconds[:-1].min() >= 0.13
    assert np.bincount(z, minlength=8).min() > 500
    # Gaps make the share's standard error about 0.002 here: four of them, a false alarm in 16,000 runs.
    assert abs(recordings[0].missing - 0.12) < 0.008


def test_gaps_last_and_confidence_falls_where_points_are_missing():
    (r,), _ = simulate_mice(1, 20_000, random_seed=2)
    absent = np.isnan(r.positions[..., 0])
    assert np.median(r.confidence[absent]) < 0.2 < 0.9 < np.median(r.confidence[~absent])
    after_absent = absent[1:][absent[:-1]].mean()
    assert after_absent > 3 * absent.mean()


def test_syllables_move_differently():
    _, (truth,) = simulate_mice(1, 30_000, random_seed=0)
    speed = np.linalg.norm(np.diff(truth.centroid, axis=0), axis=1) / truth.scale * 30
    turn = np.angle(np.exp(1j * np.diff(truth.heading))) * 30
    by_name = {n: truth.syllable[1:] == k for k, n in enumerate(truth.names)}
    assert speed[by_name["run"]].mean() > 2 > 0.8 > speed[by_name["pause"]].mean()
    assert turn[by_name["turn_left"]].mean() > 1 > -1 > turn[by_name["turn_right"]].mean()


def test_nobody_teleports():
    _, truth = simulate_mice(1, 30_000, random_seed=0)
    step = np.linalg.norm(np.diff(truth[0].positions, axis=0), axis=-1) / truth[0].scale
    assert step.max() < 0.5


def test_a_written_file_reads_back_bit_for_bit(tmp_path):
    (recording,), _ = simulate_mice(1, 200)
    (back,) = read_poses(write_deeplabcut_csv(recording, tmp_path / "m.csv"), fps=30)
    assert back.positions.tobytes() == recording.positions.tobytes()
    assert back.confidence.tobytes() == recording.confidence.tobytes()
    assert back.keypoints == recording.keypoints


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recordings": 2}, r"one number or one per recording \(2\), got 3"),
        ({"frames": 1}, "at least 2 frames"),
        ({"keypoints": 2}, "keypoints must lie in 3-14"),
        ({"syllables": 1}, "syllables must lie in 2-12"),
        ({"missing": 0.95}, "missing must lie in 0-0.9"),
        ({"fps": 5.0}, "fps must lie in 15-500"),
    ],
)
def test_impossible_mice_are_refused_in_words(options, message):
    with pytest.raises(DataError, match=message):
        simulate_mice(**options)


def test_a_three_dimensional_recording_is_not_written_as_csv(tmp_path):
    solid = Recording("s", np.ones((2, 1, 3)), None, ("nose",))
    with pytest.raises(DataError, match="must be 2-D"):
        write_deeplabcut_csv(solid, tmp_path / "x.csv")


@pytest.mark.slow
def test_a_million_frames_take_seconds():
    recordings, _ = simulate_mice(20, 50_000, 10)
    assert sum(len(r) for r in recordings) == 1_000_000
