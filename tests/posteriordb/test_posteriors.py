"""Our densities against reference draws, and against Pyro's own potential."""

import pyro
import pytest
import torch
from posteriordb.programs import CASES, load
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model

from ppgen.programs.density import density


@pytest.mark.parametrize("name", CASES)
def test_the_score_at_reference_draws_has_the_moments_of_stein(name):
    """E[score] = 0 and E[z score] = -1; |score| > 4 is a translation bug, correct models reach 2.9."""
    posterior = load(name)
    target = density(posterior.program, *posterior.args)
    z = target.unconstrain(posterior.sites)
    _, score = target.value_and_grad(z)
    standard = (z - z.mean(0)) / z.std(0)
    score = score * z.std(0)
    for terms in (score, standard * score + 1):
        assert float((terms.mean(0) / terms.std(0) * len(z) ** 0.5).abs().max()) < 4


@pytest.mark.parametrize("name", CASES)
def test_the_density_is_the_potential_of_pyro(name):
    posterior = load(name)
    target = density(posterior.program, *posterior.args)
    v = target.unconstrain({site: value[:3] for site, value in posterior.sites.items()})
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.validation_enabled(False):
            start = init_to_value(values={site: value[0] for site, value in posterior.sites.items()})
            _, potential, _, _ = initialize_model(
                posterior.program, posterior.args, init_strategy=start, max_plate_nesting=1
            )
    finally:
        torch.set_default_dtype(torch.float32)
    value, gradient = target.value_and_grad(v)
    for row in range(3):
        free = {s.name: v[row, s.entries].reshape(s.free_shape).requires_grad_() for s in target.sites.values()}
        wanted = -_in_double(potential, free)
        torch.testing.assert_close(value[row], wanted.detach(), rtol=1e-10, atol=1e-10)
        slopes = torch.cat([g.reshape(-1) for g in torch.autograd.grad(wanted, list(free.values()))])
        torch.testing.assert_close(gradient[row], slopes, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_the_traced_graph_gives_the_gradient_of_the_program(name):
    posterior = load(name)
    target = density(posterior.program, *posterior.args)
    graph = target.compiled(4, mode="traced")
    v = target.unconstrain({site: value[:4] for site, value in posterior.sites.items()})
    for mine, wanted in zip(graph(v), target.value_and_grad(v), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-10)


def _in_double(potential, free):
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.validation_enabled(False):
            return potential(free)
    finally:
        torch.set_default_dtype(torch.float32)
