"""Several inputs by name: each in its own type, with its rows in the order of the data, through every engine."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import ppgen
from ppgen.errors import DataError, FileError
from ppgen.inference import mcmc, svi
from ppgen.inference.calibration.engine import calibrate
from ppgen.models.lds import LDS
from ppgen.programs import task

N, GROUPS = 60, 3
GENERATOR = np.random.default_rng(0)
NAMES = [f"s{i:02d}" for i in range(N)]
TABLE = pd.DataFrame(
    {"dose": GENERATOR.normal(size=N), "group": np.arange(N) % GROUPS, "treated": np.arange(N) % 2 == 0}, index=NAMES
)
TRUTH = np.array([-1.0, 0.5, 2.0])
Y = pd.Series(1.5 * TABLE["dose"] + TRUTH[TABLE["group"]] + 0.3 * GENERATOR.normal(size=N), index=NAMES, name="y")
GIVEN = dict(TABLE[["dose", "group"]])


class Groups(ppgen.Model):
    """y = slope * dose + the level of the row's group + noise of known width."""

    data_dims = ("row",)
    dims = {"slope": (), "level": ("group",)}
    config = {}

    def model(self, x, *, u=None, total=None):
        slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 2.0))
        level = pyro.sample("level", dist.Normal(x.new_zeros(GROUPS), 2.0).to_event(1))
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            line = dist.Normal(slope * u["dose"] + level[u["group"]], 0.3).mask(seen)
            pyro.sample("x", line, obs=torch.where(seen, x, 0.0))


