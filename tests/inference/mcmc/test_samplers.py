"""Parts of the samplers, each against what it must be exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.errors import FitError
from ppgen.inference.ascent import Ascent
from ppgen.inference.mcmc.adaptation import Spread, StepSize, Trajectory, Tuning, pack, unpack, whiten, window_ends
from ppgen.inference.mcmc.chees import Chees, halton
from ppgen.inference.mcmc.hamiltonian import Leapfrog
from ppgen.inference.mcmc.nuts import Nuts
from ppgen.inference.mcmc.sampling import first_tuning, worst_rhat
from ppgen.inference.mcmc.starts import Start, _Paths, pathfinder, uniform
from ppgen.programs.density import density

COVARIANCE = torch.tensor([[4.0, 1.2, 0.0], [1.2, 1.0, 0.1], [0.0, 0.1, 0.25]], dtype=torch.float64)


def gaussian():
    pyro.sample("x", dist.MultivariateNormal(torch.tensor([3.0, -1.0, 0.5]), covariance_matrix=COVARIANCE))


@pytest.fixture(scope="module")
def leapfrog():
    return Leapfrog(density(gaussian), 32, dense=True, mode="traced", calls=0)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def at(leapfrog):
    v = leapfrog.density.start(leapfrog.chains, stream())
    tuning = first_tuning(leapfrog, Start(v))
    tuning.factor = torch.linalg.cholesky(COVARIANCE).contiguous()
    return leapfrog.at(v, tuning.factor), tuning


def test_leapfrog_steps_go_back_the_way_they_came(leapfrog):
    place, tuning = at(leapfrog)
    momentum = torch.randn(place.v.shape, generator=stream(), dtype=torch.float64)
    there, last = leapfrog(place, momentum, 0.3, 7, tuning.factor)
    back, first = leapfrog(there, -last, 0.3, 7, tuning.factor)
    torch.testing.assert_close(back.v, place.v)
    torch.testing.assert_close(-first, momentum)


def test_the_energy_error_of_a_leapfrog_falls_with_the_square_of_the_step(leapfrog):
    place, tuning = at(leapfrog)
    momentum = torch.randn(place.v.shape, generator=stream(), dtype=torch.float64)

    def error(step, steps):
        end, last = leapfrog(place, momentum, step, steps, tuning.factor)
        return (
            ((0.5 * last.square().sum(-1) - end.value) - (0.5 * momentum.square().sum(-1) - place.value)).abs().mean()
        )

    assert float(error(0.1, 10) / error(0.05, 20)) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("sampler", [Chees, Nuts])
def test_the_posterior_stays_what_it_is_under_a_transition(leapfrog, sampler):
    """Chains that start from exact draws still are exact draws; |z| < 4.9 in 9 moments is a false alarm in 1e5."""
    root = torch.linalg.cholesky(COVARIANCE).contiguous()
    mean, exact = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64), []
    _, tuning = at(leapfrog)
    tuning.step.log_step = math.log(0.9)  # rough, so that acceptance matters
    engine, generator = sampler(leapfrog), stream(5)
    for _ in range(60):
        draw = mean + torch.randn(32, 3, generator=generator, dtype=torch.float64) @ root.T
        place, _ = engine.transition(leapfrog.at(draw, root), tuning, generator, adapt=False)
        tuning.iteration += 1
        exact.append(place.v)
    y = torch.linalg.solve_triangular(root, (torch.cat(exact) - mean).T, upper=False).T
    moments = torch.cat([y, y**2 - 1, y[:, :1] * y[:, 1:], y[:, 1:2] * y[:, 2:]], -1)
    assert float((moments.mean(0) / (moments.std(0) / len(y) ** 0.5)).abs().max()) < 4.9


def test_a_tree_stops_when_it_turns(leapfrog):
    """In a standard normal half a turn takes pi, 31 steps of .1; doubling may overshoot once, or stop short."""
    place, tuning = at(leapfrog)
    tuning.step.log_step = math.log(0.1)
    _, noted = Nuts(leapfrog).transition(place, tuning, stream(1), adapt=False)
    assert noted["n_steps"].max() <= 63
    assert 10 < float(noted["n_steps"].double().mean()) < 40
    assert (noted["n_steps"] < 2 ** noted["tree_depth"]).all()
    shallow = Nuts(leapfrog, max_depth=2).transition(place, tuning, stream(1), adapt=False)[1]
    assert (shallow["n_steps"] == 3).all()


def test_pathfinder_finds_a_gaussian_and_its_covariance(leapfrog):
    def gradient(v):
        place = leapfrog.at(v)
        return place.value, place.gradient

    start = pathfinder(leapfrog.density, gradient, leapfrog.chains, stream())
    y = whiten(start.v - torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64), torch.linalg.cholesky(COVARIANCE))
    assert float(y.mean(0).abs().max()) < 5 / 32**0.5
    assert float(y.abs().max()) < 5
    factor = first_tuning(leapfrog, start).factor
    torch.testing.assert_close((factor @ factor.T).diagonal(), COVARIANCE.diagonal(), rtol=0.5, atol=0.0)


def test_draws_of_pathfinder_have_the_density_it_says(leapfrog):
    """Log q is that of a normal whose covariance is the inverse Hessian of L-BFGS, column by column."""

    def gradient(v):
        place = leapfrog.at(v)
        return place.value, place.gradient

    v = leapfrog.density.start(32, stream())
    paths = _Paths(Ascent(v, *gradient(v)))
    for _ in range(4):
        paths.step(gradient)
    inverse = torch.stack([paths.up.times(e.expand(32, 3)) for e in torch.eye(3, dtype=torch.float64)], -1)
    torch.testing.assert_close(inverse, inverse.mT)
    draws, log_q = paths._sample(stream())
    wanted = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), inverse).log_prob(draws)
    torch.testing.assert_close(log_q, wanted)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(inverse), draws[..., None], upper=False)
    assert float(white.square().mean()) == pytest.approx(1, abs=5 * (2 / 480) ** 0.5)


def test_a_start_is_found_where_few_places_are_finite():
    def narrow():
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("walls", torch.where(a.abs().max() > 0.3, -math.inf, 0.0))

    target = density(narrow)
    v = uniform(target, target.value_and_grad, 16, stream())
    assert torch.isfinite(target.log_density(v)).all()


def test_no_finite_start_is_said_with_the_site():
    def broken():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a * math.nan, 1.0), obs=torch.zeros(()))

    target = density(broken)
    with pytest.raises(FitError, match="site 'b'"):
        uniform(target, target.value_and_grad, 4, stream())


def test_dual_averaging_finds_the_step_of_the_wanted_acceptance():
    step = StepSize(0.0)
    for _ in range(400):
        step.learn(math.exp(-step.now), 0.8)
    assert math.exp(-step.final) == pytest.approx(0.8, abs=0.01)


def test_a_metric_is_the_covariance_of_chains_that_mix_and_that_within_modes():
    root = torch.linalg.cholesky(COVARIANCE)
    draws = torch.randn(400, 8, 3, generator=stream(), dtype=torch.float64) @ root.T
    for apart in (0.0, 50.0):
        places = apart * torch.arange(8, dtype=torch.float64)[:, None]
        spread = Spread.empty(draws[0] + places, COVARIANCE)
        for draw in draws:
            spread.learn(draw + places, torch.ones(8, dtype=torch.bool))
        factor = spread.factor(root)
        torch.testing.assert_close(factor @ factor.T, COVARIANCE, rtol=0.1, atol=0.05)
        scales = Spread.empty(draws[0] + places, COVARIANCE[0])
        for draw in draws:
            scales.learn(draw + places, torch.ones(8, dtype=torch.bool))
        torch.testing.assert_close(scales.factor(COVARIANCE[0]) ** 2, COVARIANCE.diagonal(), rtol=0.1, atol=0.0)


def test_a_chain_that_is_lost_teaches_nothing():
    draws = torch.randn(50, 4, 3, generator=stream(), dtype=torch.float64)
    found = []
    for lost in (math.nan, math.inf, 7.0):
        spread = Spread.empty(draws[0], COVARIANCE)
        for draw in draws:
            spread.learn(
                torch.where(torch.arange(4)[:, None] == 2, lost, draw), torch.tensor([True, True, False, True])
            )
        found.append(spread.factor(COVARIANCE))
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


def test_windows_double_and_end_before_the_last_phase():
    ends = sorted(window_ends(1000))
    sizes = [b - a for a, b in zip([75, *ends], ends, strict=False)]
    assert sizes[:-1] == [25 * 2**i for i in range(len(sizes) - 1)]
    assert ends[-1] == 750
    assert window_ends(0) == frozenset()
    assert all(end <= tune for tune in range(40) for end in window_ends(tune))


def test_the_trajectory_follows_the_sign_of_its_gradient():
    up, down = Trajectory(), Trajectory()
    for _ in range(50):
        up.learn(2.0, 100.0)
        down.learn(-3.0, 100.0)
    up.learn(math.nan, 100.0)
    assert up.now > Trajectory().now > down.now
    up.learn(1.0, 0.5)
    assert up.now <= 0.5


def test_state_survives_being_packed():
    tuning = Tuning(COVARIANCE, StepSize(0.3), Spread.empty(COVARIANCE, COVARIANCE), Trajectory(0.2), 7)
    tuning.step.learn(0.4, 0.8)
    again = unpack(Tuning(COVARIANCE, StepSize(0.0), Spread.empty(COVARIANCE, COVARIANCE)), pack(tuning, "t"), "t")
    assert again.step == tuning.step
    assert again.trajectory == tuning.trajectory
    assert again.iteration == 7
    assert again.factor.equal(COVARIANCE)


def test_the_jitter_is_the_halton_sequence():
    assert [halton(i) for i in range(1, 6)] == [0.5, 0.25, 0.75, 0.125, 0.625]


def test_running_rhat_sees_chains_that_disagree():
    same = torch.randn(100, 4, 2, generator=stream(), dtype=torch.float64)
    assert worst_rhat(same) < 1.05
    assert worst_rhat(same + torch.arange(4)[:, None]) > 1.4
    assert math.isnan(worst_rhat(same[:3]))


def test_a_step_that_is_not_accepted_is_halved_before_the_first_iteration():
    """A normal a hundred times narrower than its metric says takes steps a hundred times shorter, within a factor 4."""

    def narrow():
        pyro.sample("x", dist.Normal(torch.zeros(4), 0.01).to_event(1))

    found = []
    for program, width in ((gaussian, 1.0), (narrow, 0.01)):
        rows = Leapfrog(density(program), 32, dense=True, mode="traced", calls=0)
        v = width * torch.randn(32, rows.density.size, generator=stream(), dtype=torch.float64)
        found.append(first_tuning(rows, Start(v), stream()).step.now)
    assert found[0] > 0.1
    assert 0.0025 < found[1] < 0.04


@pytest.mark.parametrize(("deficit", "stays"), [(16.0, False), (1.0, True)])
def test_a_mode_that_holds_next_to_nothing_gets_no_chain_and_one_that_counts_gets_some(deficit, stays):
    """Two modes in one of fourteen dimensions, one lower by ``deficit`` nats: e^-16 of the mass is none."""

    def program():
        x = pyro.sample("x", dist.Normal(torch.zeros(14), 1.0).to_event(1))
        modes = dist.Normal(torch.tensor([-1.0, 1.0]), 0.1).log_prob(x[0]) - deficit * torch.tensor([0.0, 1.0])
        pyro.factor("modes", torch.logsumexp(modes, 0) + 0.5 * x[0] ** 2)

    target = density(program)
    start = pathfinder(target, target.compiled(32, mode="traced"), 32, stream())
    assert bool((start.v[:, 0] > 0).any()) == stays
    assert (start.v[:, 0] < 0).any()
