import json

import numpy as np
import pandas as pd
import pytest

from ppgen.behavior import jobs
from ppgen.behavior.reading import Reading
from ppgen.errors import DataError
from ppgen.pose.recording import Recording
from ppgen.pose.simulate import simulate_mice, write_deeplabcut_csv


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


def test_a_table_of_known_syllables_is_left_out_and_said(tmp_path, capsys):
    (mouse,), _ = simulate_mice(1, 40, keypoints=3, syllables=2)
    path = write_deeplabcut_csv(mouse, tmp_path / "mouse.csv")
    truth = tmp_path / "mouse.truth.csv"
    truth.write_text("frame,syllable\n0,1\n")
    assert [one.name for one in Reading(30.0).read([path, truth], 2)] == ["mouse"]
    assert "mouse.truth.csv: left out, it holds known syllables and no poses" in capsys.readouterr().out
    with pytest.raises(DataError, match="at least one of them must hold poses"):
        Reading(30.0).read([truth], 2)


def test_a_copy_of_a_recording_is_named(tmp_path, capsys):
    (mouse,), _ = simulate_mice(1, 40, keypoints=3, syllables=2)
    path = write_deeplabcut_csv(mouse, tmp_path / "mouse.csv")
    (tmp_path / "other.csv").write_bytes(path.read_bytes())
    found = Reading(30.0).read([path, tmp_path / "other.csv"], 2)
    assert "other: a copy of mouse" in capsys.readouterr().out
    assert any("a copy of mouse" in note for note in found[1].notes)
    assert not any("copy" in note for note in found[0].notes)


def results(folder, names, seed=0):
    """A folder as fit leaves it, with made-up labels."""
    generator = np.random.default_rng(seed)
    (folder / "syllables").mkdir(parents=True)
    for name in names:
        table = pd.DataFrame({"frame": np.arange(60), "syllable": np.repeat(generator.integers(0, 3, 20), 3)})
        table.to_csv(folder / "syllables" / f"{name}.csv", index=False)
    (folder / "run.json").write_text(json.dumps({"fps": 30, "states": 3}))
    return folder


def write_index(path, groups):
    pd.DataFrame({"name": list(groups), "group": list(groups.values())}).to_csv(path, index=False)
    return path


def test_recordings_that_the_groups_leave_out_are_named(tmp_path, capsys):
    folder = results(tmp_path / "out", ["a", "b", "c", "d", "e", "f"])
    index = write_index(tmp_path / "groups.csv", {"a": "x", "b": "x", "c": "y", "d": "y"})
    jobs.compare(folder, index, tmp_path / "compared", permutations=5)
    words = "Left out, for they have no group: e, f (2 of 6 recordings)."
    assert words in capsys.readouterr().out
    assert words in (tmp_path / "compared" / "report.html").read_text()
    assert json.loads((tmp_path / "compared" / "run.json").read_text())["left_out"] == ["e", "f"]


def test_names_that_are_numbers_are_compared(tmp_path):
    folder = results(tmp_path / "out", ["001", "002", "003", "NA"])
    index = write_index(tmp_path / "groups.csv", {"001": "WT", "002": "WT", "003": "KO", "NA": "KO"})
    jobs.compare(folder, index, tmp_path / "compared", permutations=5)
    table = pd.read_csv(tmp_path / "compared" / "groups.csv", dtype=str, keep_default_na=False)
    assert table["recording"].tolist() == ["001", "002", "003", "NA"]
    assert jobs._known_groups(tmp_path / "out") == {}
    write_index(folder / "index.csv", {"001": "WT"})
    assert jobs._known_groups(folder) == {"001": "WT"}


def test_a_name_whose_zeros_a_spreadsheet_dropped_is_refused_with_the_reason(tmp_path):
    folder = results(tmp_path / "out", ["001", "002"])
    index = write_index(tmp_path / "groups.csv", {"1": "WT", "002": "KO"})
    with pytest.raises(DataError, match=r"got '1'; a spreadsheet has dropped leading zeros, write them again"):
        jobs.compare(folder, index, tmp_path / "compared")


def test_a_copy_of_an_animal_is_not_compared_as_another_one(tmp_path):
    folder = results(tmp_path / "out", ["a", "b", "c"])
    (folder / "syllables" / "d.csv").write_bytes((folder / "syllables" / "a.csv").read_bytes())
    index = write_index(tmp_path / "groups.csv", {"a": "x", "b": "x", "c": "y", "d": "y"})
    with pytest.raises(DataError, match="'d' is a copy of 'a'; take one of them out"):
        jobs.compare(folder, index, tmp_path / "compared")
    index = write_index(tmp_path / "fewer.csv", {"a": "x", "b": "x", "c": "y"})
    with pytest.raises(DataError, match="two recordings or more each"):
        jobs.compare(folder, index, tmp_path / "compared")


def test_a_comparison_in_which_nothing_differs_says_so(tmp_path):
    folder = results(tmp_path / "out", ["a", "b", "c", "d"])
    index = write_index(tmp_path / "groups.csv", {"a": "x", "b": "x", "c": "y", "d": "y"})
    jobs.compare(folder, index, tmp_path / "compared", permutations=5)
    assert "No pair differs." in (tmp_path / "compared" / "report.html").read_text()
