import copy
import logging
import math
import subprocess
import sys
import textwrap
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.errors import DataError, FileError, FitError
from ppgen.inference import svi
from ppgen.inference.svi import engine, objective, preparation, training
from ppgen.model import Model


class Centre(Model):
    """x ~ N(centre, 1), centre ~ N(0, 2²): the default guide can be exact."""

    data_dims = ("row", "feature")
    dims = {"centre": ()}
    config = {}

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 2.0))
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


class Looks(Centre):
    """The same, but it looks at a value, which no graph can."""

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 2.0))
        shift = 1.0 if centre > 1e9 else 0.0
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            normal = dist.Normal(centre + shift, 1.0).mask(~torch.isnan(x))
            pyro.sample("x", normal.to_event(1), obs=torch.nan_to_num(x))


class Stops(torch.optim.Adam):
    """Adam that a signal, or something worse, hits at step ``at``."""

    at, error, poison = None, RuntimeError, False

    def step(self, closure=None):
        done = self.state[self.param_groups[0]["params"][0]].get("step", 0)
        if self.at is not None and done == self.at:
            if not self.poison:
                raise self.error
            self.param_groups[0]["params"][0].fill_(torch.nan)
        return super().step(closure)


X = torch.tensor([[1.0], [2.5], [torch.nan], [0.5]], dtype=torch.float64)
MEAN, VARIANCE = 4.0 / (3 + 0.25), 1 / (3 + 0.25)
SEEN = X[~X.isnan()]
EVIDENCE = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double() + 4).log_prob(SEEN)


def run(model, x=X, **options):
    return svi.fit(model, x, **({"random_seed": 1, "progressbar": False, "draws": 50, "max_steps": 60} | options))


@pytest.mark.parametrize("model", [Centre(), Own()], ids=["default", "own"])
def test_the_guide_becomes_the_exact_posterior_and_the_bound_the_evidence(model, monkeypatch):
    """At the end the bound's noise is that of the likelihood; 4.4 standard errors are a false-alarm rate of 1e-5."""
    monkeypatch.setattr(training, "WINDOW", 100)
    fit = run(model, max_steps=3000, lr=0.05, draws=1000)
    assert fit.attrs["converged"]
    last = fit.history["elbo"].iloc[-100:]
    assert last.mean() == pytest.approx(float(EVIDENCE), abs=4.4 * last.std() / 10 + 0.005)
    centre = fit.posterior.sites["centre"]
    assert abs(float(centre.mean()) - MEAN) < 4.4 * (VARIANCE / 1000) ** 0.5 + 0.01
    assert float(centre.var()) == pytest.approx(VARIANCE, rel=0.25)
    assert fit.diagnose(X).ok


def test_minibatches_estimate_the_same_posterior(monkeypatch):
    """Once the learning rate has fallen twice, the noise of the batches no longer moves the mean."""
    monkeypatch.setattr(training, "WINDOW", 100)
    x = torch.linspace(-1, 3, 40).double()[:, None]
    fit = run(Centre(), x, batch_size=10, max_steps=1500, lr=0.05, draws=500)
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


class Counts(Centre):
    """A count that is drawn by a guide without reparameterisation, so that its gradient keeps a baseline."""

    dims = {"n": ()}

    def __init__(self):
        super().__init__()
        self.log_rate = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x, *, u=None, total=None):
        n = pyro.sample("n", dist.Poisson(torch.tensor(2.0)))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(n, 1.0).mask(~torch.isnan(x)).to_event(1), obs=torch.nan_to_num(x))

    def guide(self, x, *, u=None, total=None):
        pyro.sample("n", dist.Poisson(self.log_rate.exp()))


OPTIMIZERS = {
    "Adam": Stops,
    "SGD": partial(torch.optim.SGD, momentum=0.9),
    "Rprop": torch.optim.Rprop,
    "LBFGS": partial(torch.optim.LBFGS, history_size=3, max_iter=2),
}


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [*((Own, name) for name in OPTIMIZERS), (Centre, "Adam"), (Counts, "Adam")],
)
def test_a_run_that_was_killed_goes_on_bit_for_bit(model, optimizer, tmp_path, monkeypatch):
    optimizer = OPTIMIZERS[optimizer]
    options = {"optimizer": optimizer, "averaging": True, "particles": 2, "batch_size": 2}
    whole = run(model(), **options)
    made = training.Run.step

    def dies(self):
        if self.steps == 37:
            raise RuntimeError
        made(self)

    with monkeypatch.context() as patched:
        patched.setattr(training.Run, "step", dies)
        with pytest.raises(RuntimeError):
            run(model(), checkpoint=tmp_path, checkpoint_every=10, **options)
    resumed = run(model(), checkpoint=tmp_path, checkpoint_every=10, **options)
    assert resumed.history.equals(whole.history)
    for name, values in whole.posterior.sites.items():
        assert resumed.posterior.sites[name].equal(values)


