import functools
import math
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats

from ppgen.errors import DataError, FileError, FitError
from ppgen.inference import mcmc
from ppgen.inference.mcmc import engine as machine
from ppgen.inference.mcmc.chains import default_chains, written
from ppgen.inference.mcmc.chees import Chees
from ppgen.inference.mcmc.hamiltonian import Ensemble
from ppgen.inference.mcmc.nuts import Nuts
from ppgen.model import Model
from ppgen.programs.density import density
from ppgen.results.posterior import Draws
from ppgen.storage.lock import held


class Centre(Model):
    """x ~ N(centre, 1), centre ~ N(0, 2²): the posterior is known."""

    data_dims = ("row", "feature")
    dims = {"centre": ()}

    def __init__(self, floor=None):
        super().__init__()
        self.floor = floor

    def model(self, x, *, u=None, total=None):
        centre = pyro.sample("centre", dist.Normal(x.new_zeros(()), 2.0))
        if self.floor is not None:
            centre = centre * self.floor
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(centre, 1.0).mask(~torch.isnan(x)).to_event(1), obs=torch.nan_to_num(x))


X = torch.tensor([[1.0], [2.5], [torch.nan], [0.5]], dtype=torch.float64)
MEAN, VARIANCE = 4.0 / (3 + 0.25), 1 / (3 + 0.25)


def sample(model, *args, **options):
    quick = {"draws": 40, "tune": 40, "chains": 4, "random_seed": 1, "progressbar": False, "compile": "traced"}
    data = args or ((X,) if isinstance(model, Model) else ())
    return mcmc.fit(model, *data, **(quick | options))


@functools.cache
def whole(sampler="chees"):
    """An undisturbed run, to compare with."""
    return sample(Centre(), sampler=sampler)


ENGINES = {"chees": Chees, "nuts": Nuts}
SAMPLERS = pytest.mark.parametrize("sampler", ENGINES)


@SAMPLERS
def test_draws_have_the_moments_of_the_exact_posterior(sampler):
    """Each |z| < 4.4 is a false-alarm rate of 1e-5."""
    fit = sample(Centre(), draws=100, tune=50, chains=16, sampler=sampler)
    centre = fit.posterior.sites["centre"].numpy()
    for values, truth in ((centre, MEAN), ((centre - MEAN) ** 2, VARIANCE)):
        ess = array_stats.ess(values, chain_axis=0, draw_axis=1, method="mean")
        assert abs(values.mean() - truth) / (values.std() / ess**0.5) < 4.4