def groups(y, u):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    level = pyro.sample("level", dist.Normal(torch.zeros(GROUPS), 2.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(slope * u["dose"] + level[u["group"]], 0.3), obs=y)


def exact():
    """Posterior mean of slope and levels: a linear regression with normal priors."""
    design = np.column_stack([TABLE["dose"], np.eye(GROUPS)[TABLE["group"]]])
    return np.linalg.solve(design.T @ design / 0.09 + np.eye(GROUPS + 1) / 4, design.T @ Y / 0.09)


def means(fit):
    theta = fit.posterior.draws(2000)
    return torch.cat([theta["slope"][:, None], theta["level"]], 1).mean(0).numpy()


def engine(name, model, *args, **kwargs):
    options = {"random_seed": 0, "progressbar": False}
    if name == "mcmc":
        return mcmc.fit(model, *args, draws=100, tune=200, chains=8, compile="traced", **options, **kwargs)
    return svi.fit(model, *args, guide="full_rank", compile="traced", **options, **kwargs)


@pytest.fixture(scope="module")
def fit():
    return engine("svi", Groups(), Y, u=GIVEN)


def test_each_input_keeps_its_type_and_follows_the_rows_of_the_data():
    given = {
        "dose": TABLE["dose"][::-1].astype("float32"),
        "group": xr.DataArray(TABLE["group"][::-1], dims="row", coords={"row": NAMES[::-1]}),
        "both": TABLE[["treated", "dose"]].sample(frac=1, random_state=0),
        "array": np.arange(N, dtype=np.int32),
        "tensor": torch.ones(N, 2),
    }
    read = task.read("test", Groups(), (Y,), given)
    u = read.kwargs["u"]
    assert list(u) == list(given)
    assert {name: value.dtype for name, value in u.items() if not value.is_floating_point()} == {
        "group": torch.int64,
        "array": torch.int64,
    }
    np.testing.assert_allclose(u["dose"], TABLE["dose"], rtol=1e-6)
    np.testing.assert_array_equal(u["group"], TABLE["group"])
    np.testing.assert_array_equal(u["both"], TABLE[["treated", "dose"]])
    assert read.inputs.names["both_input"].tolist() == ["treated", "dose"]
    assert read.inputs.shape["both"] == [N, 2]


@pytest.mark.parametrize("name", ["svi", "mcmc"])
@pytest.mark.parametrize("model", [Groups(), groups], ids=["model", "function"])
def test_an_index_of_groups_is_usable_as_one(name, model):
    shuffled = dict(TABLE[["dose", "group"]].sample(frac=1, random_state=0))
    args, inputs = ((Y,), {"u": shuffled}) if model is not groups else ((Y, shuffled), {})
    found = engine(name, model, *args, **inputs)
    np.testing.assert_allclose(means(found), exact(), atol=0.03)


def test_minibatches_take_the_rows_of_every_input():
    few = svi.fit(Groups(), Y, u=GIVEN, batch_size=20, guide="full_rank", random_seed=0, progressbar=False)
    np.testing.assert_allclose(means(few), exact(), atol=0.05)
    steps = svi.fit(
        Groups(), Y, u=GIVEN, batch_size=20, lr=0.02, max_steps=1500, random_seed=0, progressbar=False, compile="traced"
    )
    np.testing.assert_allclose(means(steps), exact(), atol=0.1)


def test_answers_about_new_rows_take_their_inputs_by_name(fit):
    rows = [0, 4, 8, 30]
    whole = fit.log_likelihood(Y, u=GIVEN, draws=50)
    part = fit.log_likelihood(Y.iloc[rows], u=dict(TABLE.iloc[rows[::-1]][["group", "dose"]]), draws=50)
    np.testing.assert_allclose(part, whole[rows], rtol=1e-9)
    hidden = Y.iloc[rows].where([True, False, True, True])
    filled = fit.impute(hidden, draws=400, u=dict(TABLE.iloc[rows][["dose", "group"]]), random_seed=0)
    slope, *level = exact()
    wanted = slope * TABLE["dose"].iloc[4] + level[TABLE["group"].iloc[4]]
    assert filled.mean("draw").values[1] == pytest.approx(wanted, abs=0.08)


def test_inputs_other_than_those_of_the_fit_are_refused(fit):
    with pytest.raises(DataError, match=r"which had u\['dose'\] and u\['group'\], got u\['dose'\]; pass u"):
        fit.log_likelihood(Y, u={"dose": TABLE["dose"]})
    with pytest.raises(DataError, match=r"had u\['dose'\] and u\['group'\], got inputs of shape \(60, 2\)"):
        fit.log_likelihood(Y, u=TABLE[["dose", "group"]])
    with pytest.raises(DataError, match=r"u\['dose'\] must have 1 axes .* was \(60,\), got \(60, 2\)"):
        fit.log_likelihood(Y, u={**GIVEN, "dose": np.ones((N, 2))})


@pytest.mark.parametrize(
    ("u", "message"),
    [
        ({}, r"svi: u must be a dict of inputs by name, got the keys \[\]"),
        ({0: np.ones(N)}, r"got the keys \[0\]; name each by a text"),
        ({"dose": np.ones(N - 1)}, r"svi: u\['dose'\] must have 60 rows like x, got shape \(59,\)"),
        ({"dose": TABLE["dose"][:-1]}, r"svi: u\['dose'\] must have the rows of x, s00"),
        ({"kind": pd.Series(["a"] * N, index=NAMES)}, r"u\['kind'\] must hold numbers, its columns .*get_dummies"),
        ({"dose": np.full(N, np.nan)}, r"u\['dose'\] must be finite, got nan at \(0,\)"),
        ({"dose": np.array(["a", 1] * 30, dtype=object)}, r"u\['dose'\] must hold numbers, got object"),
        ({"dose": pd.Series([1, None] * 30, dtype="Int64", index=NAMES)}, r"u\['dose'\] must be finite, got nan at"),
    ],
)
def test_inputs_that_cannot_be_are_refused_by_name(u, message):
    with pytest.raises(DataError, match=message):
        svi.fit(Groups(), Y, u=u)


def test_a_model_of_one_array_of_inputs_says_so():
    from ppgen.inference import vb

    x, drive = torch.randn(2, 10, 2).double(), torch.randn(2, 10, 1)
    with pytest.raises(DataError, match="LDS: u must have 1 inputs, as .* got several by name"):
        vb.fit(LDS(1, 2, inputs=1), x, u={"drive": drive}, progressbar=False)


def test_a_saved_fit_and_arviz_know_the_inputs_by_name(fit, tmp_path):
    fit.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit", model=Groups())
    assert again.attrs["inputs"] == {"dose": [N], "group": [N]}
    tree = again.to_arviz(Y, u=GIVEN, draws=5)
    assert tree["constant_data"]["group"].dims == ("row",)
    assert tree["constant_data"]["group"].values.tolist() == TABLE["group"].tolist()


def test_a_saved_fit_of_a_function_keeps_its_dict(tmp_path):
    first = engine("svi", groups, Y, GIVEN)
    first.save(tmp_path / "fit")
    again = ppgen.load(tmp_path / "fit", model=groups)
    np.testing.assert_allclose(again.log_likelihood(Y, draws=20), first.log_likelihood(Y, draws=20))
    assert again.model.rest[0]["group"].dtype == torch.int64


def test_a_checkpoint_belongs_to_its_inputs(tmp_path):
    options = {"max_steps": 20, "lr": 0.01, "random_seed": 0, "progressbar": False, "compile": "traced"}
    svi.fit(Groups(), Y, u=GIVEN, checkpoint=tmp_path, **options)
    svi.fit(Groups(), Y, u=dict(TABLE[["group", "dose"]]), checkpoint=tmp_path, **options)
    with pytest.raises(FileError):
        svi.fit(Groups(), Y, u={**GIVEN, "group": (TABLE["group"] + 1) % 3}, checkpoint=tmp_path, **options)


def test_the_laws_and_calibration_take_inputs_by_name():
    report = ppgen.check(Groups(), Y, u=GIVEN)
    assert report.ok, report
    rows = slice(0, 9)
    few = {name: value.iloc[rows] for name, value in GIVEN.items()}
    options = {"replications": 40, "random_seed": 0, "progressbar": False}
    found = calibrate(Groups(), Y.iloc[rows], u=few, engine="mcmc", **options)
    assert found.attrs["way"] == "one batch by mcmc"
    assert not len(found.failures)
    alone = calibrate(groups, Y.iloc[rows], few, engine="mcmc", **options)
    assert set(alone.pit) == {"slope", "level", "log_likelihood"}
    single = calibrate(Groups(), Y.iloc[rows], u=few, engine="svi", batched=False, **{**options, "replications": 2})
    assert not len(single.failures), single.failures


def test_tables_of_a_function_follow_the_rows_of_its_data_along_every_axis():
    distance = pd.DataFrame(np.arange(9.0).reshape(3, 3), index=list("abc"), columns=list("abc"))
    y = pd.Series([1.0, 2.0, 3.0], index=list("cab"))
    other = pd.Series([7, 8, 9], index=list("xyz"))
    read = task.read("mcmc", groups, (y, {"near": distance, "dose": other, "n": 3}), None)
    np.testing.assert_array_equal(read.args[1]["near"], distance.loc[list("cab"), list("cab")])
    assert read.args[1]["dose"].tolist() == [7, 8, 9]
    assert read.args[1]["n"] == 3


def test_the_first_argument_stays_as_it_is():
    square = pd.DataFrame(np.arange(4.0).reshape(2, 2), index=["a", "b"], columns=["b", "a"])
    np.testing.assert_array_equal(task.read("mcmc", groups, (square, None), None).args[0], square)