def test_a_finished_run_comes_back_from_its_checkpoint_bit_for_bit(tmp_path):
    done, again = (run(Centre(), checkpoint=tmp_path, max_steps=30) for _ in range(2))
    for name, values in done.posterior.sites.items():
        assert again.posterior.sites[name].equal(values)


def test_seeds_next_to_each_other_share_no_noise():
    """Of two runs whose parameters hardly move, no bound of one may be a bound of the other."""
    one, two = (run(Own(), random_seed=seed, lr=1e-12, batch_size=2).history["elbo"] for seed in (1, 2))
    assert not np.isclose(one.to_numpy()[:, None], two.to_numpy(), rtol=1e-9, atol=0).any()


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(tmp_path):
    first = run(Own(), checkpoint=tmp_path, random_seed=None, batch_size=2)
    again = run(Own(), checkpoint=tmp_path, random_seed=None, batch_size=2)
    assert again.attrs["random_seed"] == first.attrs["random_seed"]
    assert again.posterior.sites["centre"].equal(first.posterior.sites["centre"])


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    run(Centre(), checkpoint=tmp_path, max_steps=5)
    with pytest.raises(FileError, match="must hold this run, but its model, data or options differ"):
        run(Centre(), X + 1, checkpoint=tmp_path)


def test_a_checkpoint_with_other_held_out_rows_or_another_schedule_is_refused(tmp_path):
    first = {"held_out": X, "schedule": lambda step: 1.0}
    run(Centre(), checkpoint=tmp_path, max_steps=5, **first)
    for other in ({"held_out": X + 1}, {"schedule": lambda step: 0.25}):
        with pytest.raises(FileError, match="must hold this run"):
            run(Centre(), checkpoint=tmp_path, max_steps=5, **(first | other))


def test_a_guide_that_draws_another_shape_is_refused_not_broadcast():
    class Wide(Own):
        def guide(self, x, *, u=None, total=None):
            pyro.sample("centre", dist.Normal(self.mean.expand(1), 1.0).to_event(1))

    with pytest.raises(FitError, match=r"must draw site 'centre' in the shape of the model, \(\), got \(1,\)"):
        run(Wide())


def test_a_flipped_bit_in_a_checkpoint_is_refused(tmp_path):
    run(Centre(), checkpoint=tmp_path, max_steps=5)
    file = tmp_path / "svi.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(FileError, match="was changed after it was saved"):
        run(Centre(), checkpoint=tmp_path)


def test_an_interruption_keeps_what_was_reached(monkeypatch):
    monkeypatch.setattr(Stops, "at", 30)
    monkeypatch.setattr(Stops, "error", KeyboardInterrupt)
    fit = run(Centre(), optimizer=Stops)
    assert fit.attrs["interrupted"]
    assert len(fit.history) == 30
    assert not fit.diagnose().ok


def test_a_loss_that_stays_nan_is_said_with_its_step_and_site(monkeypatch, caplog):
    """Five steps after each start the parameters are spoilt: six starts, each with a smaller rate, are tried."""
    monkeypatch.setattr(Stops, "at", 5)
    monkeypatch.setattr(Stops, "poison", True)
    with pytest.raises(FitError, match=r'svi: the loss is nan at step 31 of 60 \(site "centre"\); try lr < 0.002'):
        run(Centre(), optimizer=Stops)
    first = (
        'svi: the loss is nan at step 6 of 60 (site "centre"); gone back to the last good parameters, on with a rate'
    )
    assert caplog.messages[0] == f"{first} of 0.002"
    assert len(caplog.messages) == 5


