import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.errors import DataError, FileError, FitError
from ppgen.inference import svi
from ppgen.model import Model


class Centre(Model):
    """x ~ N(centre, 1), centre ~ N(0, 2²): the default guide can be exact."""

    data_dims = ("row", "feature")
    dims = {"centre": ()}

    def __init__(self, stop_at=None, stop_with=KeyboardInterrupt, wrong=None):
        super().__init__()
        self.stop_at, self.stop_with, self.wrong, self.runs = stop_at, stop_with, wrong, 0

    @property
    def config(self):
        return {}

    def model(self, x, *, u=None, total=None):
        self.runs += 1
        if self.stop_at is not None and self.runs > self.stop_at:
            raise self.stop_with
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 2.0))
        if self.wrong is not None and self.runs > 5:
            centre = centre * self.wrong
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(centre, 1.0).mask(~torch.isnan(x)).to_event(1), obs=torch.nan_to_num(x))


class Own(Centre):
    """The same with a guide of its own, whose parameters are the module's, or Pyro's."""

    def __init__(self, sites=("centre",), pyro_scale=True):
        super().__init__()
        self.sites, self.pyro_scale = sites, pyro_scale
        self.mean = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def guide(self, x, *, u=None, total=None):
        scale = pyro.param("scale", torch.ones(()).double(), dist.constraints.positive) if self.pyro_scale else 1.0
        for site in self.sites:
            pyro.sample(site, dist.Normal(self.mean, scale))


X = torch.tensor([[1.0], [2.5], [torch.nan], [0.5]], dtype=torch.float64)
MEAN, VARIANCE = 4.0 / (3 + 0.25), 1 / (3 + 0.25)
SEEN = X[~X.isnan()]
EVIDENCE = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double() + 4).log_prob(SEEN)


def run(model, x=X, **options):
    return svi.fit(model, x, **({"random_seed": 1, "progressbar": False, "draws": 50, "max_steps": 60} | options))


@pytest.mark.parametrize("model", [Centre(), Own()], ids=["default", "own"])
def test_the_guide_becomes_the_exact_posterior_and_the_bound_the_evidence(model, monkeypatch):
    """The bound's noise vanishes when the guide is exact; |z| < 4.4 of the mean is a false-alarm rate of 1e-5."""
    monkeypatch.setattr(svi, "WINDOW", 100)
    fit = run(model, max_steps=1500, lr=0.05, draws=1000)
    assert fit.attrs["converged"]
    assert fit.history["elbo"].iloc[-100:].mean() == pytest.approx(float(EVIDENCE), abs=0.01)
    centre = fit.posterior.sites["centre"]
    assert abs(float(centre.mean()) - MEAN) < 4.4 * (VARIANCE / 1000) ** 0.5 + 0.01
    assert float(centre.var()) == pytest.approx(VARIANCE, rel=0.25)
    assert fit.diagnose(X).ok


def test_minibatches_estimate_the_same_posterior(monkeypatch):
    """Once the learning rate has fallen twice, the noise of the batches no longer moves the mean."""
    monkeypatch.setattr(svi, "WINDOW", 100)
    x = torch.linspace(-1, 3, 40).double()[:, None]
    fit = run(Centre(), x, batch_size=10, max_steps=1200, lr=0.05, draws=500)
    assert float(fit.posterior.sites["centre"].mean()) == pytest.approx(40 / 40.25, abs=0.05)
    assert float(fit.posterior.sites["centre"].std()) == pytest.approx(40.25**-0.5, rel=0.3)


def test_two_fits_in_one_process_share_nothing():
    model = Centre()
    low, high = run(model, X, max_steps=150, lr=0.2), run(model, X + 5, max_steps=150, lr=0.2)
    centre = [float(fit.posterior.sites["centre"].mean()) for fit in (low, high)]
    assert centre[1] - centre[0] > 4
    again = run(model, X, max_steps=150, lr=0.2)
    assert again.posterior.sites["centre"].equal(low.posterior.sites["centre"])


def test_the_model_and_pyros_globals_are_left_as_they_were():
    model = Own()
    before, store = copy.deepcopy(model.state_dict()), dict(pyro.get_param_store())
    stream = torch.get_rng_state()
    fit = run(model)
    assert torch.equal(model.mean, before["mean"])
    assert not torch.equal(fit.model.mean, before["mean"])
    assert dict(pyro.get_param_store()) == store
    assert torch.get_rng_state().equal(stream)
    assert not pyro.settings.get("module_local_params")


def test_a_used_default_guide_survives_a_fit():
    model = Centre()
    model.guide(X)
    names = [name for name, _ in model.__dict__["_mean_field"].named_parameters()]
    run(model, max_steps=3)
    assert [name for name, _ in model.__dict__["_mean_field"].named_parameters()] == names


@pytest.mark.parametrize("model", [Centre, Own])
def test_a_run_that_was_killed_goes_on_bit_for_bit(model, tmp_path):
    whole = run(model())
    killed = model()
    killed.stop_at, killed.stop_with = 37, RuntimeError
    with pytest.raises(RuntimeError):
        run(killed, checkpoint=tmp_path, checkpoint_every=10)
    resumed = run(model(), checkpoint=tmp_path, checkpoint_every=10)
    assert resumed.history.equals(whole.history)
    assert resumed.posterior.sites["centre"].equal(whole.posterior.sites["centre"])


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    run(Centre(), checkpoint=tmp_path, max_steps=5)
    with pytest.raises(FileError, match="must hold this fit, it holds one of another model, data or options"):
        run(Centre(), X + 1, checkpoint=tmp_path)


def test_a_flipped_bit_in_a_checkpoint_is_refused(tmp_path):
    run(Centre(), checkpoint=tmp_path, max_steps=5)
    file = tmp_path / "svi.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(FileError, match="was changed after it was saved"):
        run(Centre(), checkpoint=tmp_path)


def test_an_interruption_keeps_what_was_reached():
    fit = run(Centre(stop_at=30))
    assert fit.attrs["interrupted"]
    assert 0 < len(fit.history) < 60
    assert not fit.diagnose().ok


def test_a_loss_that_is_nan_is_said_with_its_step_and_site():
    with pytest.raises(FitError, match=r'svi: the loss is nan at step \d of 60 \(site "x"\); try lr < 0.002'):
        run(Centre(wrong=torch.nan))


def test_a_guide_that_does_not_fit_the_model_is_refused():
    with pytest.raises(FitError, match=r"it lacks \['centre'\] and adds \['other'\]"):
        run(Own(sites=("other",)))


def test_settings_without_early_stopping_take_every_step():
    fit = run(Centre(), max_steps=450, lr=0.1, early_stopping=False)
    assert len(fit.history) == 450
    assert (fit.history["lr"] == 0.1).all()
    assert not fit.attrs["converged"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "svi: max_steps must be at least 1, got 0"),
        ({"particles": 0}, "svi: particles must be at least 1, got 0"),
        ({"lr": -1.0}, "svi: lr must be positive, got -1.0"),
        ({"lr": np.nan}, "svi: lr must be positive, got nan"),
        ({"batch_size": 9}, "svi: batch_size must be between 1 and the 4 rows of x, got 9"),
    ],
)
def test_bad_options_are_refused_in_words(options, message):
    with pytest.raises(DataError, match=message):
        run(Centre(), **options)
