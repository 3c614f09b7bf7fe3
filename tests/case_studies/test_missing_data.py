"""The table tool as a person runs it: a table of her own with gaps and words, bundled tables, and what goes wrong."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ppgen
from ppgen.plots import tables as figures
from ppgen.tables import imputers
from ppgen.tables.hiding import MECHANISMS, hidden_entries
from ppgen.tables.imputers import Filled, filled
from ppgen.tables.reading import bundled_table, read_table
from ppgen.tables.study import scores

SCRIPT = Path(__file__).parents[2] / "case_studies" / "missing_data.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("missing_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(imputers, "SWEEPS", 5)
    monkeypatch.setattr(imputers, "DRAWS", 10)
    monkeypatch.setattr(imputers, "COMPONENTS", (1,))


def run(tool, *arguments):
    return tool.main([str(one) for one in arguments])


def own_table(rows=40):
    """Two correlated columns and a loose one, a gap in ten, a column of words, a value far out."""
    rng = np.random.default_rng(0)
    height = rng.normal(170, 10, rows)
    table = pd.DataFrame(
        {"height": height, "weight": height - 100 + rng.normal(0, 4, rows), "age": rng.normal(40, 9, rows)}
    )
    table = table.mask(rng.random(table.shape) < 0.1)
    table.loc[7, "weight"] = 160.0
    table.insert(0, "name", [f"person {i}" for i in range(rows)])
    return table


def test_a_table_of_ones_own_gives_a_folder(tool, quick, tmp_path, capsys):
    table = own_table()
    table.to_csv(tmp_path / "people.csv", index=False)
    out = tmp_path / "out"
    assert run(tool, "--csv", tmp_path / "people.csv", "--share", "0.3", "--out", out) == 0
    assert "report.html" in capsys.readouterr().out
    whole, numbers = pd.read_csv(out / "filled.csv"), table[["height", "weight", "age"]]
    assert list(whole) == list(numbers)
    assert not whole.isna().any().any()
    np.testing.assert_allclose(whole.to_numpy()[numbers.notna()], numbers.to_numpy()[numbers.notna()], rtol=1e-9)
    gaps = pd.read_csv(out / "intervals.csv")
    assert len(gaps) == int(numbers.isna().sum().sum())
    assert (gaps["low"] < gaps["high"]).all()
    assert set(pd.read_csv(out / "scores.csv")["hidden"]) == set(MECHANISMS)
    first = pd.read_csv(out / "outliers.csv").iloc[0]
    assert (first["row"], first["column"]) in {(7, "weight"), (7, "height")}
    assert "name holds words" in (out / "report.html").read_text()
    assert ppgen.load(out / "model").model.data_dims == ("row", "feature")


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_share_that_was_asked_for_is_hidden(mechanism):
    x = np.random.default_rng(0).normal(size=(3000, 6))
    x[0, :5] = np.nan
    hidden = hidden_entries(x, mechanism, 0.3, np.random.default_rng(1))
    assert abs(hidden.sum() / (~np.isnan(x)).sum() - 0.3) < 0.02
    assert not hidden[0].any()  # its only entry stays
    seen = x[:, 1][~hidden[:, 1]]
    assert (abs(np.nanmean(seen)) < 0.1) == (mechanism != "by its own value")


def test_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    truth, draws = np.zeros((1, 2)), rng.normal(size=(4000, 1, 2))
    found = scores(truth, np.array([[True, True]]), Filled(draws.mean(0), draws))
    assert abs(found["crps"] - (np.sqrt(2 / np.pi) - 1 / np.sqrt(np.pi))) < 0.02  # of a standard normal at its mean
    assert found["in 50%"] == 1.0
    assert abs(found["rmse"]) < 0.1


def test_models_fill_with_intervals_that_hold_what_they_promise(quick, monkeypatch):
    """Of some 240 hidden entries of a Gaussian table 90 % intervals hold within four standard errors, 82 to 98 %."""
    monkeypatch.setattr(imputers, "DRAWS", 100)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 1)) @ rng.normal(size=(1, 4)) + 0.5 * rng.normal(size=(200, 4))
    hidden = hidden_entries(x, "at random", 0.3, rng)
    for name in ("Gaussian mixture", "factor analysis"):
        found = filled(name, np.where(hidden, np.nan, x), 0)
        low, high = np.quantile(found.draws, [0.05, 0.95], axis=0)
        assert 0.82 <= ((low <= x) & (x <= high))[hidden].mean() <= 0.98


def test_figures_say_what_they_show():
    table = pd.DataFrame(
        {
            "hidden": ["at random"] * 4, "share": [0.1, 0.1, 0.3, 0.3], "filled by": ["mean", "mixture"] * 2,
            "rmse": [1.0, 0.8, 1.1, 0.9], "in 50%": [np.nan, 0.5, np.nan, 0.4], "in 80%": [np.nan, 0.8, np.nan, 0.7],
        }
    )  # fmt: skip
    first = figures.errors_by_share(table).axes[0]
    assert first.get_title() == "hidden at random"
    assert len(first.lines) == 2
    assert [float(tick) for tick in first.get_xticks()] == [0.1, 0.3]
    ax = figures.interval_coverage(table)
    assert ax.get_xlabel() == "promised"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["mixture", "hidden at random"]


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes"])
def test_bundled_tables_are_in_standard_units(name):
    table = bundled_table(name)
    np.testing.assert_allclose(table.values.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(table.restored(table.values).std(0), table.spread)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,b\n1,2\n", "at least two columns of numbers that vary"),
        ("a,b\n" + "1,2\n3,4\n5,6\n", "must have at least 20 rows"),
        ("a,b\n" + "x,y\n" * 30, "left out: {'a': 'holds words', 'b': 'holds words'}"),
        ('a,b\n"1,2\n', "must be a table of comma-separated values"),
    ],
)
def test_a_table_that_cannot_be_filled_is_refused_in_words(tmp_path, rows, words):
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises((ppgen.errors.DataError, ppgen.errors.FileError)) as error:
        read_table(tmp_path / "t.csv")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give either --csv FILE or --table NAME"),
        (["--table", "iris"], "--table must be one of"),
        (["--csv", "none.csv"], "must be a file, got none"),
        (["--table", "wine", "--share", "1.5"], "must be between 0 and 1"),
    ],
)
def test_a_wrong_command_ends_in_one_message_and_no_folder(tool, tmp_path, capsys, options, words):
    assert run(tool, *options, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