def test_one_step_that_cannot_be_made_does_not_end_a_run(monkeypatch, caplog):
    made = training.Run._closure

    def once(self, found):
        if self.steps == 7 and not self.progress.setbacks:
            raise training._NotFinite("svi: the loss is nan; try")
        return made(self, found)

    monkeypatch.setattr(training.Run, "_closure", once)
    fit = run(Own(), max_steps=40, lr=0.1)
    assert len(fit.history) == 40
    assert fit.history["lr"].iloc[6] == pytest.approx(5 * fit.history["lr"].iloc[7])
    assert "gone back to the last good parameters" in caplog.text


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
        ({"warmup": -1}, "svi: warmup must be at least 0, got -1"),
        ({"clip": 0.0}, "svi: clip must be positive, got 0.0; 10 is usual"),
        ({"draws": 0}, "svi: draws must be at least 1, got 0"),
        ({"schedule": "steps"}, r"svi: schedule must be one of \('plateau', 'constant', 'cosine'\) or a function of"),
        ({"guide": "normal"}, r"svi: guide must be one of \('mean_field', .*\), a function or a module, got 'normal'"),
        ({"compile": "jit"}, "svi: compile must be one of .*, got 'jit'"),
        ({"device": "abacus"}, "svi: device must be .* one that torch has here, got .abacus."),
        ({"optimizer": lambda p, lr: None}, "svi: optimizer must give a torch.optim.Optimizer, got NoneType"),
        ({"schedule": lambda step: -1.0}, r"svi: schedule must give factors of zero or more, got -1.0 at step 0"),
        ({"schedule": lambda step: np.nan}, "svi: schedule must give factors of zero or more, got nan at step 0"),
        ({"held_out": X.repeat(1, 2)}, "svi: held_out must have 1 features like x, got 2"),
        ({"held_out": X * np.nan}, "svi: held_out must have observed entries, but all are NaN"),
        ({"held_out_u": X}, "svi: held_out_u must come with held_out, got it alone"),
        ({"random_seed": 2**53}, r"random_seed must be a whole number from 0 to 2\*\*53"),
        ({"batch_size": 9}, "svi: batch_size must be between 1 and the 4 rows of x, got 9"),
    ],
)
def test_bad_options_are_refused_in_words(options, message):
    with pytest.raises(DataError, match=message):
        run(Centre(), **options)


def test_a_traced_run_and_an_eager_one_take_the_same_steps():
    traced, eager = (run(Own(), batch_size=2, compile=mode) for mode in ("traced", "eager"))
    assert [fit.attrs["compile"] for fit in (traced, eager)] == ["traced", "eager"]
    for name in ("elbo", "gradient_norm"):
        np.testing.assert_allclose(traced.history[name], eager.history[name], rtol=1e-10)


@pytest.mark.slow
def test_a_compiled_run_takes_the_same_steps():
    traced, compiled = (run(Own(), batch_size=2, compile=mode) for mode in ("traced", "compiled"))
    assert compiled.attrs["compile"] == "compiled"
    np.testing.assert_allclose(traced.history["elbo"], compiled.history["elbo"], rtol=1e-9)


def test_a_program_that_looks_at_its_values_runs_eagerly_and_the_log_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="ppgen"):
        fit = run(Looks(), max_steps=5)
    assert fit.attrs["compile"] == "eager"
    assert "runs eagerly" in caplog.text
    assert "shift = 1.0 if centre > 1e9 else 0.0" in caplog.text
    with pytest.raises(FitError, match="shift = 1.0 if centre > 1e9 else 0.0"):
        run(Looks(), max_steps=5, compile="traced")


class Leaves(Centre):
    """The same, but a value goes through numpy, where no graph sees it."""

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 2.0))
        shift = torch.from_numpy(np.zeros(1) * centre.detach().numpy())
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            normal = dist.Normal(centre + shift, 1.0).mask(~torch.isnan(x))
            pyro.sample("x", normal.to_event(1), obs=torch.nan_to_num(x))


def test_a_value_that_leaves_for_numpy_is_never_a_constant():
    with pytest.raises(FitError, match=r"shift = torch.from_numpy\(np.zeros\(1\) \* centre"):
        run(Leaves(), max_steps=5, compile="traced")
    assert run(Leaves(), max_steps=5).attrs["compile"] == "eager"


