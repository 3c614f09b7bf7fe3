"""Axes of a plain function have names: in ArviZ, in answers, in files; wrong ones are refused before the run."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.errors import DataError
from ppgen.inference import mcmc, svi

ROWS = [f"r{i:02d}" for i in range(30)]
GENERATOR = np.random.default_rng(0)
U = pd.DataFrame(GENERATOR.normal(size=(30, 2)), columns=["dose", "age"], index=ROWS)
Y = pd.Series(U["dose"] - U["age"] + 0.1 * GENERATOR.normal(size=30), index=ROWS)
NAMES = {"b": ("term",), "effect": ("row", "term")}
TERMS = {"term": ["dose", "age"]}
QUICK = {"random_seed": 0, "progressbar": False, "compile": "traced"}


def regression(y, u):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.deterministic("effect", u * b)
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(u @ b, scale), obs=y)


def fitted(engine, **names):
    if engine == "mcmc":
        return mcmc.fit(regression, Y, U, draws=20, tune=50, chains=4, **QUICK, **names)
    return svi.fit(regression, Y, U, **QUICK, **names)


@pytest.mark.parametrize("engine", ["svi", "mcmc"])
def test_arviz_has_the_names_and_the_labels(engine, tmp_path):
    fit = fitted(engine, dims=NAMES, coords=TERMS)
    fit.save(tmp_path / "fit")
    for one in (fit, ppgen.load(tmp_path / "fit", model=regression)):
        tree = one.to_arviz(Y, draws=5)
        assert tree["posterior"]["b"].dims == ("chain", "draw", "term")
        assert tree["posterior"]["term"].values.tolist() == ["dose", "age"]
        assert tree["posterior"]["effect"].dims == ("chain", "draw", "row", "term")
        assert tree["posterior"]["row"].values.tolist() == ROWS
        assert tree["prior"]["b"].sizes["term"] == 2
        assert one.to_arviz(draws=5)["posterior"]["b"].dims == ("chain", "draw", "term")


@pytest.mark.parametrize("engine", ["svi", "mcmc"])
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"dims": {"b": ("term", "other")}},
            r"dims of site 'b' must name its 1 axes, of shape \(2,\), got \('term', 'other'\)",
        ),
        ({"dims": {"effect": ("term",)}}, r"dims of site 'effect' must name its 2 axes, of shape \(30, 2\)"),
        ({"dims": {"b": "term"}, "coords": {"term": ["dose"]}}, "coords of axis 'term' must be 2 labels, got 1"),
        (
            {"dims": {"b": ("row",), "effect": ("row", "term")}},
            "axis 'row' of dims must have one length, got 2 .* and 30",
        ),
        ({"dims": {"slope": ("term",)}}, r"dims must name sites .*\['b', 'effect', 'scale'\], got \['slope'\]"),
        ({"dims": {"y": ("row",)}}, r"got \['y'\]; data bring names of their own"),
        ({"coords": TERMS}, r"coords must label axes of dims, \[\], got \['term'\]"),
    ],
)
def test_names_that_do_not_fit_are_refused_before_the_run(engine, names, message):
    with pytest.raises(DataError, match=message):
        fitted(engine, **names)


def test_a_model_names_its_axes_itself():
    class Line(ppgen.Model):
        data_dims = ("row",)
        dims = {"b": ()}

        def model(self, x, *, u=None, total=None):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    with pytest.raises(DataError, match="svi: dims and coords are for functions; write Line.dims and .coords"):
        svi.fit(Line(), Y, dims={"b": ()})
