import json
from dataclasses import replace

import h5py
import numpy as np
import pandas as pd
import pytest

from ppgen.behavior.files import (
    Labelled,
    copies,
    read_groups,
    read_labels,
    read_run,
    safe_names,
    write_groups,
    write_json,
    write_results,
    write_table,
)
from ppgen.behavior.folders import check_output, output_folder
from ppgen.errors import DataError, FileError


@pytest.fixture
def labelled():
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(4), 6).astype("f4")
    return Labelled("mouse 1", 25.0, probabilities, probabilities.argmax(1), generator.normal(size=(6, 2)),
                    generator.normal(size=(6, 2)), generator.normal(size=6))  # fmt: skip


def run_folder(path, labelled):
    (path / "syllables").mkdir(parents=True)
    write_table(path / "syllables" / f"{labelled.name}.csv", labelled)
    write_json(path / "run.json", {"fps": 25, "states": 4})


def test_a_table_holds_what_was_labelled(tmp_path, labelled):
    write_table(tmp_path / "a.csv", labelled)
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table) == [
        "frame", "time", "syllable", "probability", "centroid_x", "centroid_y", "heading", "latent_0", "latent_1",
    ]  # fmt: skip
    np.testing.assert_allclose(table["time"], np.arange(6) / 25)
    np.testing.assert_allclose(table["probability"], labelled.probabilities.max(1), rtol=1e-5)


def test_results_have_the_layout_of_keypoint_moseq(tmp_path, labelled):
    write_results(tmp_path / "results.h5", [labelled])
    with h5py.File(tmp_path / "results.h5") as file:
        group = file["mouse 1"]
        assert {"syllable", "latent_state", "centroid", "heading"} <= set(group)
        assert group["syllable"].shape == (6,)
        np.testing.assert_array_equal(group["probabilities"][:], labelled.probabilities)


def test_labels_are_read_back(tmp_path, labelled):
    run_folder(tmp_path, labelled)
    np.testing.assert_array_equal(read_labels(tmp_path)["mouse 1"], labelled.syllable)