def test_a_module_whose_methods_are_the_programs_is_left_as_it_was():
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Parameter(torch.zeros(()))

        def model(self, x):
            centre = pyro.sample("centre", dist.Normal(torch.zeros(()), 2.0))
            with pyro.plate("row", len(x)):
                pyro.sample("x", dist.Normal(centre, 1.0), obs=x)

        def guide(self, x):
            pyro.sample("centre", dist.Normal(self.mean, 0.5))

    both = Both()
    fit = run(both.model, SEEN, guide=both.guide, max_steps=300, lr=0.05)
    assert isinstance(both.mean, torch.nn.Parameter)
    assert both.mean.dtype == torch.float32
    assert float(both.mean.detach()) == 0.0
    assert float(fit.model.function.__self__.mean.detach()) == pytest.approx(MEAN, abs=0.3)


def test_a_function_and_its_guide_are_fitted_as_a_model_is():
    def program(x):
        centre = pyro.sample("centre", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(centre, 1.0), obs=x)

    def guide(x):
        mean = pyro.param("mean", torch.zeros(()))
        pyro.sample("centre", dist.Normal(mean, pyro.param("scale", torch.ones(()), dist.constraints.positive)))

    x = SEEN.numpy()
    for choice in (guide, "mean_field", None):
        fit = run(program, x, guide=choice, max_steps=600, lr=0.05, schedule="cosine", early_stopping=False, draws=400)
        assert float(fit.posterior.sites["centre"].mean()) == pytest.approx(MEAN, abs=0.2)
        assert fit.to_arviz().posterior.sizes["draw"] == 400
    with pytest.raises(DataError, match="batch_size is for models"):
        run(program, x, batch_size=2)


def test_a_guide_of_pyros_is_trained_itself():
    model = Centre()
    guide = pyro.infer.autoguide.AutoNormal(model.model)
    fit = run(model, guide=guide, max_steps=400, lr=0.05)
    assert float(guide.median()["centre"]) == pytest.approx(MEAN, abs=0.3)
    assert fit.attrs["guide"] == "own"


def test_a_module_held_outside_the_program_is_refused():
    net = torch.nn.Linear(1, 1).double()

    def program(x):
        pyro.module("net", net)
        pyro.sample("x", dist.Normal(net(pyro.sample("h", dist.Normal(torch.zeros(1), 1.0).to_event(1))), 1.0), obs=x)

    with pytest.raises(FitError, match=r"'net\$\$\$weight' must belong to the model or the guide"):
        run(program, torch.zeros(1).double())


