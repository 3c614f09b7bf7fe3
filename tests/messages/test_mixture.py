import math
import sys

import pytest
import torch

from ppgen.messages import Mixture, discrete_chain, mixture


def random_mixture(*batch, rows=6, states=4):
    return torch.randn(*batch, states, dtype=torch.float64), torch.randn(*batch, rows, states, dtype=torch.float64)


def test_a_mixture_is_a_chain_of_length_one():
    weights, potential = random_mixture()
    mixed = mixture(weights, potential)
    chains = discrete_chain(weights, torch.zeros(4, 4).double(), potential[:, None])
    torch.testing.assert_close(mixed.log_normalizer, chains.log_normalizer)
    torch.testing.assert_close(mixed.responsibilities, chains.marginals[:, 0])
    assert torch.equal(mixed.mode(), chains.mode()[:, 0])


def test_responsibilities_are_the_gradient_of_the_evidence():
    weights, potential = (t.requires_grad_() for t in random_mixture(3))
    mixed = mixture(weights, potential)
    gradient = torch.autograd.grad(mixed.log_normalizer.sum(), (weights, potential))
    torch.testing.assert_close(gradient[1], mixed.responsibilities)
    torch.testing.assert_close(gradient[0], mixed.responsibilities.sum(-2))
    assert torch.autograd.gradgradcheck(lambda *m: mixture(*m).log_normalizer, (weights, potential))


def test_draws_have_the_frequencies_of_the_responsibilities():
    # 24 frequencies within 4.5 standard errors: false alarm in 1 of 6,000 seeds; the seed is fixed.
    n, mixed = 40_000, mixture(*random_mixture())
    draws = mixed.sample(n, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (n, 6)
    p = mixed.responsibilities
    frequency = torch.nn.functional.one_hot(draws, 4).double().mean(0)
    assert ((frequency - p) / (p * (1 - p) / n).sqrt()).abs().max() < 4.5


def test_a_row_that_nothing_allows_has_probability_zero_and_no_gradient():
    weights, potential = random_mixture()
    potential[2] = -math.inf
    weights.requires_grad_(), potential.requires_grad_()
    mixed = mixture(weights, potential)
    assert mixed.log_normalizer[2] == -math.inf
    gradient = torch.autograd.grad(mixed.log_normalizer.sum(), (weights, potential))
    assert all(g.isfinite().all() for g in gradient)
    assert (gradient[1][2] == 0).all()
    with pytest.raises(ValueError, match=r"mixture: to draw a component, .* row \(2,\) has none"):
        mixed.sample(1)
    with pytest.raises(ValueError, match="one must have positive probability"):
        mixed.mode()


def test_a_component_of_weight_zero_is_never_drawn():
    weights, potential = random_mixture()
    weights[1] = -math.inf
    assert (mixture(weights, potential).sample(2000) != 1).all()


def test_leading_dims_broadcast_and_no_rows_are_no_trouble():
    (weights, _), (_, potential) = random_mixture(), random_mixture(2, 3)
    assert mixture(weights, potential).log_normalizer.shape == (2, 3, 6)
    assert mixture(weights, potential).sample(5).shape == (5, 2, 3, 6)
    assert mixture(weights, potential[0, 0, :0]).sample(5).shape == (5, 0)


@pytest.mark.parametrize(
    ("weights", "potential", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"log_potential must have shape \(\.\.\., N, K\)"),
        (torch.zeros(2), torch.zeros(5, 3), r"log_weights must have shape \(\.\.\., K=3\), got \(2,\)"),
        (torch.zeros(3).long(), torch.zeros(5, 3), "log_weights must be floating point, got torch.int64"),
    ],
)
def test_a_bad_input_is_refused_in_words(weights, potential, message):
    with pytest.raises(ValueError, match=message):
        Mixture(weights, potential)


def test_the_score_of_components_is_their_log_weight():
    weights, potential = (t.requires_grad_() for t in random_mixture(2))
    mixed = mixture(weights, potential)
    z = mixed.sample(3)
    found = mixed.score(z)
    assert found.shape == (3, 2, 6)
    assert torch.equal(mixed.score(z[1]), found[1])
    assert found[2, 1, 4] == weights[1, z[2, 1, 4]] + potential[1, 4, z[2, 1, 4]]
    every = torch.stack([mixed.score(torch.full((2, 6), k)) for k in range(4)])
    torch.testing.assert_close(every.logsumexp(0), mixed.log_normalizer)
    assert torch.autograd.gradcheck(lambda *m: mixture(*m).score(z), (weights, potential))


def test_components_that_are_none_have_no_score():
    mixed = mixture(*random_mixture())
    with pytest.raises(ValueError, match=r"mixture: z must lie in \[0, K=4\), got 4 to 4"):
        mixed.score(torch.full((6,), 4))
    with pytest.raises(ValueError, match=r"mixture: z must have shape \(6,\) or \(n, \*\(6,\)\), got \(5,\)"):
        mixed.score(torch.zeros(5).long())


@pytest.mark.parametrize("layout", ["rows first", "components first", "a batch"])
def test_sums_by_hand_are_those_of_torch_with_two_derivatives(layout, monkeypatch):
    x = 30 * torch.randn(2, 700, 5, dtype=torch.float64)
    x[0, 3], x[1, 8, 2], x[0, 5, 1:] = -torch.inf, -torch.inf, -torch.inf
    x = {"rows first": x[0], "components first": x[0].mT.contiguous().mT, "a batch": x}[layout].requires_grad_()
    weights = torch.randn(x.shape[:-1], dtype=torch.float64)

    def results():
        value = mixture(torch.zeros(5, dtype=torch.float64), x).log_normalizer
        finite = torch.where(value == -torch.inf, 0.0, value)
        (slope,) = torch.autograd.grad((weights * finite).sum(), x, retain_graph=True)
        (first,) = torch.autograd.grad((weights * finite).sum(), x, create_graph=True)
        return value, slope, first, *torch.autograd.grad((first * torch.linspace(0, 1, 5)).sum(), x)

    by_hand = results()
    monkeypatch.setattr(sys.modules[mixture.__module__], "is_eager", lambda: False)
    for a, b in zip(by_hand, results(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_sum_over_nan_is_nan_in_its_own_row():
    x = torch.zeros(3, 2, dtype=torch.float64)
    x[1, 0] = torch.nan
    assert mixture(torch.zeros(2, dtype=torch.float64), x).log_normalizer.isnan().tolist() == [False, True, False]