def test_the_output_appears_whole(tmp_path):
    with output_folder(tmp_path / "deep" / "out") as work:
        (work / "a.txt").write_text("a")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "a.txt").read_text() == "a"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind_and_the_old_results_alone(tmp_path, labelled, error):
    run_folder(tmp_path / "out", labelled)
    before = (tmp_path / "out" / "run.json").read_bytes()

    def fail():
        with output_folder(tmp_path / "out", overwrite=True) as work:
            (work / "run.json").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert (tmp_path / "out" / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwriting_replaces_results_and_keeps_the_files_of_the_user(tmp_path, labelled):
    run_folder(tmp_path / "out", labelled)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "compare").mkdir()
    with output_folder(tmp_path / "out", overwrite=True) as work:
        (work / "run.json").write_text("new")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.json", "notes.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_ours_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.doc").write_text("years")
    with pytest.raises(
        FileError, match="must be empty or new, it holds thesis.doc; choose another --out or add --over"
    ):
        check_output(tmp_path, overwrite=False)
    with pytest.raises(FileError, match="was not written by this program"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(FileError, match="--out must be a folder, got the file"):
        check_output(tmp_path / "thesis.doc", overwrite=True)


def test_a_folder_that_holds_the_input_is_never_overwritten(tmp_path, labelled):
    run_folder(tmp_path, labelled)
    (tmp_path / "mouse.csv").write_text("input")
    with pytest.raises(FileError, match="holds the input mouse.csv"):
        check_output(tmp_path, overwrite=True, inputs=[tmp_path / "mouse.csv"])


def test_an_output_below_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be created"), output_folder(tmp_path / "file" / "out"):
        pass


def test_groups_are_read_back_and_known_ones_kept(tmp_path):
    write_groups(tmp_path / "index.csv", ["a", "b"], {"a": "saline", "old": "gone"})
    assert read_groups(tmp_path / "index.csv") == {"a": "saline", "b": "default"}


@pytest.mark.parametrize("name", ["001", "NA", "nan", "1e3", "None"])
def test_a_name_that_looks_like_something_else_keeps_its_group(tmp_path, name):
    """Read as numbers, 001 is 1 and 1e3 is 1000.0; read as pandas does, NA is missing."""
    write_groups(tmp_path / "index.csv", [name], {name: "NA"})
    assert read_groups(tmp_path / "index.csv") == {name: "NA"}


def test_names_and_groups_that_are_equal_as_numbers_stay_apart(tmp_path):
    (tmp_path / "index.csv").write_text("name,group\n01,02\n1,2\n")
    assert read_groups(tmp_path / "index.csv") == {"01": "02", "1": "2"}


def test_a_copy_of_a_recording_is_found_whatever_its_name(tmp_path, labelled):
    run_folder(tmp_path, labelled)
    write_table(tmp_path / "syllables" / "again.csv", labelled)
    write_table(tmp_path / "syllables" / "other.csv", replace(labelled, heading=labelled.heading + 1))
    assert copies(tmp_path, ["mouse 1", "other", "again"]) == [("mouse 1", "again")]
    assert copies(tmp_path, ["other", "again"]) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_runs_into_one_folder_the_later_keeps_its_results_beside(tmp_path, labelled, overwrite):
    out = tmp_path / "out"
    if overwrite:
        run_folder(out, labelled)

    def later():
        with output_folder(out, overwrite) as work:
            (work / "run.json").write_text("later")
            with output_folder(out, overwrite) as other:
                (other / "run.json").write_text("earlier")

    with pytest.raises(FileError, match="changed by another program during this run.*of this run are in .*out-2"):
        later()
    assert (out / "run.json").read_text() == "earlier"
    assert (tmp_path / "out-2" / "run.json").read_text() == "later"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out-2"}


def test_a_file_that_came_into_the_folder_meanwhile_is_not_deleted(tmp_path):
    def run():
        with output_folder(tmp_path / "out") as work:
            (work / "run.json").write_text("new")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.doc").write_text("years")

    with pytest.raises(FileError, match="left as it is"):
        run()
    assert (tmp_path / "out" / "thesis.doc").read_text() == "years"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,treatment\na,x\n", "must have the columns name and group, got name, treatment"),
        ("name,group\na,x\nb,\n", "line 3 lacks one"),
        ("name,group\na,x\na,y\n", "got 'a' twice"),
        ("", "cannot be read"),
        ('a,b\n"\n', "cannot be read"),
    ],
)
def test_a_bad_index_is_refused_in_words(tmp_path, text, words):
    (tmp_path / "index.csv").write_text(text)
    with pytest.raises(FileError, match=words):
        read_groups(tmp_path / "index.csv")
    with pytest.raises(FileError, match="no such file"):
        read_groups(tmp_path / "absent.csv")


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps({"fps": "fast", "states": 3})])
def test_a_damaged_run_is_refused_in_words(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(FileError, match="is damaged"):
        read_run(tmp_path)


def test_a_folder_without_results_is_refused_in_words(tmp_path, labelled):
    with pytest.raises(FileError, match="a folder that fit or apply wrote, it has no run.json"):
        read_labels(tmp_path)
    run_folder(tmp_path, labelled)
    (tmp_path / "syllables" / "mouse 1.csv").write_text("frame,syllable\n0,walk\n")
    with pytest.raises(FileError, match="must hold whole numbers"):
        read_labels(tmp_path)
    (tmp_path / "syllables" / "mouse 1.csv").unlink()
    with pytest.raises(FileError, match=r"must hold syllables/\*.csv"):
        read_labels(tmp_path)


def test_names_become_names_of_files():
    assert safe_names(["a/b:c", "müsli 1", ".."]) == ["a_b_c", "müsli 1", "recording"]
    with pytest.raises(DataError, match="each must have its own name, got 'A' twice"):
        safe_names(["a", "A"])