class Encoded(Model):
    """A value per row, with an amortised guide or without."""

    data_dims = ("row", "feature")
    dims = {"h": ("row",)}
    config = {}

    def __init__(self, *, guided=True, dtype=torch.float32):
        super().__init__()
        self.guided = guided
        self.encoder = torch.nn.Linear(2, 2, dtype=dtype)

    def model(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(x.new_zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(h[:, None], 1.0).expand([len(x), 2]).to_event(1), obs=x)


class Amortised(Encoded):
    def guide(self, x, *, u=None, total=None):
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            mean, log_scale = self.encoder(x).unbind(-1)
            pyro.sample("h", dist.Normal(mean, log_scale.exp()))


class Decoded(Amortised):
    """A decoder of single precision, and a prior whose type nobody said."""

    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Linear(1, 2)

    def model(self, x, *, u=None, total=None):
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            h = pyro.sample("h", dist.Normal(0.0, 1.0))
            noise = dist.Normal(self.decoder(h[:, None]), 1.0).mask(seen)
            pyro.sample("x", noise.to_event(1), obs=torch.where(seen, x, 0.0))

    def guide(self, x, *, u=None, total=None):
        super().guide(torch.nan_to_num(x), u=u, total=total)


def test_an_amortised_guide_finds_the_exact_posterior_of_every_row():
    """h given x is N(sum(x)/3, 1/3): the encoder's weights are thirds, whatever the rows."""
    x = torch.randn(300, 2)
    fit = run(Amortised(), x, batch_size=50, max_steps=800, lr=0.02, schedule="cosine", early_stopping=False)
    assert fit.attrs["gradients"] == {"h": "closed form"}
    assert not fit.posterior.sites
    of_rows = fit.to_arviz(x)["sample_stats"]
    assert of_rows["log_q_rows"].shape == (1, 50, 300)
    np.testing.assert_allclose(of_rows["log_q_rows"].sum("log_q_rows_dim_0"), of_rows["log_q"], rtol=1e-4)
    weight, bias = (value.detach() for value in fit.model.encoder.parameters())
    assert weight.dtype == torch.float64  # the fit answers in double precision; it was trained in single
    torch.testing.assert_close(weight[0], torch.full((2,), 1 / 3).double(), atol=0.06, rtol=0)
    torch.testing.assert_close(bias.exp()[1], torch.tensor(3**-0.5).double(), atol=0.06, rtol=0)


def test_a_fit_in_single_precision_answers_in_double():
    x = torch.randn(30, 2)
    x[3, 1] = math.nan
    fit = run(Decoded(), x, batch_size=10, max_steps=20)
    assert fit.latents(x).h.dtype == np.float64
    assert torch.tensor(fit.impute(x, draws=5).values).isfinite().all()
    assert set(fit.to_arviz(x).children) >= {"posterior_predictive", "prior", "prior_predictive"}
    assert torch.tensor(fit.impute((x + 1)[:4], draws=5).values).isfinite().all()


def test_a_value_per_row_needs_a_guide_that_reads_the_rows():
    with pytest.raises(DataError, match="site 'h' must have a guide of the model's own, for it has a value per row"):
        run(Encoded(), torch.randn(20, 2), batch_size=5)
    assert run(Encoded(), torch.randn(20, 2), max_steps=3).posterior.sites["h"].shape == (1, 50, 20)


def test_draws_of_large_latents_stay_within_memory(monkeypatch, caplog):
    monkeypatch.setattr(objective, "DRAWN", 300 * 7)
    fit = run(Encoded(), torch.randn(300, 2), guide="mean_field", max_steps=2, draws=50)
    assert fit.posterior.shape == (1, 7)
    assert "7 of 50 draws are kept" in caplog.text


def test_particles_are_drawn_at_once_and_lessen_the_noise():
    """The variance of a mean of 50 is a fiftieth; a ratio outside (20, 125) has odds below 1e-5."""
    one, many = (run(Own(), particles=n, lr=1e-9, max_steps=150, early_stopping=False).history["elbo"] for n in (1, 50))
    assert 20 < one.var() / many.var() < 125


def test_the_learning_rate_warms_up_and_follows_its_schedule():
    rates = run(Centre(), schedule="cosine", warmup=10, max_steps=40, lr=0.1).history["lr"]
    steps = np.arange(40)
    expected = 0.1 * np.minimum(1, (steps + 1) / 10) * 0.5 * (1 + np.cos(np.pi * steps / 40))
    np.testing.assert_allclose(rates, expected)
    np.testing.assert_allclose(run(Centre(), schedule=lambda t: 1 / (1 + t)).history["lr"], 0.01 / (1 + np.arange(60)))


def test_a_long_gradient_is_shortened_to_the_clip():
    model = Own(pyro_scale=False)
    plain = partial(torch.optim.SGD)
    fit = run(model, X + 1e6, optimizer=plain, lr=1.0, clip=0.5, max_steps=1, early_stopping=False)
    assert fit.history["gradient_norm"][0] > 1e5
    assert float(fit.model.mean.detach()) == pytest.approx(0.5)


def test_averaging_is_not_the_last_iterate():
    options = {"lr": 0.3, "max_steps": 20, "early_stopping": False}
    last, mean = (float(run(Own(), averaging=averaging, **options).model.mean.detach()) for averaging in (False, True))
    assert last != mean


@pytest.mark.slow
def test_averaging_gives_back_the_mean_of_the_iterates():
    """With a constant learning rate the last iterate wanders; its mean over the run's end does not."""
    options = {"lr": 0.3, "max_steps": 500, "early_stopping": False}
    last, mean = (
        [float(run(Own(), averaging=averaging, random_seed=seed, **options).model.mean.detach()) for seed in range(4)]
        for averaging in (False, True)
    )
    assert np.std(mean) < np.std(last)
    np.testing.assert_allclose(mean, MEAN, atol=0.15)


def test_held_out_rows_stop_the_run_and_choose_the_parameters(monkeypatch):
    monkeypatch.setattr(training, "WINDOW", 10)
    fit = run(Own(), held_out=X + 0.5, max_steps=2000, lr=0.1)
    assert fit.attrs["converged"]
    assert len(fit.history) < 2000
    seen = fit.history["held_out"].dropna()
    assert (seen.index % 10 == 9).all()
    monkeypatch.setattr(training.Run, "over", property(lambda run: run.steps > seen.idxmax()))
    best = run(Own(), held_out=X + 0.5, max_steps=2000, lr=0.1)
    assert fit.model.mean.equal(best.model.mean)


def test_a_model_with_nothing_latent_is_refused():
    class Nothing(Centre):
        def model(self, x, *, u=None, total=None):
            pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).expand(x.shape).to_event(2), obs=x)

    with pytest.raises(DataError, match="must have a continuous latent site, found none"):
        run(Nothing())


