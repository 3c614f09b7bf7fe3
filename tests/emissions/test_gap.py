"""What is unknown of the frames of an autoregression, as a block that is held."""

import pytest
import torch
from dense import autoregression, log_normal, log_paths, normal, paths, spd, z_score

from ppgen.collapsed import HiddenMarkov
from ppgen.emissions import Autoregressive

D, T, SCALE = 2, 6, 1.5


class World:
    """A hidden Markov model with an autoregression, and data with gaps."""

    def __init__(self, states, lags):
        self.emission = Autoregressive(D, lags, initial_scale=SCALE)
        root = torch.linalg.cholesky(torch.linalg.inv(0.3 * spd(states, size=D)))
        coefficients = 0.4 / lags * normal(states, D, lags * D + 1)
        self.theta = {"coefficients": coefficients, "precision_cholesky": root}
        self.s = self.emission.family.statistic(self.theta)
        self.initial, self.transition = normal(states).log_softmax(-1), normal(states, states).log_softmax(-1)
        self.x = self.emission.sample(self.s, torch.randint(states, (3, T)))
        self.x[0, 2:4] = self.x[1, 0, 1] = self.x[1, 4] = self.x[2, 0] = self.x[2, 5:] = torch.nan
        self.hmm = self.fresh()

    def fresh(self):
        return HiddenMarkov(self.initial, self.transition, self.emission, self.s)

    def block(self):
        return self.hmm.blocks(self.x)["frames"]

    def any_posterior(self):
        """That of states that are anything."""
        weights = torch.rand(*self.x.shape[:2], len(self.initial), dtype=torch.float64)
        return self.emission.given(self.block(), self.s, weights / weights.sum(-1, keepdim=True))

    def evidence(self, n):
        """Log of the sum over every path of one sequence."""
        innovation = torch.linalg.inv(self.theta["precision_cholesky"] @ self.theta["precision_cholesky"].mT)
        x = self.x[n, : 5 if n == 2 else T]
        each = []
        for path in paths(len(x), len(self.initial)):
            mean, covariance = autoregression(path, self.theta["coefficients"], innovation, SCALE)
            each.append(log_normal(x.flatten(), mean.flatten(), covariance))
        return (log_paths(self.initial, self.transition, len(x)) + torch.stack(each)).logsumexp(-1)


@pytest.fixture(params=[1, 2, 3], ids="{} lags".format)
def lags(request):
    return request.param


def test_the_slope_of_the_log_normaliser_is_the_expected_statistics(lags):
    world = World(3, lags)
    block, eta = world.block(), world.any_posterior()
    direction = {"windows": 0.01 * torch.randn_like(eta["windows"])}
    up, down = ({"windows": eta["windows"] + step * direction["windows"]} for step in (1e-4, -1e-4))
    found = (block.solved(up)[1] - block.solved(down)[1]) / 2e-4
    torch.testing.assert_close(found, block.inner(direction, block.solved(eta)[0]), rtol=1e-6, atol=1e-8)


def test_expected_statistics_are_those_of_draws(lags):
    """At most 300 statistics of 4,000 draws: z below 5.5, false-alarm rate below 2e-5."""
    world = World(2, lags)
    block, eta = world.block(), world.any_posterior()
    drawn = torch.stack([block.statistic(block.sample(eta))["windows"] for _ in range(4000)])
    wanted = block.solved(eta)[0]["windows"]
    moves = drawn.std(0) > 1e-9
    assert drawn[:, ~moves].sub(wanted[~moves]).abs().max() < 1e-12
    assert z_score(drawn[:, moves], wanted[moves]) < 5.5


def test_a_settled_block_is_the_slope_of_the_energy_at_its_statistics(lags):
    world = World(3, lags)
    block, local = world.block(), world.hmm.settle(world.x, sweeps=300)
    m = block.solved(local["frames"])[0]
    slope = torch.func.grad(lambda own: world.hmm.energy(world.x, {"frames": own}).sum())(m)
    torch.testing.assert_close(slope["windows"], dict(local["frames"])["windows"], rtol=1e-7, atol=1e-7)


def test_the_evidence_is_energy_and_entropy_and_below_the_sum_over_every_path_whatever_is_held(lags):
    world = World(2, lags)
    wanted = torch.stack([world.evidence(n) for n in range(3)])
    block, settled = world.block(), world.hmm.settle(world.x, sweeps=50)
    bound = world.hmm.evidence(world.x, settled)
    m, value = block.solved(settled["frames"])
    whole = world.hmm.energy(world.x, {"frames": m}) + value - block.inner(settled["frames"], m)
    torch.testing.assert_close(bound, whole, rtol=1e-12, atol=1e-12)
    assert (bound < wanted + 1e-10).all()
    for _ in range(20):
        other = world.hmm.evidence(world.x, {"frames": world.any_posterior()})
        assert (other < wanted + 1e-10).all()
    assert (other < bound).all()


def test_with_one_state_one_update_from_anywhere_is_exact(lags):
    world = World(1, lags)
    wanted = torch.stack([world.evidence(n) for n in range(3)])
    local = world.hmm.settle(world.x, {"frames": world.block().start(3)}, sweeps=1)
    torch.testing.assert_close(world.hmm.evidence(world.x, local), wanted, rtol=1e-9, atol=1e-9)


def test_gibbs_sweeps_of_the_contract_visit_states_as_often_as_the_listed_paths():
    """Means of 64 sequences alike over 180 sweeps: t below 5.5 for 6 of them, false-alarm rate below 1e-5."""
    world = World(2, 1)
    x = world.x[:1].expand(64, -1, -1).clone()
    values = {"frames": world.hmm.blocks(x)["frames"].sample(world.hmm.start(x)["frames"])}
    visits = torch.zeros(64, T, dtype=torch.float64)
    for number in range(200):
        values = world.hmm.sweep(x, values)
        visits += values["z"] if number >= 20 else 0
    wanted = world.hmm.latents(x[:1]).marginals["z"][0, :, 1]
    open_steps = (wanted - 0.5).abs() < 0.48
    assert open_steps.any()
    assert z_score(visits[:, open_steps] / 180, wanted[open_steps]) < 5.5


def test_only_what_lies_near_a_gap_is_built(lags):
    emission = Autoregressive(D, lags)
    x = normal(2, 5000, D)
    x[1, 3000:3005] = torch.nan
    latent = emission.frames(x).latent
    assert latent.rows.sort().values.equal(torch.arange(8000, 8005 + lags))
    assert latent.gaps.kept.shape[1] <= 5 // lags + 2
    assert emission.frames(x[:1]).latent is None


def test_data_that_changed_in_place_are_read_again():
    world = World(2, 2)
    before = world.hmm.log_prob(world.x)
    world.x[1, 2] = torch.nan
    again = world.hmm.log_prob(world.x)
    assert again.equal(world.fresh().log_prob(world.x))
    assert not again.equal(before)
