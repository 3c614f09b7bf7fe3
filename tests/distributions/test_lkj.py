import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.distributions.lkj import draw_cholesky
from ppgen.predictions import predictive
from ppgen.programs.density import density
from ppgen.programs.program import Function
from ppgen.rng import private_stream

N = 4000


def variances(factors):
    correlations = factors @ factors.mT
    lower = torch.tril_indices(*factors.shape[-2:], -1)
    return correlations[..., lower[0], lower[1]].var(0)


def expected(concentration, dim):
    """Each correlation is 2 b - 1 with b ~ Beta(a, a), a = concentration - 1 + dim / 2."""
    return 1 / (2 * (concentration - 1 + dim / 2) + 1)


def check(factors, concentration):
    """z of the variance with kurtosis below that of a normal: |z| < 6 over all entries fails by chance under 1e-7."""
    wanted = expected(concentration, factors.shape[-1])
    z = (variances(factors) / wanted - 1) / (2 / len(factors)) ** 0.5
    assert z.abs().max() < 6
    torch.testing.assert_close((factors**2).sum(-1), torch.ones(factors.shape[:-1], dtype=factors.dtype))


@pytest.mark.parametrize("dim", [2, 3, 5])
@pytest.mark.parametrize("concentration", [0.7, 1.0, 4.0])
def test_every_correlation_has_its_marginal_variance(dim, concentration):
    with private_stream(dim):
        check(draw_cholesky(torch.full((N,), concentration, dtype=torch.float64), dim), concentration)


def program(x):
    pyro.sample("L", dist.LKJCholesky(3, x.new_tensor(1.0)))
    with pyro.plate("group", 2):
        pyro.sample("M", dist.LKJCholesky(3, x.new_tensor(2.0)))
    pyro.sample("x", dist.Normal(x.new_zeros(1), 1.0).to_event(1), obs=x)


def test_priors_of_a_program_are_drawn_right():
    x = torch.zeros(1, dtype=torch.float64)
    with private_stream(1):
        draws = predictive.priors(Function(program, (x,)), x, N)
    check(draws["L"], 1.0)
    check(draws["M"][:, 0], 2.0)
    check(draws["M"][:, 1], 2.0)
    with private_stream(2):
        check(density(program, x).prior(400)["L"], 1.0)
