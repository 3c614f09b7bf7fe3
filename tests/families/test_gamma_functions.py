import mpmath
import pytest
import torch

from ppgen.families import Dirichlet
from ppgen.families.gamma_functions import digamma_increment, log_gamma_divergence, log_gamma_increment

mpmath.mp.dps = 260
SIZES = [1e-4, 0.3, 1.0, 15.9, 16.1, 1e3, 1e7, 1e12, 1e30, 1e200]
STEPS = [0.0, 1e-6, 0.5, 3.0, 1e3, 1e6]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def near(ours, exact):
    """Relative to the value and, where it is tiny, to one."""
    assert float(ours) == pytest.approx(float(exact), rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("a", SIZES)
@pytest.mark.parametrize("step", STEPS)
def test_increments_are_exact_at_every_size(a, step):
    end = mpmath.mpf(a) + step
    near(log_gamma_increment(tensor(a), tensor(step)), mpmath.loggamma(end) - mpmath.loggamma(a))
    near(digamma_increment(tensor(a), tensor(step)), mpmath.digamma(end) - mpmath.digamma(a))


@pytest.mark.parametrize("a", SIZES)
@pytest.mark.parametrize("ratio", [1e-9, 0.005, 0.5, 0.999, 1.0, 1.001, 2.0, 1e5])
def test_the_divergence_of_log_gamma_is_exact_at_every_ratio(a, ratio):
    b = a * ratio
    exact = mpmath.loggamma(b) - mpmath.loggamma(a) - mpmath.digamma(a) * (mpmath.mpf(b) - mpmath.mpf(a))
    near(log_gamma_divergence(tensor(b), tensor(a), tensor(b - a)), exact)


def exact_kl(q, p):
    q, p = [mpmath.mpf(v) for v in q], [mpmath.mpf(v) for v in p]
    log_beta = lambda c: sum(map(mpmath.loggamma, c)) - mpmath.loggamma(sum(c))  # noqa: E731
    slopes = [mpmath.digamma(v) - mpmath.digamma(sum(q)) for v in q]
    return log_beta(p) - log_beta(q) + sum((a - b) * slope for a, b, slope in zip(q, p, slopes, strict=True))


@pytest.mark.parametrize("stickiness", [0.0, 1e2, 1e8, 1e12, 1e15, 1e30])
def test_a_sticky_row_keeps_the_digits_of_its_small_terms(stickiness):
    family, p = Dirichlet("row"), [0.5, stickiness + 0.5, 0.2, 0.3]
    q = [p[0] + 3.25, p[1] + 4000.0, p[2], p[3] + 11.0]
    ours = family.kl({"log_probability": tensor(*q)}, {"log_probability": tensor(*p)})
    near(ours, exact_kl(q, p))
    exact = sum(map(mpmath.loggamma, q)) - mpmath.loggamma(mpmath.fsum(mpmath.mpf(v) for v in q))
    near(family.log_normalizer({"log_probability": tensor(*q)}), exact)
    total = mpmath.fsum(mpmath.mpf(v) for v in q)
    for value, c in zip(family.expected({"log_probability": tensor(*q)})["log_probability"], q, strict=True):
        near(value, mpmath.digamma(c) - mpmath.digamma(total))


def test_one_outcome_is_certain():
    one = {"log_probability": tensor(1e12)}
    family = Dirichlet("row")
    assert family.log_normalizer(one) == 0
    assert family.expected(one)["log_probability"] == 0
    assert family.kl(one, {"log_probability": tensor(3.0)}) == 0


def test_gradients_are_finite_at_every_size():
    leaves = [tensor(1e-4, 20.0, 1e30, 7.0).requires_grad_(), tensor(1e-4, 40.0, 1e28, 900.0).requires_grad_()]
    value = Dirichlet("row").kl({"log_probability": leaves[0]}, {"log_probability": leaves[1]})
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, leaves))
