import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

from ppgen.emissions import Autoregressive, Subspace
from ppgen.errors import DataError, FitError
from ppgen.models import HMM
from ppgen.programs import tracing
from ppgen.programs.density import density


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        noise = pyro.sample("noise", dist.Gamma(2.0, 2.0))
        pyro.sample("y", dist.Normal(x @ slope, spread * noise), obs=y)


DATA = (np.arange(6.0).reshape(3, 2), np.array([0.5, 1.0, -1.0]))


def pyro_potential(program, *args, depth=1):
    """Pyro's own density, as a function of the same vector."""
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.validation_enabled(False):
            _, potential, _, _ = initialize_model(program, args, max_plate_nesting=depth)
    finally:
        torch.set_default_dtype(torch.float32)

    def value(target, v):
        free = {site.name: v[site.entries].reshape(site.free_shape) for site in target.sites.values()}
        torch.set_default_dtype(torch.float64)
        try:
            with pyro.validation_enabled(False):
                return -potential(free)
        finally:
            torch.set_default_dtype(torch.float32)

    return value


def vectors(target, rows=3):
    return target.start(rows, torch.Generator().manual_seed(3), radius=1.0)


def test_sites_plates_and_places_are_those_of_the_program():
    target = density(regression, *DATA)
    assert {name: tuple(site.shape) for name, site in target.sites.items()} == {
        "slope": (2,),
        "spread": (),
        "noise": (3,),
    }
    assert [site.entries for site in target.sites.values()] == [slice(0, 2), slice(2, 3), slice(3, 6)]
    assert target.plates == {"row": 3}
    assert target.size == 6
    assert "slope (2,)" in repr(target)


def test_value_and_gradient_are_those_of_pyros_potential():
    target = density(regression, *DATA)
    v = vectors(target).requires_grad_()
    wanted = torch.stack([pyro_potential(regression, *map(torch.tensor, DATA))(target, row) for row in v])
    value, gradient = target.value_and_grad(v.detach())
    torch.testing.assert_close(value, wanted.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), v)[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(target.log_density(v.detach()), wanted.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["traced", "eager"])
def test_every_way_to_run_gives_the_same(mode):
    target = density(regression, *DATA)
    v = vectors(target)
    run = target.compiled(3, mode=mode)
    assert run.mode == mode
    for mine, wanted in zip(run(v), target.value_and_grad(v), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_the_compiled_graph_gives_the_same_and_is_chosen_for_long_runs():
    target = density(regression, *DATA)
    v = vectors(target)
    run = target.compiled(3, calls=10**9)
    if run.mode == "traced":
        pytest.skip(f"nothing compiles here: {run.reason}")
    assert run.mode == "compiled"
    assert run.seconds["compile"] > 0
    for mine, wanted in zip(run(v), target.value_and_grad(v), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9)


def test_short_runs_are_not_compiled_and_a_missing_compiler_is_said(monkeypatch):
    target = density(regression, *DATA)
    assert target.compiled(3, calls=10).mode == "traced"
    monkeypatch.setattr("torch._inductor.compile", lambda *_: 1 / 0)
    run = target.compiled(3, mode="compiled")
    assert run.mode == "traced"
    assert run.reason == "torch cannot compile it here (ZeroDivisionError)"
    monkeypatch.setattr("torch._inductor.compile", lambda graph, _: lambda *inputs: [2 * t for t in graph(*inputs)])
    assert "other values" in target.compiled(3, mode="compiled").reason


def test_constrain_and_unconstrain_are_inverse():
    target = density(regression, *DATA)
    v = vectors(target, 8).reshape(2, 4, -1)
    values = target.constrain(v)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "slope": (2, 4, 2),
        "spread": (2, 4),
        "noise": (2, 4, 3),
    }
    assert (values["noise"] > 0).all()
    torch.testing.assert_close(target.unconstrain(values), v)
    with pytest.raises(DataError, match=r"values must be given for every site, \['noise'\] are missing"):
        target.unconstrain({name: values[name] for name in ("slope", "spread")})


def test_a_simplex_takes_one_number_less_and_its_jacobian_is_counted():
    def program():
        pyro.sample("p", dist.Dirichlet(torch.ones(3)))

    target = density(program)
    assert target.size == 2
    v = vectors(target, 1)
    p = torch.distributions.biject_to(dist.constraints.simplex)(v[0])
    jacobian = torch.autograd.functional.jacobian(torch.distributions.biject_to(dist.constraints.simplex), v[0])[:2]
    wanted = math.log(2.0) + torch.linalg.slogdet(jacobian).logabsdet
    assert p.sum() == pytest.approx(1.0)
    torch.testing.assert_close(target.log_density(v)[0], wanted)


def test_small_discrete_sites_are_summed_out():
    y = torch.tensor([-1.0, 0.2, 3.0, 2.5], dtype=torch.float64)

    def program(y):
        weight = pyro.sample("weight", dist.Dirichlet(torch.ones(2)))
        centre = pyro.sample("centre", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        late = pyro.sample("late", dist.Bernoulli(weight[0]))
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Categorical(weight))
            pyro.sample("y", dist.Normal(centre[z] + late, 1.0), obs=y)

    target = density(program, y)
    assert set(target.sites) == {"weight", "centre"}
    assert set(target.enumerated) == {"late", "z"}
    v = vectors(target)
    values, rows = target.constrain(v), []
    for weight, centre, free in zip(values["weight"], values["centre"], v, strict=True):
        cases = []
        for late in (0.0, 1.0):
            parts = weight.log() + dist.Normal(centre + late, 1.0).log_prob(y[:, None])
            cases.append((weight[0] if late else 1 - weight[0]).log() + parts.logsumexp(-1).sum())
        transform = target.sites["weight"].transform
        prior = dist.Dirichlet(torch.ones(2, dtype=torch.float64)).log_prob(weight)
        prior += dist.Normal(torch.zeros_like(centre), 3.0).log_prob(centre).sum()
        rows.append(torch.stack(cases).logsumexp(0) + prior + transform.log_abs_det_jacobian(free[:1], weight))
    torch.testing.assert_close(target.log_density(v), torch.stack(rows), rtol=1e-10, atol=1e-10)
    traced = target.compiled(3, mode="traced")(v)[0]
    torch.testing.assert_close(traced, torch.stack(rows), rtol=1e-10, atol=1e-10)
    wanted = torch.stack([pyro_potential(program, y)(target, row) for row in v])
    torch.testing.assert_close(traced, wanted, rtol=1e-10, atol=1e-10)


def test_a_program_may_look_at_its_data():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        scale = x.std() if bool((x > 2).any()) else torch.ones(())
        pyro.sample("x", dist.Normal(a, scale).expand(x.shape).to_event(1), obs=x)

    target = density(program, np.array([0.0, 1.0, 5.0]))
    v = vectors(target)
    run = target.compiled(3, mode="traced")
    torch.testing.assert_close(run(v)[0], target.log_density(v))
    assert "std" not in run.run.code  # computed once
    assert "aten.log.default" not in run.run.code


def test_a_factorisation_that_fails_in_one_chain_is_nan_there_alone():
    def program():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        cov = torch.eye(2) * a
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=cov), obs=torch.ones(2))

    target = density(program)
    run = target.compiled(3, mode="traced")
    value, gradient = run(torch.tensor([[1.0], [-1.0], [2.0]], dtype=torch.float64))
    assert torch.isfinite(value).tolist() == [True, False, True]
    assert torch.isfinite(gradient[:, 0]).tolist() == [True, False, True]


