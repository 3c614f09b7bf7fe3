"""Stops at a wanted effective size, and the choice to compile in tuning: both by counts, never by the clock."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.errors import DataError, FileError
from ppgen.inference import mcmc
from ppgen.inference.mcmc import hamiltonian
from ppgen.inference.mcmc.chees import Chees
from ppgen.programs.work import Work

QUICK = {"tune": 40, "random_seed": 1, "progressbar": False}


def program(y):
    centre = pyro.sample("centre", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(centre, 1.0).to_event(1), obs=y)


Y = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 1.0]], dtype=torch.float64)


def sample(**options):
    return mcmc.fit(program, Y, **(QUICK | {"chains": 16, "compile": "traced"} | options))


def test_a_run_without_a_number_of_draws_stops_when_they_are_enough():
    fit = sample()
    chains, draws = fit.posterior.shape
    assert chains == 16
    assert 100 <= draws < 1000
    assert len(fit.history) == 40 + draws
    assert fit.attrs["stopped"].startswith("least effective size")
    sizes = fit.diagnose().table.query("check.str.startswith('ESS')", engine="python")["value"]
    assert sizes.min() >= 1000


def test_a_number_of_draws_alone_is_exact_and_beside_a_wanted_size_the_most():
    assert sample(draws=30).posterior.shape == (16, 30)
    assert sample(draws=30).attrs["stopped"] == "30 draws a chain, as asked for"
    most = sample(draws=120, min_ess=10**6)
    assert most.posterior.shape == (16, 120)
    assert most.attrs["stopped"] == "120 draws a chain, the most allowed, before the effective size of 1,000,000"
    assert sample(min_ess=50).posterior.shape == (16, 100)
    with pytest.raises(DataError, match="mcmc: min_ess must be at least 1"):
        sample(min_ess=0)


def killed_at(monkeypatch, number):
    whole, count = Chees.transition, 0

    def transition(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == number:
            raise SystemExit
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Chees, "transition", transition)


@pytest.mark.parametrize("number", [30, 145, 165])
def test_a_killed_run_stops_at_the_same_draw_bit_for_bit(monkeypatch, tmp_path, number):
    """Killed in tuning, after the first look, and after the second; checkpoints are every ten iterations."""
    options = {"min_ess": 2300, "chains": 16, "checkpoint_every": 10}
    whole = sample(**options)
    assert whole.posterior.shape[1] > 130
    with monkeypatch.context() as patch:
        killed_at(patch, number)
        with pytest.raises(SystemExit):
            sample(**options, checkpoint=tmp_path / "run")
    for _ in range(2):  # resumed, and a finished one read back
        fit = sample(**options, checkpoint=tmp_path / "run")
        assert fit.posterior.sites["centre"].equal(whole.posterior.sites["centre"])
        assert fit.history.equals(whole.history)
        assert fit.attrs["stopped"] == whole.attrs["stopped"]


def test_compiling_pays_by_counts():
    small, large = Work(136, 32_000, 500, 500.0), Work(250, 5_000_000, 1_000_000, 1e5)
    assert not small.pays(1_000)
    assert small.pays(20_000)
    assert large.pays(4_000)
    assert "of 1,000 calls" in small.words(1_000)


@pytest.fixture
def compiler(monkeypatch):
    """Stands in for torch's: a graph that rounds otherwise, at once."""
    calls = []

    def compiled(traced, examples, reason):
        calls.append(reason)
        return hamiltonian.replace(traced, mode="compiled", reason=reason, run=lambda *x: _off(traced.run(*x)))

    monkeypatch.setattr(hamiltonian, "compiled", compiled)
    return calls


def _off(outputs):
    return [outputs[0] * (1 + 1e-12), *outputs[1:]]


def test_the_choice_is_made_in_tuning_where_the_leapfrogs_are_known(monkeypatch, compiler):
    monkeypatch.setattr(Work, "saved", 1e-3)
    fit = sample(compile="auto", draws=30)
    assert fit.attrs["compile"] == "traced"
    assert "calls" in fit.attrs["compile_reason"]
    assert not compiler
    monkeypatch.setattr(Work, "saved", 1.0)
    fit = sample(compile="auto", draws=30)
    assert fit.attrs["compile"] == "compiled"
    assert compiler == [fit.attrs["compile_reason"]]


def test_the_first_quarter_of_tuning_does_not_speak_for_compiling(monkeypatch):
    looks = []
    monkeypatch.setattr(hamiltonian.Leapfrog, "reconsider", lambda self, calls: looks.append(self.steps))
    sample(compile="auto", tune=160, draws=20)
    assert len(looks) == 8  # at 40, 60, ..., 180: not at 20, where steps are short and many


def test_a_run_that_compiled_goes_on_compiled_bit_for_bit(monkeypatch, tmp_path, compiler):
    monkeypatch.setattr(Work, "saved", 1.0)
    options = {"compile": "auto", "draws": 30, "checkpoint_every": 5}
    whole = sample(**options)
    with monkeypatch.context() as patch:
        killed_at(patch, 49)
        with pytest.raises(SystemExit):
            sample(**options, checkpoint=tmp_path / "run")
    fit = sample(**options, checkpoint=tmp_path / "run")
    assert fit.posterior.sites["centre"].equal(whole.posterior.sites["centre"])
    with monkeypatch.context() as patch:
        patch.setattr(hamiltonian, "compiled", lambda traced, examples, reason: traced)
        with pytest.raises(FileError, match="must go on compiled, as it began"):
            sample(**options, checkpoint=tmp_path / "run")


def test_small_programs_have_the_same_draws_whatever_the_number_of_threads():
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(sample(draws=20).posterior.sites["centre"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1])
