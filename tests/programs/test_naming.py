"""Models and guides that do not fit what they say of themselves are refused before a run, in one line."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.errors import DataError, FitError
from ppgen.inference import mcmc, svi
from ppgen.model import Model
from ppgen.models import GMM
from ppgen.programs.naming import check_model

X = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(9, 2)


class Coded(Model):
    """A centre that rows share and a code for each row."""

    data_dims = ("row", "target")
    dims = {"centre": ("target",), "code": ("row",)}
    config = {}

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            code = pyro.sample("code", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(centre + code[:, None], 1.0).to_event(1), obs=x)


class Short(Coded):
    """A guide whose plate is shorter than the model's."""

    def guide(self, x, *, u=None, total=None):
        pyro.sample("centre", dist.Normal(self.mean, 1.0).to_event(1))
        with pyro.plate("row", 5):
            pyro.sample("code", dist.Normal(x.new_zeros(5), 1.0))


class ShortUnnamed(Short):
    """The same with a plate of another name."""

    def guide(self, x, *, u=None, total=None):
        pyro.sample("centre", dist.Normal(self.mean, 1.0).to_event(1))
        with pyro.plate("rows of the guide", 5):
            pyro.sample("code", dist.Normal(x.new_zeros(5), 1.0))


class Misses(Coded):
    def guide(self, x, *, u=None, total=None):
        pyro.sample("centre", dist.Normal(self.mean, 1.0).to_event(1))


class Closed(Coded):
    def guide(self, x):
        raise AssertionError("never called")


class Plate(Coded):
    """A model whose own plate has another size than the data."""

    dims = {"centre": ("target",)}

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("row", 5):
            pyro.sample("x", dist.Normal(centre.expand(9, 2), 1.0).to_event(1), obs=x)


class Once(Coded):
    """A model that fits, for others to spoil."""

    dims = {"centre": ("target",)}

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(centre, 1.0).to_event(1), obs=x)


class Dims(Once):
    dims = {"centre": ("target", "row")}


class Word(Once):
    dims = {"centre": "ab"}


class Labels(Once):
    coords = {"target": ["left", "middle", "right"]}


class TwoLengths(Coded):
    dims = {"centre": ("place",), "code": ("place",)}


class NoInputs(Once):
    def model(self, x):
        super().model(x)


class NoTotal(Once):
    def model(self, x, *, u=None):
        super().model(x)


class GuideClass:
    def __call__(self, x, *, u=None, total=None):
        raise AssertionError("never called")


def fit(model, **options):
    return svi.fit(model, X, max_steps=3, draws=5, progressbar=False, random_seed=0, **options)


def chains(model):
    return mcmc.fit(model, X, draws=5, tune=5, chains=2, progressbar=False, random_seed=0, compile="traced")


@pytest.mark.parametrize("engine", [fit, chains])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Dims, r"dims of site 'centre' must name its 1 axes, of shape \(2,\), got \('target', 'row'\); write"),
        (Word, r"dims of site 'centre' must name its 1 axes, of shape \(2,\), got 'ab'; write"),
        (Labels, "coords of axis 'target' must be 2 labels, got 3; write one for each"),
        (TwoLengths, "axis 'place' of dims must have one length, got 2 in site 'centre' and 9 in 'code'; give"),
        (
            NoInputs,
            r"NoInputs.model must take u, got model\(x\); write `def model\(self, x, \*, u=None, tot",
        ),
        (Plate, "program: site 'x' must have the size of plate 'row', 5, along axis -1, got 9; make the plate as long"),
    ],
)
def test_a_model_that_does_not_fit_what_it_says_is_refused_before_the_run(engine, model, message):
    with pytest.raises(DataError, match=message):
        engine(model())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Short, "program: a plate must have one size in the model and the guide, got 9 and 5; write it in both"),
        (
            ShortUnnamed,
            r"the guide must draw site 'code' in the shape of the model, \(9,\), got \(5,\); make them equal",
        ),
        (Misses, r"svi: the guide must draw the latent sites of the model, it lacks \['code'\] and adds \[\]"),
        (Closed, r"svi: Closed.guide must take u and total, got guide\(x\); write `def guide\(self, x, \*, u=None"),
        (NoTotal, r"svi: NoTotal.model must take total, got model\(x, \*, u=None\); write"),
    ],
)
def test_a_guide_that_does_not_fit_its_model_is_refused_in_one_line(model, message):
    with pytest.raises((DataError, FitError), match=message) as caught:
        fit(model())
    assert "Trace Shapes" not in str(caught.value)


def test_a_guide_is_an_object_that_is_called_as_the_model_is():
    with pytest.raises(DataError, match=r"svi: guide must be an object, got the class GuideClass; pass guide=GuideCla"):
        fit(Once(), guide=GuideClass)
    with pytest.raises(DataError, match=r"svi: <lambda> must take u and total, got .*`def guide\(x, \*, u=None, tot"):
        fit(Once(), guide=lambda x: None)


def test_labels_of_rows_are_not_counted_against_a_minibatch():
    class Named(Once):
        dims = {"centre": ("target",)}
        coords = {"target": ["a", "b"], "row": list(range(9))}

    assert len(fit(Named(), batch_size=3).history) == 3


def vector(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_a_vector_has_no_forecast():
    found = svi.fit(vector, X[:, 0], max_steps=3, draws=5, progressbar=False, random_seed=0)
    with pytest.raises(DataError, match="forecast: x must have time, got row; it is for time series"):
        found.forecast(X[:, 0], 3, draws=5)


def test_data_under_two_names_are_predicted_and_other_data_are_refused_with_the_names_there_are():
    class Split(Once):
        def model(self, x, *, u=None, total=None):
            centre = pyro.sample("centre", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("left", dist.Normal(centre[0], 1.0), obs=x[:, 0])
                pyro.sample("right", dist.Normal(centre[1], 1.0), obs=x[:, 1])

    class Scaled(Split):
        def model(self, x, *, u=None, total=None):
            super().model(2 * x, u=u, total=total)

    assert fit(Split()).posterior_predictive(X, draws=5).shape == (5, *X.shape)
    assert ppgen.check(Split(), X, random_seed=0).table.set_index("check")["ok"]["same seed, same draws"]
    with pytest.raises(FitError, match=r"observe the data x that it is asked about, got \['left', 'right'\]"):
        fit(Scaled()).posterior_predictive(X, draws=5)


def test_a_parameter_of_another_shape_at_prediction_is_named():
    class Grows(Once):
        dims = {"centre": ("row",)}

        def model(self, x, *, u=None, total=None):
            centre = pyro.sample("centre", dist.Normal(x.new_zeros(len(x)), 1.0).to_event(1))
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("x", dist.Normal(centre[:, None], 1.0).expand([len(x), 2]).to_event(1), obs=x)

    with pytest.raises(FitError, match=r"Grows: site 'centre' must have shape \(4,\) for this data, got \(9,\)"):
        fit(Grows()).log_likelihood(X[:4], draws=5)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (GMM, X, "svi: model must be an object, got the class GMM; pass GMM"),
        (X, GMM(2, 2), "got Tensor; the model comes first, then x"),
        (X, X, "svi: model must be a Model or a function with pyro.sample sites, got Tensor; make one"),
    ],
)
def test_what_is_no_model_is_told_what_it_is(model, x, message):
    with pytest.raises(DataError, match=message):
        check_model("svi", model, (x,))
