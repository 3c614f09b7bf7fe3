"""Distributions that take NaN, against the density of what was seen, and draws of the rest against closed forms."""

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.distributions import observed
from ppgen.errors import DataError

NAN = torch.nan
A = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.9, 0.0], [-0.3, 0.4, 0.7]], dtype=torch.float64)
LOC = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
FACTOR, DIAGONAL = A[:, :1].clone(), torch.tensor([0.5, 0.3, 0.8], dtype=torch.float64)

ELEMENTWISE = {
    "normal": (lambda v: dist.Normal(v, v.exp()), 0.3),
    "log-normal": (lambda v: dist.LogNormal(v, v.exp()), 1.4),
    "gamma": (lambda v: dist.Gamma(v.exp(), v.exp()), 0.4),
    "beta": (lambda v: dist.Beta(v.exp(), 2 * v.exp()), 0.2),
    "half-Cauchy": (lambda v: dist.HalfCauchy(v.exp()), 2.0),
    "uniform": (lambda v: dist.Uniform(1 + v, 4.0, validate_args=False), 3.0),
    "Pareto": (lambda v: dist.Pareto(v.exp(), 2 * v.exp(), validate_args=False), 7.0),
    "von Mises": (lambda v: dist.VonMises(v, v.exp()), -1.0),
    "Student's t": (lambda v: dist.StudentT(3 * v.exp(), v, v.exp()), 4.0),
    "Poisson": (lambda v: dist.Poisson(v.exp()), 2.0),
    "Bernoulli": (lambda v: dist.Bernoulli(logits=v), 1.0),
    "binomial": (lambda v: dist.Binomial(5, logits=v), 3.0),
    "negative binomial": (lambda v: dist.NegativeBinomial(v.exp(), logits=v), 3.0),
    "geometric": (lambda v: dist.Geometric(logits=v), 3.0),
    "categorical": (lambda v: dist.Categorical(logits=torch.stack([v, 2 * v, -v], -1)), 2.0),
    "zero-inflated Poisson": (lambda v: dist.ZeroInflatedPoisson(v.exp(), gate_logits=v), 2.0),
}
JOINT = {
    "normal": lambda loc, root: dist.MultivariateNormal(loc, scale_tril=root, validate_args=False),
    "low rank": lambda loc, root: dist.LowRankMultivariateNormal(loc, root[:, :1], DIAGONAL, validate_args=False),
    "Student's t": lambda loc, root: dist.MultivariateStudentT(
        torch.tensor(4.0).to(loc), loc, root, validate_args=False
    ),
}
PATTERNS = torch.tensor(list(itertools.product([True, False], repeat=3)))


def marginal(name, x, seen):
    """Log density of the seen entries, by their own sub-matrix."""
    if not seen.any():
        return torch.zeros(()).double()
    covariance = A @ A.T if name != "low rank" else FACTOR @ FACTOR.T + torch.diag(DIAGONAL)
    block, loc = covariance[seen][:, seen], LOC[seen]
    if name == "Student's t":
        return dist.MultivariateStudentT(torch.tensor(4.0).double(), loc, torch.linalg.cholesky(block)).log_prob(
            x[seen]
        )
    return MultivariateNormal(loc, block).log_prob(x[seen])


@pytest.mark.parametrize(("make", "value"), ELEMENTWISE.values(), ids=ELEMENTWISE.keys())
def test_the_factor_of_an_entry_that_was_not_seen_is_one(make, value):
    x = torch.tensor([NAN, value, NAN], dtype=torch.float64)
    v = torch.full((3,), 0.1, dtype=torch.float64, requires_grad=True)
    score = observed(make(v)).log_prob(x)
    seen = make(v.detach()).log_prob(torch.full_like(x, value))[1]
    torch.testing.assert_close(score.detach(), torch.stack([torch.zeros_like(seen), seen, torch.zeros_like(seen)]))
    (slope,) = torch.autograd.grad(score.sum(), v)
    assert slope.isfinite().all()
    assert slope[[0, 2]].tolist() == [0.0, 0.0]
    assert float(slope[1]) != 0
    drawn = observed(make(v.detach())).impute(x)
    assert drawn[1] == value
    assert make(v.detach()).support.check(drawn).all()


@pytest.mark.parametrize(
    "shaped",
    [
        lambda fn: fn.to_event(1),
        lambda fn: fn.to_event(1).to_event(1),
        lambda fn: fn.to_event(2),
        lambda fn: torch.distributions.Independent(torch.distributions.Independent(fn, 1), 1),
    ],
)
def test_events_add_up_what_was_seen_of_them(shaped):
    x = torch.tensor([[0.1, NAN], [NAN, NAN], [2.0, -1.0]])
    fn = shaped(dist.Normal(torch.zeros(3, 2), 1.0))
    each = torch.where(x.isnan(), 0.0, dist.Normal(0.0, 1.0).log_prob(x.nan_to_num(0.0)))
    made = observed(fn)
    axes = tuple(range(-fn.event_dim, 0)) if hasattr(fn, "event_dim") else (-2, -1)
    torch.testing.assert_close(made.log_prob(x), each.sum(axes))
    assert (made.batch_shape, made.event_shape) == (fn.batch_shape, fn.event_shape)