def test_looking_at_a_latent_value_is_refused_with_the_line_and_works_slowly():
    def program():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        if a > 0:  # the line
            pyro.factor("f", -a)

    target = density(program)
    v = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    with pytest.raises(FitError, match=r"test_density\.py:\d+ \(`if a > 0:  # the line`\)"):
        target.compiled(2, mode="traced")
    with pytest.raises(FitError, match="whatever the values of its sites"):
        target.log_density(v)
    value, gradient = target.compiled(2, mode="eager")(v)
    normal = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).log_prob(v[:, 0])
    torch.testing.assert_close(value, normal - torch.tensor([1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(gradient[:, 0], torch.tensor([-2.0, 1.0], dtype=torch.float64))


def test_a_fault_of_the_program_itself_is_not_explained_away():
    def program():
        a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        torch.zeros(2) @ a

    with pytest.raises(RuntimeError, match="size"):
        density(program)


def shapeless():
    n = pyro.sample("n", dist.Normal(0.0, 1.0))
    pyro.sample("b", dist.Normal(torch.zeros(1 if n > 0 else 2), 1.0).to_event(1))


def fleeting():
    if pyro.sample("a", dist.Normal(0.0, 1.0)) > 0:
        pyro.sample("b", dist.Normal(0.0, 1.0))


def nested_support():
    top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
    pyro.sample("b", dist.Uniform(torch.zeros(()), top))


def counting():
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    pyro.sample("n", dist.Poisson(rate))


def many():
    weights = pyro.sample("p", dist.Dirichlet(torch.ones(300)))
    pyro.sample("k", dist.Categorical(weights))


def subsampled():
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 10, subsample_size=5):
        pyro.sample("x", dist.Normal(a, 1.0), obs=torch.zeros(5))


def nothing():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(()))


@pytest.mark.parametrize(
    ("program", "error", "message"),
    [
        (shapeless, FitError, r"site 'b' must have one shape, got \(\d,\) and \(\d,\)"),
        (fleeting, FitError, r"every run must have the same sites, \['b'\] come and go"),
        (nested_support, FitError, "the support of site 'b' must not depend on another site"),
        (
            counting,
            DataError,
            r"discrete site 'n' must have few values to be summed out, got infinitely many \(Poisson\)",
        ),
        (many, DataError, "discrete site 'k' must have few values to be summed out, got 300"),
        (subsampled, DataError, "plate 'row' must run over all its 10 rows, got 5"),
        (nothing, DataError, "must have a continuous latent site, found none"),
    ],
)
def test_what_cannot_be_sampled_by_gradients_is_refused_in_words(program, error, message):
    with pytest.raises(error, match=f"density: .*{message}"):
        density(program)


def test_rounding_that_moves_the_density_is_refused():
    def program(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a, 1.0).expand(x.shape).to_event(1), obs=x)

    assert density(program, torch.ones(3), dtype=torch.float32).dtype == torch.float32
    with pytest.raises(FitError, match=r"rounding in torch.float32 must move the log density by less than 0\.01 nat"):
        density(program, 1e4 * torch.linspace(1, 2, 1000), dtype=torch.float32)