TWO = """
    import os, sys, torch, pyro, pyro.distributions as dist
    from ppgen.inference import svi
    from ppgen.model import Model

    class Line(Model):
        data_dims, dims, config = ("row", "feature"), {"w": ()}, {}

        def __init__(self):
            super().__init__()
            self.centre = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
            self.log_noise = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def model(self, x, *, u=None, total=None):
            w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("row", total or len(x), subsample_size=len(x)):
                pyro.sample("x", dist.Normal(u[:, :1] * w, self.log_noise.exp()).to_event(1), obs=x)

        def guide(self, x, *, u=None, total=None):
            pyro.sample("w", dist.Delta(self.centre))

    u = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None]
    x = 2 * u + 0.1 * torch.sin(9 * u)
    fit = svi.fit(Line(), x, u=u, batch_size=8, max_steps=150, lr=0.05, random_seed=1, draws=2, progressbar=False,
                  early_stopping=False)
    rank = os.environ.get("RANK", "0")
    torch.save([fit.model.centre.detach(), fit.model.log_noise.detach(), torch.tensor(fit.history["elbo"].values)],
               f"{sys.argv[1]}.{rank}")
"""


@pytest.mark.slow
def test_two_processes_reach_the_parameters_of_one_with_the_whole_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, start in (("one", []), ("two", launch)):
        done = subprocess.run([sys.executable, *start, script, tmp_path / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    for values in two:
        for mine, wanted in zip(values, one, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)
    assert math.isfinite(float(one[0]))


class Mixture(Model):
    """Two normals, their label of each row summed out; NaN is not observed."""

    data_dims = ("row",)
    dims = {"mu": ("component",)}

    def model(self, x, *, u=None, total=None):
        mu = pyro.sample("mu", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        seen = ~torch.isnan(x)
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(mu[z], 1.0).mask(seen), obs=torch.where(seen, x, 0.0))


def mixed(rows):
    generator = torch.Generator().manual_seed(0)
    centre = torch.where(torch.rand(rows, generator=generator) < 0.3, -2.0, 2.0)
    x = (centre + torch.randn(rows, generator=generator)).double()
    x[::7] = torch.nan
    return x


def test_the_bounds_of_minibatches_of_a_mixture_are_on_average_that_of_all_rows():
    """Labels are summed out of each row before its batch is scaled up; the guide has the same fixed noise for all."""
    task = preparation.read_task(Mixture(), (mixed(60),), None, torch.float64, torch.device("cpu"))
    options = training.Options(0.01, None, "constant", 0, None, 12, 1, averaging=False, early_stopping=True)
    with engine.private_pyro(torch.float64):
        made, _, _ = preparation.prepare(task, None, options)
        noise = torch.tensor([[0.3, -1.2], [-0.7, 0.1]]).double()
        assert made.plan.summed == ("z",)
        whole = made.averaged(task.args, task.kwargs, {}, noise)
        parts = [made.averaged((part,), task.kwargs, {}, noise) for part in task.args[0].split(12)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_a_mixture_in_minibatches_ends_where_it_does_whole():
    x = mixed(200)
    whole, parts = (run(Mixture(), x, batch_size=size, max_steps=None) for size in (None, 20))
    assert parts.attrs["gradients"] == {"mu": "reparameterised", "z": "summed out"}
    torch.testing.assert_close(parts.posterior.sites["mu"], whole.posterior.sites["mu"], atol=1e-3, rtol=0)
    assert parts.latents(x)["z"].shape == (200, 2)
    small = run(Mixture(), x, batch_size=20, lr=0.01)
    slow = run(Mixture(), x, batch_size=20, lr=0.01, compile="eager")
    torch.testing.assert_close(small.posterior.sites["mu"], slow.posterior.sites["mu"])
    assert small.attrs["compile"] == "traced"
