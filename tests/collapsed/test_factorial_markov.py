"""Factorial chains in groups: one group is all combinations summed out, smaller groups are bounds below it."""

import pytest
import torch
from dense import normal

from ppgen.collapsed.factorial_markov import Chain, FactorialMarkov, ProductMarkov, grouped
from ppgen.families.regression import Regression

SIZES, T, D = {"a": 2, "b": 3, "c": 2}, 6, 3


def world(covariance, seed=0):
    """Chains, a regression, its statistics at a draw, and data with entries, frames, an end and a row missing."""
    torch.manual_seed(seed)
    chains = {
        name: Chain(torch.randn(k).double().log_softmax(-1), (2 * torch.randn(k, k)).double().log_softmax(-1))
        for name, k in SIZES.items()
    }
    emission = Regression(D, sum(SIZES.values()) + 1, "effect", covariance, noise=0.3, strength=0.2)
    prior = emission.prior()
    theta = {site: value[0] for site, value in prior.family.sample(prior.eta, 1).items()}
    x = normal(5, T, D)
    x[0, 1, 0], x[1, 0], x[2, 4:], x[3] = torch.nan, torch.nan, torch.nan, torch.nan
    x[1, 3, :2] = torch.nan
    return chains, emission, prior.family.statistic(theta), x


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("gaps", [False, True])
def test_one_group_of_all_chains_is_the_density_with_its_gradient_and_smaller_groups_stay_below(covariance, gaps):
    chains, emission, s, x = world(covariance)
    x = x if gaps else torch.nan_to_num(x)
    s = {name: value.requires_grad_() for name, value in s.items()}
    given = (chains, emission, s, (len(x), T))
    exact, one = ProductMarkov(*given), FactorialMarkov(*given, most=12)
    assert one.exact(x)
    torch.testing.assert_close(one.log_prob(x), exact.log_prob(x), rtol=0, atol=1e-10)
    each = [torch.autograd.grad(fn.log_prob(x).sum(), list(s.values())) for fn in (one, exact)]
    for name, found, wanted in zip(s, *each, strict=True):
        square = name in ("precision", "quadratic")  # of which the sum of both triangles counts
        found, wanted = (value + value.mT if square else value for value in (found, wanted))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    for name, value in exact.latents(x).marginals.items():
        torch.testing.assert_close(one.latents(x).marginals[name], value, rtol=0, atol=1e-10, equal_nan=True)
    for most in (1, 6):
        assert (FactorialMarkov(*given, most=most).log_prob(x) <= exact.log_prob(x) + 1e-10).all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_bound_of_groups_at_point_posteriors_is_the_joint_density_of_the_paths(covariance):
    chains, emission, s, x = world(covariance, 1)
    given = (chains, emission, s, (len(x), T))
    paths = {name: torch.randint(k, (len(x), T)) for name, k in SIZES.items()}
    wanted = FactorialMarkov(*given, most=12).joint(x, paths)
    for most in (1, 6):
        torch.testing.assert_close(FactorialMarkov(*given, most=most).joint(x, paths), wanted, rtol=0, atol=1e-10)


def test_draws_of_gibbs_sweeps_have_the_exact_probabilities():
    """2,000 rows of one step sequence: shares of draws within 5 standard errors of .011, a false alarm in 10^5."""
    chains, emission, s, x = world("diagonal", 2)
    x = x[:1].expand(2000, T, D).clone()
    given = (chains, emission, s, (len(x), T))
    torch.manual_seed(0)
    drawn = FactorialMarkov(*given, most=6).draw(x)
    for name, probability in ProductMarkov(*given).latents(x[:1]).marginals.items():
        share = torch.nn.functional.one_hot(drawn[name], SIZES[name[-1]]).double().mean(0)
        assert (share - probability[0]).abs().max() < 0.056


def test_groups_are_as_large_as_they_may_be_and_keep_the_order():
    assert grouped(SIZES, 1) == [["a"], ["b"], ["c"]]
    assert grouped(SIZES, 6) == [["a", "b"], ["c"]]
    assert grouped(SIZES, 12) == [["a", "b", "c"]]
    assert grouped({"a": 40, "b": 2}, 16) == [["a"], ["b"]]
