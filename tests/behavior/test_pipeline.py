import dataclasses

import numpy as np
import pytest

from ppgen.behavior import pipeline as module
from ppgen.behavior.fitting import Settings, fit_pipeline
from ppgen.behavior.pipeline import Pipeline, renumbered
from ppgen.errors import DataError, FileError
from ppgen.pose.simulate import simulate_mice

STATES = 4


@pytest.fixture(scope="module")
def mice():
    return simulate_mice(2, (240, 180), keypoints=4, syllables=2, missing=0.0)[0]


@pytest.fixture(scope="module")
def study(mice):
    settings = Settings(states=STATES, lags=1, components=2, max_steps=5)
    return fit_pipeline(mice, settings, say=lambda _: None, progressbar=False)


@pytest.fixture
def saved(study, tmp_path):
    study.pipeline.save(tmp_path / "model")
    return tmp_path


def test_a_pipeline_read_back_gives_the_same_labels_bit_for_bit(study, saved, mice):
    one, two = study.pipeline.label(mice[0]), Pipeline.load(saved / "model").label(mice[0])
    for name in ("probabilities", "syllable", "latent", "centroid", "heading"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_the_output_folder_is_as_good_as_the_model_folder(saved):
    assert Pipeline.load(saved).settings == Pipeline.load(saved / "model").settings


def test_labels_do_not_depend_on_where_the_animal_is_or_how_large_it_looks(study, mice):
    one = study.pipeline.label(mice[0])
    moved = dataclasses.replace(mice[0], positions=3.0 * mice[0].positions + 1000.0)
    two = study.pipeline.label(moved)
    np.testing.assert_array_equal(one.syllable, two.syllable)
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)
    np.testing.assert_allclose(two.centroid, 3.0 * one.centroid + 1000.0, rtol=1e-9)


def test_renumbering_changes_names_and_nothing_else(study, mice):
    raw = study.pipeline.label(mice[0])
    order = np.array([2, 0, 3, 1])
    new = renumbered(raw, order)
    np.testing.assert_array_equal(new.syllable, order[raw.syllable])
    np.testing.assert_array_equal(new.probabilities[:, order], raw.probabilities)
    np.testing.assert_array_equal(new.probability, raw.probability)
    named = study.pipeline.numbered(order)
    np.testing.assert_array_equal(named.label(mice[0]).syllable, new.syllable)
    np.testing.assert_array_equal(named.order, np.arange(STATES))


def test_a_long_recording_is_labelled_in_chunks_that_agree_with_the_whole(study, mice, monkeypatch):
    """With 60 frames of margin the past of a chunk no longer matters."""
    whole = study.pipeline.label(mice[0])
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 100)
    monkeypatch.setattr(module, "OVERLAP", 60)
    pieces = study.pipeline.label(mice[0])
    assert len(pieces.syllable) == len(whole.syllable)
    assert (pieces.syllable == whole.syllable).mean() > 0.99
    np.testing.assert_allclose(pieces.probabilities, whole.probabilities, atol=0.02)


def test_frames_after_the_last_seen_one_have_no_syllable_and_frames_in_between_have(study, mice):
    gone = dataclasses.replace(mice[0], positions=mice[0].positions.copy())
    gone.positions[:10], gone.positions[100:110], gone.positions[220:] = np.nan, np.nan, np.nan
    labelled = study.pipeline.label(gone)
    assert (labelled.syllable[220:] == -1).all()
    assert (labelled.syllable[:220] >= 0).all()
    assert np.isnan(labelled.probability[220:]).all()
    np.testing.assert_allclose(labelled.probabilities[:220].sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("gap", [(50, 190), (170, 219), (190, 210), (0, 130)])
def test_a_gap_of_any_length_never_ends_the_recording(study, mice, monkeypatch, gap):
    """Across the border of two pieces, longer than their overlap, longer than a piece, and before the first frame."""
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 40)
    monkeypatch.setattr(module, "OVERLAP", 5)
    gone = dataclasses.replace(mice[0], positions=mice[0].positions.copy())
    gone.positions[slice(*gap)] = np.nan
    labelled = study.pipeline.label(gone)
    assert (labelled.syllable >= 0).all()
    np.testing.assert_allclose(labelled.probabilities.sum(1), 1, atol=1e-5)
    assert np.isfinite(labelled.latent).all()


def test_a_gap_across_a_border_is_answered_as_in_one_piece(study, mice, monkeypatch):
    gone = dataclasses.replace(mice[0], positions=mice[0].positions.copy())
    gone.positions[100:112] = np.nan
    whole = study.pipeline.label(gone)
    monkeypatch.setattr(module, "FRAMES_AT_ONCE", 105)
    monkeypatch.setattr(module, "OVERLAP", 60)
    pieces = study.pipeline.label(gone)
    outside = np.r_[0:98, 114:240]
    np.testing.assert_allclose(pieces.probabilities[outside], whole.probabilities[outside], atol=0.02)


def test_a_recording_of_an_hour_of_nothing_takes_no_hour(study, mice, monkeypatch):
    """Frames in the middle of a long gap share one answer."""
    monkeypatch.setattr(module, "OVERLAP", 10)
    parts = np.full((5000, *mice[0].positions.shape[1:]), np.nan)
    positions = np.concatenate([mice[0].positions[:60], parts, mice[0].positions[60:]])
    labelled = study.pipeline.label(dataclasses.replace(mice[0], positions=positions, confidence=None))
    assert (labelled.syllable >= 0).all()
    assert len(np.unique(labelled.probabilities[80:5040], axis=0)) == 1


def test_a_recording_shorter_than_the_number_of_states_is_labelled(study, mice):
    short = dataclasses.replace(mice[0], positions=mice[0].positions[:3], confidence=None)
    assert len(study.pipeline.label(short).syllable) == 3


def test_a_pipeline_that_an_earlier_version_saved_is_read(study, tmp_path, mice):
    """It had the fit in a folder of its own, and the numbers of its syllables in a table."""
    order = np.array([2, 0, 3, 1])
    old = dataclasses.replace(study.pipeline, order=order)
    old.save(tmp_path / "model")
    inner = tmp_path / "model" / "fit"
    inner.mkdir()
    for name in ("manifest.json", "tensors.safetensors", "history.csv"):
        (tmp_path / "model" / name).rename(inner / name)
    read = Pipeline.load(tmp_path)
    np.testing.assert_array_equal(read.order, order)
    np.testing.assert_array_equal(read.label(mice[0]).syllable, old.label(mice[0]).syllable)


def test_another_frame_rate_is_refused_in_words(study, mice):
    with pytest.raises(DataError, match="must have 30 frames per second like the recordings of the fit, got 25"):
        study.pipeline.label(dataclasses.replace(mice[0], fps=25.0))
    with pytest.raises(DataError, match="got unknown"):
        study.pipeline.label(dataclasses.replace(mice[0], fps=None))


def test_a_folder_that_holds_no_pipeline_is_refused_in_words(saved, tmp_path):
    with pytest.raises(FileError, match="must be a folder that fit wrote, it has no pipeline.safetensors"):
        Pipeline.load(tmp_path / "nothing")
    (saved / "model" / "manifest.json").unlink()
    with pytest.raises(FileError, match="manifest"):
        Pipeline.load(saved)


def test_the_search_is_told_and_recorded_in_seconds(study):
    assert (study.search.trail["median"] < 10).all()
    assert study.pipeline.settings["stickiness"] == study.search.stickiness
    assert study.search.reached == (abs(study.search.median - 0.4) <= 0.04 + 1e-9)
