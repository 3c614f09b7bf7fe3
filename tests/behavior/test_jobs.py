import numpy as np
import pytest

from ppgen.behavior.jobs import Reading
from ppgen.data.recording import Recording
from ppgen.data.simulate import simulate_mice, write_deeplabcut_csv
from ppgen.errors import DataError


@pytest.fixture
def two_animals(tmp_path):
    """One file of two animals told apart by their keypoints' names; the second shows one keypoint of four at a time."""
    (one, two), _ = simulate_mice(2, 40, keypoints=4, syllables=2, missing=0.0)
    hidden = np.arange(40)[:, None] % 4 != np.arange(4)
    positions = np.concatenate([one.positions, np.where(hidden[..., None], np.nan, two.positions)], axis=1)
    names = tuple(f"{animal}_{k}" for animal in "AB" for k in one.keypoints)
    return write_deeplabcut_csv(Recording("pair", positions, None, names, 30.0), tmp_path / "pair.csv")


def test_animals_told_apart_by_names_become_recordings_and_useless_ones_are_left_out(two_animals, capsys):
    found = Reading(30.0, individuals=("A_", "B_")).read([two_animals], 5)
    assert [one.name for one in found] == ["pair.A"]
    assert "pair.csv: left out 1 of 2 tracks" in capsys.readouterr().out


def test_a_file_is_never_left_out_as_a_whole(two_animals):
    assert len(Reading(30.0, individuals=("A_", "B_")).read([two_animals], 500)) == 2


def test_low_confidence_is_not_seen_unless_asked_otherwise(tmp_path):
    (mouse,), _ = simulate_mice(1, 60, keypoints=3, syllables=2, missing=0.3)
    path = write_deeplabcut_csv(mouse, tmp_path / "mouse.csv")
    assert Reading(30.0).read([path], 2)[0].missing >= Reading(30.0, 0.0).read([path], 2)[0].missing
    assert Reading(30.0, 0.999).read([path], 2)[0].missing > 0.5


def test_files_of_the_same_name_in_one_run_are_told_apart_or_refused(tmp_path):
    (mouse,), _ = simulate_mice(1, 40, keypoints=3, syllables=2)
    paths = []
    for folder in ("day1", "day2"):
        (tmp_path / folder).mkdir()
        paths.append(write_deeplabcut_csv(mouse, tmp_path / folder / "mouse.csv"))
    names = [one.name for one in Reading(30.0).read(paths, 2)]
    assert names == ["day1_mouse", "day2_mouse"]
    with pytest.raises(DataError, match="each must have its own name"):
        Reading(30.0).read([paths[0], paths[0]], 2)
