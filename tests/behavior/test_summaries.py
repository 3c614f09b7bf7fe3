import numpy as np
import pytest
import xarray as xr

from ppgen.behavior.files import Labelled
from ppgen.behavior.summaries import _median, as_dataset, mean_bodies, replicates
from ppgen.errors import DataError
from ppgen.pose.recording import Recording

FPS = 10.0
BODY = np.array([[0.5, 0.0], [0.0, 0.2], [-0.5, 0.0]])


def straight(name, heading, scale, frames=40, speed=2.0):
    """An animal that walks ahead, and what an aligner finds: syllable 1 for the last half, 0 before."""
    ahead = np.array([np.cos(heading), np.sin(heading)])
    turn = np.array([ahead, [-ahead[1], ahead[0]]])
    centroid = 50 + scale * speed / FPS * np.arange(frames)[:, None] * ahead
    positions = centroid[:, None] + scale * BODY @ turn
    syllable = np.repeat([0, 1], frames // 2)
    labelled = Labelled(name, FPS, np.eye(3, dtype="f4")[syllable], syllable, np.zeros((frames, 1)), centroid,
                        np.full(frames, heading))  # fmt: skip
    return Recording(name, positions, None, ("nose", "ear", "tail"), FPS), labelled


def test_a_mean_motion_starts_at_the_origin_and_walks_to_the_right():
    pairs = [straight("a", 0.3, 80.0), straight("b", -2.0, 20.0)]
    recordings, labelled = zip(*pairs, strict=True)
    bodies = mean_bodies(recordings, labelled, {"a": 80.0, "b": 20.0}, syllables=[1], seconds=0.5)
    assert bodies.sizes == {"syllable": 1, "time": 6, "keypoint": 3, "space": 2}
    np.testing.assert_allclose(bodies[0, 0], BODY, atol=1e-12)
    np.testing.assert_allclose(bodies[0, 5], BODY + [2.0 * 0.5, 0], atol=1e-12)


def test_a_keypoint_that_was_not_seen_does_not_move_the_mean():
    recording, labelled = straight("a", 1.0, 30.0)
    recording.positions[20:26, 0] = np.nan
    other, same = straight("b", 0.0, 30.0)
    bodies = mean_bodies([recording, other], [labelled, same], {"a": 30.0, "b": 30.0}, syllables=[1], seconds=0.3)
    np.testing.assert_allclose(bodies[0, 0], BODY, atol=1e-12)
    alone = mean_bodies([recording], [labelled], {"a": 30.0}, syllables=[1], seconds=0.3)
    assert np.isnan(alone[0, :, 0]).all()
    assert np.isfinite(alone[0, :, 1:]).all()


def test_motion_past_the_end_of_a_recording_is_not_invented():
    recording, labelled = straight("a", 0.0, 30.0)
    bodies = mean_bodies([recording], [labelled], {"a": 30.0}, syllables=[1], seconds=3.0)
    assert np.isfinite(bodies[0, :20]).all()
    assert np.isnan(bodies[0, 20:]).all()


def test_the_median_skips_what_is_missing_as_numpy_does():
    generator = np.random.default_rng(0)
    values = np.where(generator.random((9, 4, 5)) < 0.4, np.nan, generator.normal(size=(9, 4, 5)))
    np.testing.assert_array_equal(_median(values), np.nanmedian(values, axis=0))
    assert np.isnan(_median(np.full((3, 2), np.nan))).all()
    with pytest.raises(DataError, match="median: there must be at least one value"):
        _median(np.empty((0, 2)))


def test_a_model_that_repeats_the_data_passes_its_predictive_check_whatever_is_hidden():
    """Hidden entries are hidden in the replicates: a check that compared all of them would find a difference here."""
    generator = np.random.default_rng(1)
    full = generator.normal(size=(60, 6))
    seen = full.copy()
    seen[:20, :2] = np.nan
    simulated = xr.DataArray(np.repeat(full[None, None], 2, axis=0), dims=("draw", "sequence", "time", "feature"))
    table = replicates(simulated, {"a": seen}, 2, FPS)
    for _, rows in table.groupby("statistic"):
        recorded = np.sort(rows.loc[rows["draw"] == -1, "value"])
        for draw in (0, 1):
            np.testing.assert_array_equal(np.sort(rows.loc[rows["draw"] == draw, "value"]), recorded)


def test_labels_become_a_dataset_in_seconds():
    _, labelled = straight("a", 0.0, 30.0)
    found = as_dataset(labelled)
    assert found["z"].dims == ("time", "state")
    np.testing.assert_allclose(found["time"], np.arange(40) / FPS)