class Spread(Model):
    """x ~ N(0, spread²): a site that is positive."""

    data_dims = ("row", "feature")
    dims = {"spread": ()}

    def model(self, x, *, u=None, total=None):
        spread = pyro.sample("spread", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            pyro.sample("x", dist.Normal(0.0, spread).expand(x.shape).to_event(1), obs=x)


def test_draws_are_in_the_units_of_their_site():
    """The data's spread is 3 within a fifth or so; on the unconstrained scale draws would be near log 3."""
    x = 3 * torch.linspace(-2, 2, 80, dtype=torch.float64)[:, None] / 1.18
    spread = sample(Spread(), x).posterior.sites["spread"]
    assert (spread > 0).all()
    assert float(spread.mean()) == pytest.approx(3, rel=0.25)


def test_a_plain_function_is_a_model_of_its_arguments():
    def program(x, scale):
        centre = pyro.sample("centre", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(centre, scale), obs=x)

    fit = sample(program, np.array([1.0, 2.5, 0.5]), 1.0)
    again = whole()
    torch.testing.assert_close(fit.posterior.sites["centre"], again.posterior.sites["centre"])
    tree = fit.to_arviz()
    assert tree["posterior"]["centre"].shape == (4, 40)
    assert fit.posterior_predictive(np.zeros(5), draws=3).shape == (3, 5)
    assert fit.diagnose().table["check"].str.contains("centre").any()
    with pytest.raises(DataError, match="mcmc: u is for models"):
        sample(program, np.zeros(3), 1.0, u=np.zeros(3))


@SAMPLERS
def test_what_the_sampler_did_is_recorded_by_the_names_of_arviz(sampler):
    fit = whole(sampler)
    stats = fit.posterior.stats
    names = ["lp", "energy", "acceptance_rate", "diverging", "n_steps", "step_size"]
    names += ["tree_depth"] if sampler == "nuts" else []
    assert {name: tuple(value.shape) for name, value in stats.items()} == dict.fromkeys(names, (4, 40))
    assert stats["diverging"].dtype == torch.bool
    assert not stats["diverging"].any()
    assert (stats["n_steps"] >= 1).all()
    if sampler == "nuts":
        assert (stats["n_steps"] <= 2 ** stats["tree_depth"] - 1).all()
    assert (stats["acceptance_rate"] <= 1).all()
    centre = fit.posterior.sites["centre"][..., None]
    data = X[~X.isnan()]
    joint = dist.Normal(0.0, 2.0).log_prob(centre[..., 0]) + dist.Normal(centre, 1.0).log_prob(data).sum(-1)
    torch.testing.assert_close(stats["lp"], joint)
    assert (stats["energy"] >= -joint - 1e-9).all()  # potential plus kinetic
    assert fit.history["tuning"].sum() == 40
    assert len(fit.history) == 80


@SAMPLERS
def test_the_same_seed_gives_the_same_draws_and_leaves_globals_alone(sampler):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second, other = whole(sampler), *(sample(Centre(), sampler=sampler, random_seed=seed) for seed in (1, 2))
    assert first.posterior.sites["centre"].equal(second.posterior.sites["centre"])
    assert not first.posterior.sites["centre"].equal(other.posterior.sites["centre"])
    assert torch.get_rng_state().equal(before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert torch.get_default_dtype() == torch.float32
    assert not dict(pyro.get_param_store())


def stop_at(monkeypatch, number, error=KeyboardInterrupt, engine=Chees):
    """The sampler's transition number ``number`` (from 1) raises."""
    whole, count = engine.transition, 0

    def transition(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            raise error
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(engine, "transition", transition)


def test_an_interruption_keeps_every_finished_draw(monkeypatch):
    stop_at(monkeypatch, 61)
    fit = sample(Centre())
    monkeypatch.undo()
    assert fit.posterior.sites["centre"].equal(whole().posterior.sites["centre"][:, :20])
    assert len(fit.history) == 60
    assert fit.attrs["interrupted"]
    assert not fit.diagnose().ok


def test_an_interruption_before_the_first_draw_is_not_swallowed(monkeypatch):
    stop_at(monkeypatch, 20)
    with pytest.raises(KeyboardInterrupt):
        sample(Centre())


@SAMPLERS
@pytest.mark.parametrize("number", [25, 65])
def test_a_run_that_was_killed_goes_on_bit_for_bit(monkeypatch, tmp_path, number, sampler):
    """In tuning, and in sampling; the last checkpoint is five iterations or so old."""
    options = {"checkpoint": tmp_path / "run", "checkpoint_every": 10, "sampler": sampler}
    stop_at(monkeypatch, number, SystemExit, ENGINES[sampler])
    with pytest.raises(SystemExit):
        sample(Centre(), **options)
    monkeypatch.undo()
    fit, undisturbed = sample(Centre(), **options), whole(sampler)
    assert fit.posterior.sites["centre"].equal(undisturbed.posterior.sites["centre"])
    for name, value in undisturbed.posterior.stats.items():
        assert fit.posterior.stats[name].equal(value)
    assert fit.history.equals(undisturbed.history)
    again = sample(Centre(), **options)  # a finished one is read back
    assert again.posterior.sites["centre"].equal(undisturbed.posterior.sites["centre"])


@pytest.mark.slow
@SAMPLERS
def test_a_process_that_was_killed_goes_on_bit_for_bit(tmp_path, sampler):
    """By SIGKILL: in tuning, at iteration 48 of 100, and again in sampling, at 235; checkpoints are at 40 and 220."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys, pyro, torch, pyro.distributions as dist
            from ppgen.inference import mcmc
            from ppgen.inference.mcmc.sampling import Run
            def program():
                a = pyro.sample("a", dist.Normal(0., 1.))
                pyro.sample("x", dist.Normal(a, 1.), obs=torch.tensor(1.))
            folder, last = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else (None, -1)
            note = Run._note
            def dying(self, number, record):
                note(self, number, record)
                if number == last:
                    os.kill(os.getpid(), signal.SIGKILL)
            Run._note = dying
            fit = mcmc.fit(program, sampler={sampler!r}, draws=300, tune=100, random_seed=3, compile="traced",
                           progressbar=False, checkpoint=folder, checkpoint_every=20)
            print(fit.posterior.sites["a"].double().numpy().tobytes().hex())
            """
        )
    )
    run = [sys.executable, "-W", "ignore", str(script)]
    whole = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    folder = str(tmp_path / "folder")
    for iteration in ("48", "235"):
        killed = subprocess.run([*run, folder, iteration], capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert (tmp_path / "folder" / "mcmc.safetensors").exists()
    resumed = subprocess.run([*run, folder, "-1"], capture_output=True, text=True, check=True).stdout
    assert resumed == whole


def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch):
    folder, short = tmp_path / "run", {"draws": 4, "tune": 4, "checkpoint": tmp_path / "run"}
    sample(Centre(), **short)
    with pytest.raises(FileError, match="must hold this run, but its density, data differ"):
        sample(Centre(), X + 1, **short)
    with pytest.raises(FileError, match="must hold this run, but its options differ"):
        sample(Centre(), **(short | {"draws": 5}))
    with pytest.raises(FileError, match="must hold this run, but its density differ"):
        sample(Centre(floor=2.0), **short)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "version", lambda _: "0.0.0")
        with pytest.raises(FileError, match="must hold this run, but its versions differ"):
            sample(Centre(), **short)
    first, second = (sample(Centre(), draws=5, tune=4, random_seed=seed) for seed in (1, 2))
    begun = {"draws": 4, "tune": 4, "checkpoint": tmp_path / "begun"}
    sample(Centre(), start=first, **begun)
    sample(Centre(), start=first, **begun)
    with pytest.raises(FileError, match="must hold this run, but its options differ"):
        sample(Centre(), start=second, **begun)
    with held(folder, "mcmc"), pytest.raises(FileError, match="mcmc: .* must be written by one run at a time, process"):
        sample(Centre(), **short)
    blob = bytearray((folder / "mcmc.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "mcmc.safetensors").write_bytes(blob)
    with pytest.raises(FileError, match="cannot be read"):
        sample(Centre(), **short)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileError, match="must be empty or hold a checkpoint"):
        sample(Centre(), checkpoint=tmp_path / "other")


@pytest.mark.parametrize("name", ["draws", "stats", "history"])
def test_a_changed_draw_in_a_checkpoint_is_refused(tmp_path, name):
    options = {"chains": 2, "tune": 5, "draws": 5, "start": "uniform", "random_seed": 2}
    sample(Centre(), checkpoint=tmp_path, **options)
    file = tmp_path / f"{name}.bin"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(FileError, match="the draws in checkpoint .* must be those that were written"):
        sample(Centre(), checkpoint=tmp_path, **options)


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(monkeypatch, tmp_path):
    folder, real, calls = tmp_path / "run", os.fsync, 0

    def full(handle):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device; earlier files there are intact"):
        sample(Centre(), checkpoint=folder, checkpoint_every=10)
    monkeypatch.undo()
    fit = sample(Centre(), checkpoint=folder, checkpoint_every=10)
    assert fit.posterior.sites["centre"].equal(whole().posterior.sites["centre"])


def test_draws_that_do_not_fit_on_the_disk_are_refused_at_once(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(FileError, match="must have room for .* GB of draws, got: No space left on device; free some"):
        sample(Centre(), checkpoint=tmp_path / "run")


def test_draws_beyond_the_memory_limit_go_to_disk_and_are_the_same():
    small = sample(Centre(), memory_limit=0)
    assert small.posterior.sites["centre"].equal(whole().posterior.sites["centre"])


@SAMPLERS
def test_one_bad_chain_never_touches_another(sampler, monkeypatch):
    """A chain that is lost, in three ways, while tuning and after: the others do not see the difference."""
    found = []
    for place in (math.nan, math.inf, 1e200):
        start = Ensemble.__init__

        def lose(self, v, value, gradient, place=place, start=start):
            v, value, gradient = v.clone(), value.clone(), gradient.clone()
            v[2], value[2], gradient[2] = place, math.nan, math.nan
            start(self, v, value, gradient)

        with monkeypatch.context() as patch:
            patch.setattr(Ensemble, "__init__", lose)
            patch.setattr(machine, "_gather", lambda run, target: Draws({"v": run.v.movedim(0, 1).clone()}))
            found.append(sample(Centre(), sampler=sampler, draws=10, tune=20).posterior.sites["v"])
    others = [0, 1, 3]
    assert found[0][others].equal(found[1][others])
    assert found[0][others].equal(found[2][others])
    assert torch.isfinite(found[0][others]).all()
    assert (found[0][others].std(1) > 0).all()


def test_chains_can_start_from_an_earlier_fit():
    for start in (whole(), "prior", "uniform"):
        assert sample(Centre(), tune=20, draws=1, start=start).posterior.shape == (4, 1)


def test_a_model_without_a_finite_start_is_refused_in_words():
    with pytest.raises(FitError, match=r"mcmc: a starting point must have finite density and gradient.*site 'x'"):
        sample(Centre(floor=torch.nan))


def flat():
    pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def wandering():
    n = pyro.sample("n", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(torch.zeros(1 if n > 0 else 2), 1.0).to_event(1))


def fixed():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("program", "options", "error", "message"),
    [
        (fixed, {}, DataError, "must have a continuous latent site, found none; there is nothing to sample"),
        (wandering, {}, FitError, "site 'b' must have one shape, got .* its shape depends on values"),
        (flat, {"start": "prior"}, DataError, "the prior of site 'a' must be one that can be drawn from"),
    ],
)
def test_programs_that_cannot_be_sampled_are_refused_in_words(program, options, error, message):
    with pytest.raises(error, match=message):
        sample(program, **options)


def test_the_number_of_chains_goes_by_what_a_gradient_writes_never_by_the_clock():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    sizes = (10, 100_000, 1_000_000)
    targets = [density(program, torch.zeros(n)) for n in sizes]
    assert [default_chains(target, "chees") for target in targets] == [64, 32, 16]
    assert default_chains(targets[-1], "nuts") == 4
    counts = [written(target) for target in targets]
    assert (counts[2] - counts[1]) * (sizes[1] - sizes[0]) == (counts[1] - counts[0]) * (sizes[2] - sizes[1])


def test_float32_is_for_densities_that_can_bear_it():
    fit = sample(Centre(), dtype=torch.float32)
    assert float(fit.posterior.sites["centre"].mean()) == pytest.approx(MEAN, abs=0.5)
    with pytest.raises(FitError, match="rounding in torch.float32 must move the log density by less than 0.01 nat"):
        sample(Centre(), 1e4 + X, dtype=torch.float32)


def test_only_divergent_draws_are_refused_in_words(monkeypatch):
    monkeypatch.setattr("ppgen.inference.mcmc.chees.DIVERGENCE", -math.inf)  # so that every trajectory is one
    with pytest.raises(
        FitError, match="mcmc: some draws must be free of divergences, but all of them diverged; raise target"
    ):
        sample(Centre())


def test_the_bar_says_how_it_goes(capsys, monkeypatch):
    monkeypatch.setattr("ppgen.inference.mcmc.sampling.REFRESH", 0.0)
    monkeypatch.setattr("ppgen.inference.mcmc.sampling.DELAY", 0.0)
    sample(Centre(), progressbar=True, tune=300, draws=300)
    shown = capsys.readouterr().err
    assert "draws/s, 0 divergences, R-hat 1." in shown or "R-hat 0.9" in shown
    assert "tuning, step size" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "mcmc: draws must be at least 1, got 0"),
        ({"tune": 0}, "mcmc: tune must be at least 1, got 0"),
        (
            {"device": "cuda:99"},
            "mcmc: device must be \"auto\" or one that torch has here, got 'cuda:99'.*always works",
        ),
        ({"device": "abacus"}, "mcmc: device must be \"auto\" or one that torch has here, got 'abacus'"),
        ({"chains": 0}, "mcmc: chains must be at least 1, got 0"),
        ({"checkpoint_every": 0}, "mcmc: checkpoint_every must be at least 1, got 0"),
        ({"target_accept": 1.0}, "mcmc: target_accept must be between 0 and 1, got 1.0"),
        ({"start": "zero"}, r"mcmc: start must be one of .*'pathfinder'.* or an earlier fit, got 'zero'"),
        ({"sampler": "slice"}, r"mcmc: sampler must be one of \('chees', 'nuts', 'gibbs'\), got 'slice'"),
        ({"compile": "always"}, "mcmc: compile must be one of .*'traced'.*, got 'always'"),
        ({"max_tree_depth": 0}, "mcmc: max_tree_depth must be at least 1, got 0"),
        ({"memory_limit": -1}, "mcmc: memory_limit must be at least 0, got -1"),
        ({"random_seed": -1}, r"random_seed must be a whole number from 0 to 2\*\*53, got -1"),
        ({"dtype": torch.int64}, "mcmc: dtype must be torch.float64 or torch.float32, got torch.int64"),
        ({"device": "meta"}, "mcmc: device must be .* got 'meta'"),
        ({"dense_mass": "yes"}, "mcmc: dense_mass must be True, False or .*, got 'yes'"),
        ({"u": np.array([1.0, np.nan, 0, 0])}, r"mcmc: u must be finite, got nan at \(1,\)"),
        ({"u": np.ones((3, 1))}, r"mcmc: u must have 4 rows like x, got shape \(3, 1\)"),
        ({"u": np.array(["a", "b", "c", "d"])}, "mcmc: u must hold numbers"),
    ],
)
def test_bad_options_are_refused_in_words(options, message):
    with pytest.raises(DataError, match=message):
        sample(Centre(), **options)