def test_masks_and_expansions_of_the_program_stay():
    x = torch.tensor([0.5, NAN, 1.0])
    seen = torch.tensor([True, True, False])
    found = observed(dist.Normal(0.0, 1.0).expand([3]).mask(seen)).log_prob(x)
    torch.testing.assert_close(found, torch.stack([dist.Normal(0.0, 1.0).log_prob(x[0]), *torch.zeros(2)]))
    wide = observed(dist.Normal(torch.zeros(3), 1.0)).expand([2, 3])
    assert wide.sample().shape == (2, 3)
    assert observed(wide) is wide


def test_everything_else_is_that_of_the_distribution_inside():
    z = observed(dist.Categorical(torch.tensor([[0.2, 0.8]])))
    assert z.has_enumerate_support
    assert z.enumerate_support(expand=False).shape == (2, 1)
    assert z.support.is_discrete
    h = observed(dist.Normal(torch.tensor(2.0, requires_grad=True), 1.0))
    assert h.has_rsample
    assert h.rsample().requires_grad
    assert (float(h.mean.detach()), float(h.variance)) == (2.0, 1.0)


@pytest.mark.parametrize("name", JOINT)
def test_a_vector_is_scored_by_the_marginal_of_what_was_seen(name):
    """Of every pattern, at once and one by one, also under vmap; a graph traced at one is right at the others."""
    full = torch.tensor([1.0, 0.2, 1.5], dtype=torch.float64)
    x = torch.where(PATTERNS, full, NAN)
    exact = torch.stack([marginal(name, full, seen) for seen in PATTERNS])

    def score(x, loc):
        return observed(JOINT[name](loc, A)).log_prob(x)

    torch.testing.assert_close(score(x, LOC), exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(vmap(score, (0, None))(x, LOC), exact, rtol=1e-10, atol=1e-10)
    graph = make_fx(score)(x.flip(0), LOC)
    torch.testing.assert_close(graph(x, LOC), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", JOINT)
def test_its_gradient_is_right_and_finite_whatever_is_missing(name):
    x = torch.where(PATTERNS, torch.tensor([1.0, 0.2, 1.5], dtype=torch.float64), NAN)

    def score(loc, root):
        return observed(JOINT[name](loc, root.tril())).log_prob(x)

    assert torch.autograd.gradcheck(score, (LOC.clone().requires_grad_(), A.clone().requires_grad_()))
    slope = vmap(grad(lambda loc, one: observed(JOINT[name](loc, A)).log_prob(one)), (None, 0))(LOC, x)
    assert slope.isfinite().all()
    assert slope[-1].eq(0).all()


@pytest.mark.parametrize("name", ["normal", "Student's t"])
def test_missing_entries_of_a_vector_are_drawn_given_the_seen_ones(name):
    """Mean and covariance of 40,000 draws within five standard errors (of a t with 5 degrees of freedom: wider)."""
    torch.manual_seed(0)
    row = torch.tensor([1.7, NAN, NAN], dtype=torch.float64)
    drawn = observed(JOINT[name](LOC, A)).impute(row.expand(40_000, 3))
    assert drawn[:, 0].eq(1.7).all()
    covariance = A @ A.T
    gain = covariance[1:, 0] / covariance[0, 0]
    spread = covariance[1:, 1:] - gain[:, None] * covariance[0, 1:]
    if name == "Student's t":  # Ding (2016): df + 1 degrees of freedom, whose covariance is 5/3 of the scale
        square = (1.7 - LOC[0]) ** 2 / covariance[0, 0]
        spread = spread * (4 + square) / 5 * 5 / 3
    mean = LOC[1:] + gain * (1.7 - LOC[0])
    error = 5 * spread.diagonal().sqrt() / 200
    assert ((drawn[:, 1:].mean(0) - mean).abs() < error).all()
    torch.testing.assert_close(drawn[:, 1:].T.cov(), spread, rtol=0.06 if name == "normal" else 0.2, atol=0.02)


def test_batches_of_vectors_share_what_they_share():
    x = torch.tensor([[[1.0, NAN, 0.0]], [[NAN, NAN, NAN]]], dtype=torch.float64).expand(2, 4, 3)
    fn = dist.MultivariateNormal(LOC, scale_tril=A)
    found = observed(fn.expand([4])).log_prob(x)
    assert found.shape == (2, 4)
    torch.testing.assert_close(
        found[0, 0], MultivariateNormal(LOC[[0, 2]], (A @ A.T)[[0, 2]][:, [0, 2]]).log_prob(x[0, 0, [0, 2]])
    )
    assert found[1].eq(0).all()
    assert observed(fn.expand([4]).to_event(1)).log_prob(x).shape == (2,)


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (dist.Multinomial(3, torch.ones(3)), "Multinomial"),
        (dist.Dirichlet(torch.ones(3)), "Dirichlet"),
        (dist.Dirichlet(torch.ones(2, 3)).to_event(1), "Dirichlet"),
        (dist.LKJCholesky(3, 1.0), "LKJCholesky"),
        (3.0, "float"),
    ],
)
def test_joint_distributions_without_a_marginal_are_refused(fn, name):
    with pytest.raises(DataError, match=f"must be of independent entries, or a Multivariate(.|\n)*got {name}"):
        observed(fn)
