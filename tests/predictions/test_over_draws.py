"""What holds of any answer given for all draws at once; the answers themselves are in test_predictive.py."""

import logging
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import dirichlet

from ppgen.errors import DataError, FitError
from ppgen.predictions import over_draws as machine
from ppgen.predictions.over_draws import gather, over_draws
from ppgen.rng import private_stream

DRAWS = 4000
FAR = 5.0  # standard errors that a mean of independent draws may be off: false-alarm rate 6e-7 each


@pytest.fixture
def draws():
    return {"a": torch.randn(11, 3, dtype=torch.float64), "b": torch.rand(11, dtype=torch.float64)}


def product(theta):
    return {"scaled": theta["a"] * theta["b"], "sum": theta["a"].sum()}


@pytest.mark.parametrize("taken", [1, 2, 5, 10, 11, 1000])
def test_chunks_cover_every_draw_once_and_in_order(draws, taken, monkeypatch):
    weight = 8 * (3 + 1)  # bytes of the two results of a draw
    monkeypatch.setattr(machine, "CHUNK_BYTES", weight * taken)
    parts = list(over_draws(product, draws))
    assert [len(part["sum"]) for part in parts] == [1, *[taken] * (10 // taken), *[10 % taken] * (10 % taken > 0)]
    assert torch.cat([part["scaled"] for part in parts]).equal(draws["a"] * draws["b"][:, None])
    assert gather(product, draws)["sum"].equal(torch.stack([row.sum() for row in draws["a"]]))


def test_a_chunk_takes_no_more_memory_than_it_may(monkeypatch):
    """The largest result that is ever made stays below the bound, however many draws there are."""
    monkeypatch.setattr(machine, "CHUNK_BYTES", 1 << 20)
    seen = []

    def answer(theta):
        big = theta["a"].expand(1000) * torch.arange(1000.0)
        seen.append(big)
        return big.sum()

    sizes = [len(part) for part in over_draws(answer, {"a": torch.ones(5000)})]
    assert max(sizes) * 1000 * 4 <= 1 << 20
    assert max(sizes) * 1000 * 4 > 1 << 18  # and makes use of it


def test_one_draw_is_a_plain_run(draws):
    one = {site: value[:1] for site, value in draws.items()}
    assert gather(lambda theta: theta["a"] * float(theta["b"]), one).equal(one["a"] * one["b"])


def test_no_draw_is_refused_in_words(draws):
    with pytest.raises(DataError, match=r"as many draws, one at least, got \{'a': 0\}"):
        gather(product, {"a": torch.empty(0, 2)})
    with pytest.raises(DataError, match=r"as many draws, one at least, got \{'a': 11, 'b': 3\}"):
        gather(product, draws | {"b": draws["b"][:3]})


def test_an_answer_that_looks_at_its_values_is_given_draw_by_draw_and_said_once(draws, caplog):
    def answer(theta):
        return theta["a"] if theta["b"] > 0.5 else -theta["a"]

    machine._told.clear()
    with caplog.at_level(logging.INFO, "ppgen"):
        found = gather(answer, draws), gather(answer, draws)
    expected = draws["a"] * torch.where(draws["b"] > 0.5, 1.0, -1.0)[:, None]
    assert found[0].equal(expected)
    assert found[1].equal(expected)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "a run of the program for each draw" in caplog.text


def test_random_numbers_after_a_failed_start_are_those_of_the_plain_runs(draws):
    def answer(theta):
        noise = torch.randn(2)
        return noise if theta["b"] > -1 else -noise

    with private_stream(5):
        found = gather(answer, draws)
    with private_stream(5):
        assert found.equal(torch.stack([torch.randn(2) for _ in range(11)]))


def test_random_numbers_of_numpy_are_not_the_same_for_all_draws(draws):
    """Vectorised, a program would ask for one and use it in every draw."""
    found = gather(lambda theta: theta["b"] * 0 + np.random.normal(), draws)  # noqa: NPY002
    assert len(found.unique()) == 11


def test_an_error_on_purpose_is_not_taken_for_a_program_that_cannot_be_vectorised(draws):
    calls = []

    def answer(theta):
        calls.append(1)
        raise FitError("model: wrong")

    with pytest.raises(FitError, match="model: wrong"):
        gather(answer, draws)
    assert len(calls) == 1


def test_an_error_of_the_program_comes_out_as_it_is(draws):
    with pytest.raises(RuntimeError, match="must match the size"):
        gather(lambda theta: theta["a"] + torch.ones(7), draws)


def test_an_interrupt_leaves_everything_as_it_was(draws, monkeypatch):
    monkeypatch.setattr(machine, "CHUNK_BYTES", 1)
    drawn, state = [], torch.get_rng_state()
    mine = dirichlet._Dirichlet

    def answer(theta):
        drawn.append(pyro.sample("x", dist.Dirichlet(theta["a"].exp())))
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return drawn[-1]

    with private_stream(0), pytest.raises(KeyboardInterrupt):
        gather(answer, draws)
    assert len(drawn) == 4
    assert torch.get_rng_state().equal(state)
    assert dirichlet._Dirichlet is mine


def test_the_same_seed_gives_the_same_bits(draws, monkeypatch):
    def answer(theta):
        return pyro.sample("x", dist.Gamma(theta["b"], 1.0).expand([3]))

    monkeypatch.setattr(machine, "CHUNK_BYTES", 1000)

    def ask(seed):
        with private_stream(seed):
            return gather(answer, draws)

    assert ask(1).equal(ask(1))
    assert not ask(1).equal(ask(2))
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    ask(3)
    assert torch.get_rng_state().equal(state[0])


def test_random_numbers_differ_between_draws_that_share_everything(draws):
    fills = [
        lambda: torch.empty(2).normal_(),
        lambda: ONE.new(2).cauchy_(),
        lambda: ONE.new(torch.Size([2])).uniform_(),
    ]
    for draw in [lambda: torch.randn(2), lambda: torch.rand(2), *fills]:
        assert len(machine._vectorized(lambda _, draw=draw: draw(), draws).unique(dim=0)) == 11


ONE = torch.tensor(1.0, dtype=torch.float64)
KINDS = {
    "Normal": lambda a: dist.Normal(a, 2 * a),
    "LogNormal": lambda a: dist.LogNormal(0 * a, 0.3 * a),
    "Laplace": lambda a: dist.Laplace(a, a),
    "Gumbel": lambda a: dist.Gumbel(a, a),
    "Exponential": lambda a: dist.Exponential(a),
    "HalfNormal": lambda a: dist.HalfNormal(a),
    "Gamma": lambda a: dist.Gamma(3 * a, a),
    "InverseGamma": lambda a: dist.InverseGamma(6 * a, a),
    "Beta": lambda a: dist.Beta(a, 2 * a),
    "Dirichlet": lambda a: dist.Dirichlet(a * torch.tensor([1.0, 2.0, 3.0], dtype=a.dtype)),
    "StudentT": lambda a: dist.StudentT(9 * a, a, a),
    "Weibull": lambda a: dist.Weibull(a, 2 * a),
    "Uniform": lambda a: dist.Uniform(-a, a),
    "Bernoulli": lambda a: dist.Bernoulli(a / 3),
    "Binomial": lambda a: dist.Binomial(7, a / 3),
    "Categorical": lambda a: dist.OneHotCategorical(logits=torch.stack([a, 0 * a, -a])),
    "Multinomial": lambda a: dist.Multinomial(5, logits=torch.stack([a, 0 * a, -a])),
    "Poisson": lambda a: dist.Poisson(3 * a),
    "Geometric": lambda a: dist.Geometric(a / 3),
    "NegativeBinomial": lambda a: dist.NegativeBinomial(4 * a, a / 3),
    "MultivariateNormal": lambda a: dist.MultivariateNormal(a * torch.ones(2).double(), a * torch.eye(2).double()),
    "VonMises": lambda a: dist.VonMises(0 * a, a),
}


@pytest.mark.parametrize("name", KINDS)
def test_draws_have_the_mean_and_the_variance_of_their_distribution_and_are_independent(name):
    """|z| < 5 for means, variances and the correlation of neighbouring draws: false-alarm rate 1e-4 for all together.

    Where the fourth moment is needed it is the one of the draws.
    """
    fn = KINDS[name](ONE)
    found = gather(lambda theta: KINDS[name](theta["a"]).sample(), {"a": ONE.expand(DRAWS)}).double().reshape(DRAWS, -1)
    mean, variance = fn.mean.reshape(-1).double(), None if name == "VonMises" else fn.variance.reshape(-1).double()
    centred = found - mean
    spread = found.std(0) / math.sqrt(DRAWS)
    assert (centred.mean(0).abs() < FAR * spread).all()
    if variance is not None:
        assert ((centred**2).mean(0) - variance).abs().le(FAR * (centred**2).std(0) / math.sqrt(DRAWS)).all()
    lagged = centred[1:] * centred[:-1]
    assert (lagged.mean(0).abs() < FAR * lagged.std(0) / math.sqrt(DRAWS)).all()
