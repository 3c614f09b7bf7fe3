"""The series tool as a person runs it: a series of her own with gaps, and what goes wrong."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ppgen
from ppgen.plots import series as figures
from ppgen.series import forecasters
from ppgen.series import study as studies
from ppgen.series.forecasters import last_value
from ppgen.series.reading import Series, read_series
from ppgen.series.study import forecast_scores, origins

SCRIPT = Path(__file__).parents[2] / "case_studies" / "regimes.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("regimes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(tool, *arguments):
    return tool.main([str(one) for one in arguments])


def own_series(steps=80):
    """Months of a level that jumps, with a season and gaps."""
    rng = np.random.default_rng(0)
    level = np.where(np.arange(steps) // 20 % 2, 30.0, 20.0)
    values = level + 3 * np.sin(2 * np.pi * np.arange(steps) / 12) + rng.normal(size=steps)
    values[[5, 30, 31, 70]] = np.nan
    return pd.DataFrame({"month": [f"m{i}" for i in range(steps)], "sales": values, "note": "x"})


def test_a_series_of_ones_own_gives_a_folder(tool, tmp_path, capsys, monkeypatch):
    few = {name: forecasters.candidates(_plain())[name][:1] for name in ("LDS", "HMM")}
    monkeypatch.setattr(studies, "candidates", lambda series: few)
    monkeypatch.setattr(studies, "with_statsmodels", lambda: False)
    own_series().to_csv(tmp_path / "sales.csv", index=False)
    out = tmp_path / "out"
    options = ("--time", "month", "--series", "sales", "--horizon", "6", "--out", out)
    assert run(tool, "--csv", tmp_path / "sales.csv", *options) == 0
    assert "report.html" in capsys.readouterr().out
    ahead, regimes = pd.read_csv(out / "forecast.csv"), pd.read_csv(out / "regimes.csv")
    assert len(ahead) == 6
    assert (ahead["low 90%"] < ahead["mean"]).all()
    assert ahead["mean"].between(0, 60).all()
    assert list(regimes["time"][:2]) == ["m0", "m1"]
    assert np.allclose(regimes.filter(like="probability").sum(axis=1), 1)
    scores = pd.read_csv(out / "scores.csv", index_col="model")
    assert scores["in 80%"].between(0, 1).all()
    assert (scores.loc[["LDS", "HMM"], "nats, leaving one out"] < scores.loc[["LDS", "HMM"], "nats, training"]).all()
    assert ppgen.load(out / "model").model.data_dims == ("sequence", "time", "feature")


def _plain(steps=100, season=None):
    values = np.random.default_rng(0).normal(size=(steps, 1))
    return Series("s", ("a",), tuple(map(str, range(steps))), values, np.zeros(1), np.ones(1), season, 80)


def test_forecasts_begin_behind_what_was_observed():
    series = _plain()
    series.values[[79, 85]] = np.nan
    found = origins(series, 8)
    assert all(80 <= n <= 92 and not np.isnan(series.values[n - 1, 0]) for n in found)


def test_scores_are_those_of_their_definitions():
    """Draws of the truth's own distribution: crps of a standard normal is 1 / sqrt(pi), intervals hold their share."""
    series = _plain(steps=4000)
    series = Series(
        *[getattr(series, name) for name in ("name", "columns", "times", "values", "center", "spread")], None, 3200
    )
    rng = np.random.default_rng(1)
    found = forecast_scores(series, lambda n, h: rng.normal(size=(400, h, 1)), 500)
    assert abs(found["crps"] - 1 / np.sqrt(np.pi)) < 0.05
    assert abs(found["in 80%"] - 0.8) < 0.05


def test_the_last_value_repeats_the_season():
    series = _plain(season=4)
    series.values[:, 0] = np.tile([0.0, 1.0, 2.0, 3.0], 25)
    draws = last_value(series)(80, 8)
    np.testing.assert_array_equal(draws[0, :, 0], np.tile([0.0, 1.0, 2.0, 3.0], 2))


def test_figures_say_what_they_show():
    rng = np.random.default_rng(0)
    times, past = [str(i) for i in range(50)], rng.normal(size=(50, 2))
    fan = figures.forecast_fan(times, past, rng.normal(size=(30, 5, 2)), ["one", "two"])
    assert [ax.get_title() for ax in fan.axes] == ["one", "two"]
    compared = figures.forecasts_compared(
        [str(t) for t in range(60)], past, 40, {"way": rng.normal(size=(30, 5, 2))}, "one"
    )
    assert compared.axes[0].get_title() == "way"
    shares = np.full((50, 3), 1 / 3)
    assert len(figures.regime_probabilities(times, past, shares, ["one", "two"]).axes) == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a\n" + "1\n2\n" * 10, "at least 40 steps"),
        ("a\n" + "1\n" * 60, "must vary"),
        ("a\n" + "x\n" * 60, "must have a column of numbers"),
    ],
)
def test_a_series_that_cannot_be_forecast_is_refused_in_words(tmp_path, rows, words):
    (tmp_path / "s.csv").write_text(rows)
    with pytest.raises(ppgen.errors.DataError, match=words):
        read_series(tmp_path / "s.csv", [], None, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give either --csv FILE or --data NAME"),
        (["--csv", "none.csv"], "must be a file, got none"),
        (["--csv", "FILE", "--series", "profit"], "lack"),
        (["--csv", "FILE", "--series", "note"], "note must hold numbers, got 'x' at row 0"),
        (["--csv", "FILE", "--series", "sales", "--season", "50"], "--season must be between 2 and a third"),
        (
            ["--csv", "FILE", "--series", "sales", "--horizon", "40"],
            "--horizon must be between 1 and the 16 held-out steps",
        ),
    ],
)
def test_a_wrong_command_ends_in_one_message_and_no_folder(tool, tmp_path, capsys, options, words):
    own_series().to_csv(tmp_path / "sales.csv", index=False)
    given = [str(tmp_path / "sales.csv") if one == "FILE" else one for one in options]
    assert run(tool, *given, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
