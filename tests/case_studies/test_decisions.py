"""The decision tool as a person runs it: a table of her own, simulated choices, and what goes wrong."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ppgen
from ppgen.behavior.choices import read_trials, simulate_trials
from ppgen.behavior.strategies import psychometric, study
from ppgen.plots import choices as figures

SCRIPT = Path(__file__).parents[2] / "case_studies" / "decisions.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("decisions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    """Simulated trials as a person would keep them: contrasts in percent, a column of days."""
    trials = simulate_trials(5, 40, random_seed=3)
    contrast = trials.u[..., 0] * trials.spread[0] + trials.center[0]
    return pd.DataFrame(
        {
            "day": np.repeat([f"d{s}" for s in range(5)], 40),
            "right": trials.x[..., 0].ravel(),
            "contrast": 50 + 20 * contrast.ravel(),
        }
    )


def run(tool, *arguments):
    return tool.main([str(one) for one in arguments])


OWN = ("--choice", "right", "--stimulus", "contrast", "--session", "day", "--states", "2")


def test_a_table_of_ones_own_gives_a_folder(tool, table, tmp_path, capsys):
    table.to_csv(tmp_path / "trials.csv", index=False)
    out = tmp_path / "out"
    assert run(tool, "--csv", tmp_path / "trials.csv", *OWN, "--out", out) == 0
    assert "report.html" in capsys.readouterr().out
    trials, models = pd.read_csv(out / "trials.csv"), pd.read_csv(out / "models.csv")
    assert len(trials) == 5 * 40
    assert np.allclose(trials.filter(like="probability").sum(axis=1), 1)
    assert list(models["model"]) == ["logistic regression", "2 states", "2 experts, trials apart"]
    assert models["held out"].between(-0.2, 1).all()
    assert ppgen.load(out / "model").model.states == json.loads((out / "run.json").read_text())["states"]
    page = (out / "report.html").read_text()
    assert "Predicting" not in page.split("<img")[0]
    assert page.count("data:image/png") == 4
    assert run(tool, "--csv", tmp_path / "trials.csv", *OWN, "--out", out) == 2
    assert "must be empty or new" in capsys.readouterr().err


@pytest.mark.slow
def test_simulated_strategies_are_found_and_counted(tool, tmp_path):
    assert run(tool, "--demo", "--out", tmp_path / "out") == 0
    models = pd.read_csv(tmp_path / "out" / "models.csv", index_col="model")
    assert models["held out"].idxmax() == "3 states"
    assert "of the trials are in the state matched" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_states_are_numbered_by_use_and_curves_rise():
    found = study(simulate_trials(4, 30, random_seed=1), 2)
    use = np.nanmean(found.probabilities, (0, 1))
    assert (np.diff(use) <= 1e-9).all()
    middle, interval = psychometric(found.fit, 0, np.linspace(-2, 2, 9))
    assert middle.shape == (found.states, 9)
    assert ((interval[0] <= middle) & (middle <= interval[1])).all()
    assert (np.diff(middle[0]) > 0).all()
    axes = figures.psychometric_curves(np.linspace(-2, 2, 9), middle, interval, "contrast")
    assert axes.get_xlabel() == "contrast"


def test_the_choice_before_is_an_input_and_sessions_begin_without_one(table, tmp_path):
    table.to_csv(tmp_path / "trials.csv", index=False)
    trials = read_trials(tmp_path / "trials.csv", "right", ["contrast"], "day")
    chosen = table["right"].to_numpy().reshape(5, 40)
    assert (trials.u[:, 0, 1] == 0).all()
    np.testing.assert_array_equal(trials.u[:, 1:, 1], np.nan_to_num(2 * chosen[:, :-1] - 1))
    assert trials.u[..., 0].std() == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, ("--stimulus", "volume"), r"must have the columns \['right', 'volume'\], got"),
        ({"right": 2.0}, ("--stimulus", "contrast"), "right must be 0, 1 or empty, got 2 at row 0"),
        ({"contrast": "loud"}, ("--stimulus", "contrast"), "contrast must hold numbers, got 'loud' at row 0"),
        (
            {"contrast": np.nan},
            ("--stimulus", "contrast"),
            "contrast must be a number in every trial, got none at row 0",
        ),
        ({"contrast": 1.0}, ("--stimulus", "contrast"), "contrast must vary, got one value in all trials"),
        ({}, ("--stimulus", "contrast"), "there must be at least two sessions"),
        ({}, (), "there must be at least one stimulus, got none"),
        ({}, ("--stimulus", "contrast", "--states", "0"), "--states must be at least 1, got 0"),
        ({}, ("--demo",), "give either --csv FILE or --demo"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
    tool, table, tmp_path, capsys, change, options, words
):
    table.assign(**change).to_csv(tmp_path / "trials.csv", index=False)
    arguments = ("--csv", tmp_path / "trials.csv", "--choice", "right", *options, "--out", tmp_path / "out")
    assert run(tool, *arguments) == 2
    said = capsys.readouterr().err
    assert pd.Series([said]).str.contains(words).all(), said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trials.csv"]


def test_no_such_file_is_said(tool, tmp_path, capsys):
    assert run(tool, "--csv", tmp_path / "no.csv", "--stimulus", "contrast", "--out", tmp_path / "out") == 2
    assert "must be a file, got none" in capsys.readouterr().err