def test_nothing_global_is_changed():
    before = torch.get_rng_state()
    target = density(regression, *DATA)
    target.value_and_grad(vectors(target))
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_rng_state().equal(before)
    assert not dict(pyro.get_param_store())


def test_a_function_that_writes_into_a_constant_is_traced_whole():
    store = torch.zeros(3, dtype=torch.float64)

    def function(x):
        fresh = store.clone()
        fresh.copy_(x)
        fresh.add_(1)
        return (fresh,)

    run = tracing.build(function, [torch.ones(3, dtype=torch.float64)], "traced", 0)
    for value in (1.0, 5.0, 1.0):
        assert run(torch.full((3,), value, dtype=torch.float64))[0].tolist() == [value + 1] * 3


@pytest.mark.parametrize("subspaced", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "subspace"])
def test_an_autoregression_with_gaps_is_traced_and_has_the_slope_of_its_values(subspaced):
    """Missing frames are a mean field of five sweeps, so that the slope of its values is its gradient nearly, to 1e-3.

    A chain whose parameters are lost, and with them the precision of its missing frames, is lost alone.
    """
    x = 0.3 * torch.randn(2, 20, 3, dtype=torch.float64).cumsum(1)
    x[0, 5:8], x[0, 12, 0], x[1, 0], x[1, 15:] = (torch.nan,) * 4
    basis = torch.linalg.qr(torch.randn(3, 2, dtype=torch.float64)).Q
    subspace = Subspace(torch.zeros(3), basis, torch.ones(2), 0.1) if subspaced else None
    target = density(HMM(2, emission=Autoregressive(3, 2, subspace=subspace)), x)
    v = target.start(3, torch.Generator().manual_seed(3), radius=0.3)
    wanted, slopes = target.compiled(3, mode="eager")(v)
    for found in (target.value_and_grad(v), (traced := target.compiled(3, mode="traced"))(v)):
        torch.testing.assert_close(found[0], wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[1], slopes, rtol=1e-8, atol=1e-8)
    step = 1e-5 * torch.randn(3, target.size, dtype=torch.float64)
    change = traced(v + step)[0] - traced(v - step)[0]
    torch.testing.assert_close(change, 2 * (step * slopes).sum(-1), rtol=1e-3, atol=0.0)
    v[1] = 1e200
    value, gradient = traced(v)
    assert not torch.isfinite(value[1])
    assert value[[0, 2]].equal(traced(v.clone().index_fill(0, torch.tensor([1]), 0.0))[0][[0, 2]])
    assert torch.isfinite(gradient[[0, 2]]).all()


def twice(x):
    pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("m", dist.Normal(0.0, 1.0))


def misfit(x):
    pyro.sample("y", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)).expand(3), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (twice, "every site must have a name of its own, got 'm' twice"),
        (misfit, r"site 'y' must be observed with values of shape \(3,\), got \(2,\)"),
    ],
)
def test_sites_that_cannot_be_meant_are_refused_by_name(program, message):
    with pytest.raises(DataError, match=message):
        density(program, torch.zeros(2))


def test_a_parameter_of_pyros_cannot_be_sampled():
    def program():
        pyro.sample("m", dist.Normal(pyro.param("shift", torch.tensor(1.0)), 1.0))

    with pytest.raises(FitError, match="the program must have no pyro.param, got one at .*; a sampler cannot learn it"):
        density(program).value_and_grad(torch.zeros(1, 1, dtype=torch.float64))


def test_a_pyro_module_made_outside_is_a_program():
    class Shifted(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self):
            pyro.sample("m", dist.Normal(self.shift, 1.0))

    value, gradient = density(Shifted()).value_and_grad(torch.zeros(1, 1, dtype=torch.float64))
    assert gradient.item() == 3.0
    assert value.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - 4.5)
