import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

import ppgen
from ppgen.behavior import fitting, jobs, study_report
from ppgen.behavior.files import read_labels
from ppgen.behavior.pipeline import Pipeline, observations
from ppgen.behavior.reading import Reading
from ppgen.pose.simulate import simulate_mice, write_deeplabcut_csv

SCRIPT = Path(__file__).parents[2] / "case_studies" / "syllables.py"
QUICK = ["--states", "4", "--lags", "1", "--max-steps", "4", "--components", "2"]


def load_script():
    spec = importlib.util.spec_from_file_location("syllables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


main = load_script().main


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module", autouse=True)
def brief():
    """Few steps and few draws: these tests ask what a run writes, not how well it fits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "FIRST_STEPS", 4)
        patch.setattr(fitting, "SEARCH_STEPS", 2)
        patch.setattr(jobs, "SAVED_DRAWS", 5)
        patch.setattr(study_report, "SIMULATIONS", 3)
        yield


@pytest.fixture(scope="module")
def mice(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mice")
    recordings, _ = simulate_mice(4, (150, 130, 120, 110), keypoints=4, syllables=3, missing=0.02)
    return [write_deeplabcut_csv(one, folder / f"{one.name}.csv") for one in recordings]


@pytest.fixture(scope="module")
def fitted(mice, tmp_path_factory):
    out = tmp_path_factory.mktemp("fitted") / "out"
    assert run("fit", *mice, "--fps", 30, "--out", out, *QUICK) == 0
    return out


def test_fit_writes_everything_it_promises(fitted, mice):
    assert {path.name for path in fitted.iterdir()} == {
        "syllables", "results.h5", "posterior.nc", "model", "report.html", "index.csv", "syllables.csv", "run.json",
    }  # fmt: skip
    assert [path.name for path in fitted.parent.iterdir()] == ["out"]
    assert len(list((fitted / "syllables").iterdir())) == len(mice)


def test_a_table_has_a_row_per_frame_with_seconds_and_probabilities(fitted, mice):
    table = pd.read_csv(fitted / "syllables" / "mouse_1.csv")
    assert {"frame", "time", "syllable", "probability", "centroid_x", "centroid_y", "heading", "latent_0"} <= set(table)
    assert len(table) == len(pd.read_csv(mice[0], header=[0, 1, 2]))
    np.testing.assert_allclose(table["time"], table["frame"] / 30, atol=1e-6)
    assert table["probability"].dropna().between(0, 1).all()


def test_syllables_are_numbered_by_use(fitted):
    z = np.concatenate(list(read_labels(fitted).values()))
    counts = np.bincount(z[z >= 0], minlength=4)
    assert (np.diff(counts) <= 0).all()
    summary = pd.read_csv(fitted / "syllables.csv", index_col="syllable")
    assert summary["frames"].tolist() == counts[counts > 0].tolist()


def test_results_hold_the_same_labels_and_probabilities_that_sum_to_one(fitted):
    labels = read_labels(fitted)
    with h5py.File(fitted / "results.h5") as file:
        assert set(file) == set(labels)
        for name, z in labels.items():
            np.testing.assert_array_equal(file[name]["syllable"][:], z)
            total = file[name]["probabilities"][:].sum(1)
            np.testing.assert_allclose(total[z >= 0], 1, atol=1e-5)


def test_the_posterior_opens_as_a_data_tree(fitted):
    with xr.open_datatree(fitted / "posterior.nc", engine="h5netcdf") as tree:
        assert {"transition", "coefficients"} <= set(tree["posterior"].data_vars)
        assert tree["posterior"].sizes["chain"] == 1


def test_syllable_s_of_the_posterior_is_syllable_s_of_the_tables(fitted):
    """Means of the saved factors, of the draws, and the labels of the opened model: all by the same numbers."""
    fit = ppgen.load(fitted / "model")
    exact = fit.posterior.factors["transition"].expected()["log_probability"].exp()
    used = pd.read_csv(fitted / "syllables.csv")["syllable"].to_numpy()
    with xr.open_datatree(fitted / "posterior.nc", engine="h5netcdf") as tree:
        posterior = tree["posterior"].to_dataset()
        assert posterior["used"].astype(bool).to_numpy().nonzero()[0].tolist() == used.tolist()
        drawn = posterior["transition"].mean(("chain", "draw")).to_numpy()
        assert posterior["transition"].dims[2:] == ("syllable", "next_syllable")
    off = drawn - np.diag(np.diag(drawn))
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert np.abs(np.log(np.diag(drawn)) - np.log(np.diag(exact))).max() < 0.5
    pipeline = Pipeline.load(fitted)
    np.testing.assert_array_equal(pipeline.order, np.arange(pipeline.states))
    assert off.shape == (pipeline.states, pipeline.states)


def test_the_opened_model_gives_the_syllables_of_the_tables(fitted, mice):
    fit, pipeline = ppgen.load(fitted / "model"), Pipeline.load(fitted)
    bodies = observations(pipeline.align(Reading(30.0).read([mice[0]], 2)))
    z = fit.latents(bodies, random_seed=0)["z_mode"].isel(sequence=0).to_numpy()
    np.testing.assert_array_equal(z, read_labels(fitted)["mouse_1"])


def test_the_longer_a_syllable_lasts_the_larger_its_probability_of_staying(fitted):
    """Of syllables with ten instances or more; the expected duration orders as the mean of the table does."""
    table = pd.read_csv(fitted / "syllables.csv", index_col="syllable").query("instances >= 10")
    with xr.open_datatree(fitted / "posterior.nc", engine="h5netcdf") as tree:
        drawn = tree["posterior"]["transition"].mean(("chain", "draw")).to_numpy()
    expected = 1 / (1 - np.diag(drawn)[table.index])
    assert stats.spearmanr(expected, table["mean_duration"]).statistic > 0.9


def test_the_report_says_in_words_what_was_found(fitted):
    text = (fitted / "report.html").read_text(encoding="utf-8")
    for words in (
        "Can the fit be trusted?",
        "Pareto k-hat",
        "simulated speed",
        "another start",
        "4 recordings, 510 frames",
        "were not seen",
        "The median instance lasts",
    ):
        assert words in text
    assert text.count("data:image/png;base64,") >= 9
    assert "<script" not in text


def test_the_run_is_recorded(fitted):
    run_record = json.loads((fitted / "run.json").read_text())
    assert run_record["command"] == "fit"
    assert run_record["settings"]["target_duration"] == 0.4
    assert run_record["settings"]["random_seed"] == 0
    assert len(run_record["search"]) >= 1
    assert run_record["recordings"]["mouse_1"]["frames"] == 150


def test_applied_to_the_training_files_the_labels_are_those_of_the_fit_bit_for_bit(fitted, mice, tmp_path):
    assert run("apply", fitted, *reversed(mice[:2]), "--fps", 30, "--out", tmp_path / "out") == 0
    for name in ("mouse_1", "mouse_2"):
        one, two = ((folder / "syllables" / f"{name}.csv").read_bytes() for folder in (fitted, tmp_path / "out"))
        assert one == two
    with h5py.File(fitted / "results.h5") as a, h5py.File(tmp_path / "out" / "results.h5") as b:
        np.testing.assert_array_equal(a["mouse_2"]["probabilities"][:], b["mouse_2"]["probabilities"][:])


def test_the_model_folder_alone_is_enough_to_apply(fitted, mice, tmp_path):
    assert run("apply", fitted / "model", mice[3], "--fps", 30, "--out", tmp_path / "out") == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "out")["mouse_4"], read_labels(fitted)["mouse_4"])


def test_the_same_seed_gives_the_same_syllables(fitted, mice, tmp_path):
    assert run("fit", *mice, "--fps", 30, "--out", tmp_path / "again", *QUICK) == 0
    for name, z in read_labels(fitted).items():
        np.testing.assert_array_equal(read_labels(tmp_path / "again")[name], z)


def test_a_fit_matches_itself(fitted, tmp_path, capsys):
    assert run("match", fitted, fitted, "--out", tmp_path / "match") == 0
    table = pd.read_csv(tmp_path / "match" / "syllables.csv")
    assert (table["a"] == table["b"]).all()
    assert "100.0% of frames lie in matched syllables" in capsys.readouterr().out


def test_groups_are_compared(fitted, tmp_path, capsys):
    index = pd.read_csv(fitted / "index.csv")
    assert index["group"].unique().tolist() == ["default"]
    index["group"] = ["saline", "saline", "drug", "drug"]
    index.to_csv(tmp_path / "groups.csv", index=False)
    words = ("--groups", tmp_path / "groups.csv", "--out", tmp_path / "compare", "--permutations", 50)
    assert run("compare", fitted, *words) == 0
    assert {"usage.csv", "usage_tests.csv", "pairs.csv", "transitions.csv", "report.html"} <= {
        path.name for path in (tmp_path / "compare").iterdir()
    }
    assert "drug (2), saline (2)" in capsys.readouterr().out


def test_an_output_folder_that_holds_something_is_left_alone(fitted, mice, tmp_path, capsys):
    before = sorted((path, path.stat().st_mtime_ns) for path in fitted.rglob("*"))
    assert run("fit", *mice, "--fps", 30, "--out", fitted, *QUICK) == 2
    assert "choose another --out or add --overwrite" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in fitted.rglob("*")) == before


HEADER = "scorer,a,a,a,a,a,a\nbodyparts,nose,nose,nose,tail,tail,tail\ncoords,x,y,likelihood,x,y,likelihood\n"
ROW = "{},1.0,{}.0,0.9,3.0,4.{},0.9\n"
GOOD = HEADER + "".join(ROW.format(i, i % 7, i) for i in range(60))

BAD_FILES = {
    "empty": (b"", "empty"),
    "header only": (HEADER.encode(), r""),
    "binary": (bytes(range(256)) * 20, r""),
    "wrong header depth": (HEADER.split("\n", 1)[1].encode() + b"0,1,2,0.9,3,4,0.9\n" * 9, r""),
    "text in a number column": (GOOD.replace("3.0,4.5,", "3.0,four,").encode(), r""),
    "likelihood outside 0-1": (GOOD.replace("0.9", "1.9", 1).encode(), r"likelihood must lie in 0-1"),
    "beyond any arena": (GOOD.replace("3.0,4.5,", "1e300,4.5,").encode(), r"positions must lie within 1e\+09 of 0"),
    "duplicate keypoints": (GOOD.replace("tail", "nose").encode(), r"nose"),
    "one frame": ((HEADER + ROW.format(0, 1, 1)).encode(), r"frame"),
    "all missing": ((HEADER + "".join(f"{i},,,,,,\n" for i in range(30))).encode(), r""),
    "unknown format": (b"hello;world\n1;2\n" * 20, r""),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_gets_one_message_and_exit_code_two(kind, tmp_path, capsys):
    content, words = BAD_FILES[kind]
    path = tmp_path / "mouse.csv"
    path.write_bytes(content)
    refused(capsys, tmp_path, words, "fit", path, "--fps", 30)


def test_truncated_hdf5_and_hdf5_without_poses_are_refused(tmp_path, capsys):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = np.arange(1000.0)
    refused(capsys, tmp_path, "", "fit", tmp_path / "other.h5", "--fps", 30)
    content = (tmp_path / "other.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    refused(capsys, tmp_path, "", "fit", tmp_path / "cut.h5", "--fps", 30)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fps", 30, "--states", 0], "states must be between 1 and the number of frames"),
        (["--fps", 30, "--states", 10_000], r"states must be between 1 and the number of frames \(110\), got 10000"),
        (["--fps", 30, "--lags", 0], "lags must be at least 1"),
        (["--fps", 30, "--lags", 200], r"more frames than lags \(200\), got 110"),
        (["--fps", 0], "fps must be a positive number"),
        (["--fps", "fast"], "fps"),
        ([], "the frame rate must be known"),
        (["--fps", 30, "--variance", 7], "variance must lie between 0 and 1"),
        (["--fps", 30, "--min-confidence", 1.5], "min_confidence must lie in 0-1"),
        (["--fps", 30, "--anterior", "beak"], "anterior"),
        (["--fps", 30, "--leave-out", "beak"], "keypoints to leave out must be among"),
        (["--fps", 30, "--leave-out", "nose", "--components", 0], "components"),
        (["--fps", 30, "--target-duration", 0.001], "target must be at least one frame"),
        (["--fps", 30, "--target-duration", "nan"], "target must be at least one frame"),
        (["--fps", 30, "--max-steps", 0], "max_steps must be at least 1"),
        (["--fps", 30, "--format", "abacus"], "abacus"),
    ],
)
def test_a_bad_option_gets_one_message_and_exit_code_two(options, words, mice, tmp_path, capsys):
    refused(capsys, tmp_path, words, "fit", mice[3], *options)


def test_what_is_not_there_is_refused(mice, fitted, tmp_path, capsys):
    refused(capsys, tmp_path, "there is none; check the path", "fit", tmp_path / "absent.csv", "--fps", 30)
    refused(capsys, tmp_path, "it is a folder", "fit", tmp_path, "--fps", 30)
    refused(capsys, tmp_path, "at least one pose file must be given", "fit")
    refused(capsys, tmp_path, "must be a folder that fit wrote", "apply", tmp_path, mice[0], "--fps", 30)
    refused(capsys, tmp_path, "it has no run.json", "match", fitted, tmp_path)
    refused(capsys, tmp_path, "no such file", "compare", fitted, "--groups", tmp_path / "index.csv")


def test_a_recording_at_another_rate_or_without_a_keypoint_cannot_be_labelled(mice, fitted, tmp_path, capsys):
    refused(capsys, tmp_path, "must have 30 frames per second", "apply", fitted, mice[0], "--fps", 60)
    (tmp_path / "two.csv").write_text(GOOD)
    refused(capsys, tmp_path, "keypoints must be among", "apply", fitted, tmp_path / "two.csv", "--fps", 30)


def test_a_changed_model_is_refused(mice, fitted, tmp_path, capsys):
    import shutil

    shutil.copytree(fitted / "model", tmp_path / "model")
    path = tmp_path / "model" / "pipeline.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(capsys, tmp_path, "", "apply", tmp_path / "model", mice[0], "--fps", 30)


def refused(capsys, folder, words, *command):
    """The command ends with code 2 and one message that holds ``words``, and leaves no output."""
    import re

    capsys.readouterr()
    assert run(*command, "--out", folder / "refused") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("syllables: ")
    assert re.search(words, message), message
    assert "Traceback" not in message
    assert not (folder / "refused").exists()
    assert not list(folder.glob(".refused*"))


def test_a_keypoint_never_seen_is_refused_and_can_be_left_out(tmp_path, capsys):
    recordings, _ = simulate_mice(1, 120, keypoints=4, syllables=2, missing=0.0)
    recordings[0].positions[:, 3] = np.nan
    path = write_deeplabcut_csv(recordings[0], tmp_path / "mouse.csv")
    lost = recordings[0].keypoints[3]
    refused(capsys, tmp_path, f"{lost} never is; add --leave-out {lost}", "fit", path, "--fps", 30)
    assert run("fit", path, "--fps", 30, "--leave-out", lost, "--out", tmp_path / "out", *QUICK) == 0
    assert run("apply", tmp_path / "out", path, "--fps", 30, "--out", tmp_path / "again") == 0


def test_a_recording_with_two_fifths_missing_works(tmp_path):
    recordings, _ = simulate_mice(1, 120, keypoints=4, syllables=2, missing=0.4)
    path = write_deeplabcut_csv(recordings[0], tmp_path / "mouse.csv")
    assert run("fit", path, "--fps", 30, "--out", tmp_path / "out", *QUICK) == 0
    z = read_labels(tmp_path / "out")["mouse"]
    assert len(z) == 120
    assert (z[:110] >= 0).all()


def test_an_interrupt_leaves_nothing_behind(mice, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "fit_pipeline", stop)
    assert run("fit", *mice, "--fps", 30, "--out", tmp_path / "out") == 130
    assert "interrupted; nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_teaches_and_the_script_runs_from_a_shell(tmp_path):
    shown = subprocess.run([sys.executable, str(SCRIPT), "fit", "--help"], capture_output=True, text=True, check=True)
    assert "Open report.html first" in " ".join(shown.stdout.split())
    failed = subprocess.run([sys.executable, str(SCRIPT), "fly"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("syllables: ")
