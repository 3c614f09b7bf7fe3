import numpy as np
import pandas as pd
import pytest

from ppgen.behavior import fitting
from ppgen.behavior.fitting import Settings, _check, _part, _usable, fit_pipeline, modes, out_of_reach, windows
from ppgen.behavior.stickiness import Search
from ppgen.collapsed.across_gaps import AcrossGaps
from ppgen.emissions.autoregressive import Autoregressive
from ppgen.errors import DataError
from ppgen.inference import vb
from ppgen.models.hmm import HMM
from ppgen.pose.recording import Recording
from ppgen.pose.simulate import simulate_mice


@pytest.fixture
def mice():
    return simulate_mice(2, (90, 60), keypoints=4, syllables=2, missing=0.0)[0]


def test_windows_hold_every_frame_once_and_are_about_equal():
    x = {"a": np.arange(50.0).reshape(25, 2), "b": np.arange(8.0).reshape(4, 2)}
    cut = windows(x, 10, 1)
    np.testing.assert_array_equal(np.concatenate([part for name, part in cut.items() if name[0] == "a"]), x["a"])
    assert {len(part) for name, part in cut.items() if name[0] == "a"} <= {8, 9}
    assert "b" in cut


def test_windows_without_enough_to_see_are_left_out():
    x = np.ones((30, 2))
    x[10:20] = np.nan
    x[21:30] = np.nan
    assert list(windows({"a": x}, 10, 2)) == ["a [0:10]"]
    with pytest.raises(DataError, match=r"keypoints seen in more than 40 frames \(the lags\)"):
        windows({"a": x}, 10, 40)


def test_a_part_of_the_windows_is_drawn_in_order_and_repeatably():
    x = {str(i): np.zeros((10, 1)) for i in range(30)}
    part = _part(x, 100, 0)
    assert len(part) == 10
    assert list(part) == sorted(part, key=int)
    assert list(_part(x, 100, 0)) == list(part)
    assert list(_part(x, 100, 1)) != list(part)
    assert _part(x, 300, 0) is x


def test_keypoints_in_another_order_are_brought_into_one(mice):
    turned = mice[1].select(mice[1].keypoints[::-1])
    kept = _usable([mice[0], turned], ())
    assert kept[0].keypoints == kept[1].keypoints
    np.testing.assert_array_equal(kept[1].positions, mice[1].positions)


def test_a_keypoint_seen_in_one_recording_only_is_kept(mice):
    mice[0].positions[:, 2] = np.nan
    assert _usable(mice, ())[0].keypoints == mice[0].keypoints


def test_recordings_that_do_not_belong_together_are_refused_in_words(mice):
    with pytest.raises(DataError, match="must have the same keypoints, 'mouse_1' and 'mouse_2' differ in"):
        _usable([mice[0], mice[1].select(mice[1].keypoints[:3])], ())
    fast = Recording("fast", mice[1].positions, None, mice[1].keypoints, 60.0)
    with pytest.raises(DataError, match="must have one frame rate, got 30 to 60"):
        _check([mice[0], fast], Settings(states=2))


def test_frame_rates_that_differ_by_rounding_are_one(mice):
    close = Recording("close", mice[1].positions, None, mice[1].keypoints, 29.97)
    assert _check([mice[0], close], Settings(states=2)) == 30.0


def test_data_too_large_for_whole_steps_is_fitted_in_batches_and_searched_in_part(monkeypatch):
    """A part with a third of the frames asks for a third of the stickiness: prior counts weigh against data counts."""
    recordings, _ = simulate_mice(2, (300, 300), keypoints=4, syllables=2, missing=0.0)
    said: list[str] = []
    for name, value in {"WINDOW": 50, "WHOLE": 400, "BATCH": 150, "SEARCH": 200, "FIRST_STEPS": 4}.items():
        monkeypatch.setattr(fitting, name, value)
    settings = Settings(states=3, lags=1, components=2, max_steps=6)
    study = fit_pipeline(recordings, settings, say=said.append, progressbar=False)
    assert len(study.x) == 12
    assert study.pipeline.fit.attrs["batch_size"] == 3
    turn = said.index("fitting until it converges")
    brief = [float(line.split()[1][:-1]) for line in said[2:turn]]
    assert min(abs(3 * tried / float(said[turn + 1].split()[1][:-1]) - 1) for tried in brief) < 0.01
    assert study.search.trail["stickiness"].iloc[0] == pytest.approx(300.0)
    labels = study.pipeline.label(recordings[0])
    assert (labels.syllable >= 0).all()
    assert any("looking for the stickiness" in line for line in said)


def search(medians, median):
    trail = pd.DataFrame({"stickiness": np.geomspace(1, 100, len(medians)), "median": medians})
    return Search(10.0, None, median, trail, False)


def test_a_target_that_was_not_reached_is_explained():
    assert "(the longest was 0.05 s); check the frame rate (--fps)" in out_of_reach(search([0.01, 0.05], 0.05), 0.4)
    assert "(the shortest was 0.90 s)" in out_of_reach(search([0.9, 2.0], 0.9), 0.4)
    assert "the median jumps over 0.4 s" in out_of_reach(search([0.1, 2.0], 0.1), 0.4)


def test_a_target_longer_than_any_recording_is_refused_in_words(mice):
    with pytest.raises(DataError, match=r"must be shorter than the longest recording \(3.00 s\), got 60 s"):
        _check(mice, Settings(states=2, target_duration=60.0))


def test_durations_between_fits_are_measured_without_summing_over_gaps(monkeypatch):
    """Labelling with sums over gaps takes many times as long as a step of the fit."""

    def dear(self):
        raise AssertionError("the sum over gaps was asked for")

    rng = np.random.default_rng(0)
    x = {"a": rng.normal(size=(40, 2)).cumsum(axis=0), "b": rng.normal(size=(30, 2)).cumsum(axis=0)}
    fit = vb.fit(HMM(2, emission=Autoregressive(2, 1)), x, max_steps=3, random_seed=0, progressbar=False)
    found, label = modes(fit, x), fit.latents(x)["z_mode"].transpose("sequence", "time").to_numpy()
    for name, row in zip(x, label, strict=True):  # without gaps both are the same path
        np.testing.assert_array_equal(found[name], row[: len(x[name])])
    x["a"][5:9] = np.nan
    monkeypatch.setattr(AcrossGaps, "latents", dear)
    assert {name: path.shape for name, path in modes(fit, x).items()} == {"a": (40,), "b": (30,)}
