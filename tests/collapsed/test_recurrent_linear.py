"""A recurrent switching linear dynamical system against sums over states and quadrature of a continuous number."""

import math

import pytest
import torch
from dense import normal, spd

from ppgen.collapsed.estimated import estimates
from ppgen.collapsed.recurrent_linear import RecurrentLinear
from ppgen.collapsed.sticks import Sticks, log_two_cosh
from ppgen.families.regression import Regression

D, T, K = 2, 4, 3
GAPS = {"nothing": (), "entries": ((1, 0), (2, 1)), "frames": (0, 2), "the end": (3,)}
GRID = torch.linspace(-9, 9, 721, dtype=torch.float64)


class Setting:
    """Parameters drawn at random for a continuous state of ``latent`` numbers, and the distribution."""

    def __init__(self, covariance="diagonal", inputs=0, switching="dynamics", latent=1):
        regressors, own = latent + inputs + 1, K if switching == "both" else None
        self.u, self.latent = normal(1, T, inputs) if inputs else None, latent
        self.dynamics = Regression(latent, regressors, "dynamics", walk=True, states=K)
        self.emission = Regression(D, regressors, "loading", covariance, states=own)
        self.initial, w = normal(K).log_softmax(-1), 1.5 * normal(K - 1, K + latent)
        self.weights = {"linear": w, "quadratic": -w[:, :, None] * w[:, None, :] / 2}
        self.s = []
        for part, size, batch in ((self.dynamics, latent, (K,)), (self.emission, D, () if own is None else (K,))):
            coefficients, root = 0.5 * normal(*batch, size, regressors), torch.linalg.cholesky(spd(*batch, size=size))
            if not part.full:
                coefficients = coefficients[..., None, :]
                root = root.diagonal(dim1=-2, dim2=-1)[..., None, None].clone()
            family = part.family
            self.s.append(family.statistic({family.coefficients: coefficients, family.precision_cholesky: root}))

    def distribution(self, rows=1, steps=T):
        u = None if self.u is None else self.u.expand(rows, -1, -1)
        return RecurrentLinear(self.initial, self.weights, self.dynamics, self.emission, *self.s, (rows, steps), u)

    def on_grid(self, x):
        """Log evidence of one row, probabilities of its discrete states and means of the continuous number."""
        (A, P), (C, R) = self.dynamics.mean_and_precision(self.s[0]), self.emission.mean_and_precision(self.s[1])
        C, R = (value.expand(K, *value.shape[-2:]) for value in (C, R))
        steps = int((~x.isnan().all(-1)).nonzero()[-1]) + 1
        odds = self.weights["linear"][:, :K].T[:, None] + GRID[:, None] * self.weights["linear"][:, K]  # (K, G, S)
        took = odds.sigmoid() * torch.nn.functional.pad((-odds).sigmoid().cumprod(-1)[..., :-1], (1, 0), value=1.0)
        moves = torch.cat([took, (-odds).sigmoid().prod(-1, keepdim=True)], -1)  # (K, G, K)
        step = float(GRID[1] - GRID[0])
        seen, across = torch.ones(steps, K, len(GRID)).double(), []
        for t in range(steps):
            known = torch.cat([self.u[0, t] if self.u is not None else GRID[:0], torch.ones(1).double()])
            ok = ~x[t].isnan()
            for k in range(K):
                mean = GRID[:, None] * C[k][:, 0] + C[k][:, 1:] @ known
                noise = torch.linalg.inv(R[k])[ok][:, ok]
                if ok.any():
                    frame = torch.distributions.MultivariateNormal(mean[:, ok], noise)
                    seen[t, k] = frame.log_prob(x[t, ok]).exp()
            moved = GRID[:, None] * A[:, 0, 0] + A[:, 0, 1:] @ known  # (G, K)
            normal_move = torch.distributions.Normal(moved.T[:, :, None], P[:, 0, 0].rsqrt()[:, None, None])
            across.append(normal_move.log_prob(GRID).exp() * step)  # (K, G from, G to)
        start = torch.distributions.Normal(0.0, 1.0).log_prob(GRID).exp() * step
        forward = [self.initial.exp()[:, None] * start * seen[0]]
        for t in range(1, steps):
            arrived = torch.einsum("jg,jgk->kg", forward[-1], moves)
            forward.append(torch.einsum("kg,kgf->kf", arrived, across[t]) * seen[t])
        backward = [torch.ones(K, len(GRID)).double()]
        for t in range(steps - 1, 0, -1):
            ahead = torch.einsum("kgf,kf->kg", across[t], seen[t] * backward[0])
            backward.insert(0, torch.einsum("jgk,kg->jg", moves, ahead))
        both = torch.stack([a * b for a, b in zip(forward, backward, strict=True)])
        total = both[0].sum()
        return total.log(), both.sum(-1) / total, (both.sum(1) @ GRID) / total


def hidden(x, gaps):
    x = x.clone()
    for gap in gaps:
        x[(0, *gap) if isinstance(gap, tuple) else (0, gap)] = torch.nan
    return x


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize(
    ("covariance", "inputs", "switching"), [("diagonal", 0, "dynamics"), ("full", 2, "dynamics"), ("full", 0, "both")]
)
def test_particles_give_the_evidence_and_the_posterior_of_quadrature(covariance, inputs, switching, gaps):
    """The mean of 400 estimates lies within 4.5 standard errors: by chance beyond in one of 100,000 tests."""
    setting = Setting(covariance, inputs, switching)
    x = hidden(normal(1, T, D), GAPS[gaps])
    exact, probabilities, means = setting.on_grid(x[0])
    many = setting.distribution(400)
    with estimates():
        ratio = (many.log_prob(x.expand(400, -1, -1)) - exact).exp()
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 20 + 1e-6
    found = many._smoothed(x.expand(400, -1, -1), 100, 16)
    for each, truth in ((found.marginals, probabilities), (found.mean, means[:, None])):
        own = each[:, : len(truth)]
        assert ((own.mean(0) - truth).abs() < 4.5 * own.std(0) / 20 + 1e-3).all()
    alone, beside = (setting.distribution(n).latents(x.expand(n, -1, -1)).marginals for n in (1, 2))
    assert all(alone[name][0].nan_to_num().equal(beside[name][1].nan_to_num()) for name in alone)
    assert setting.distribution().log_prob(x)[0] <= exact + 1e-9


def test_each_row_is_followed_by_what_is_seen_of_it():
    """Rows with gaps of their own, together and alone."""
    setting, x = Setting("full"), normal(3, T, D)
    x[1, 1, 0], x[1, 2], x[2, 3] = torch.nan, torch.nan, torch.nan
    together = setting.distribution(3).latents(x).marginals
    for n in range(1, 3):
        alone = setting.distribution(1).latents(x[n : n + 1]).marginals
        for name, value in alone.items():
            torch.testing.assert_close(together[name][n], value[0], rtol=0, atol=1e-9, equal_nan=True)


def test_a_draw_comes_from_the_posterior():
    """Means of 2,000 draws lie within 5 standard errors, of 24 numbers: by chance beyond in one of 70,000 tests."""
    setting = Setting()
    x = normal(1, T, D)
    _, probabilities, means = setting.on_grid(x[0])
    drawn = setting.distribution(2000).draw(x.expand(2000, -1, -1))
    share = torch.nn.functional.one_hot(drawn["z"], K).double()
    for each, truth in ((share, probabilities), (drawn["h"], means[:, None])):
        assert ((each.mean(0) - truth).abs() < 5 * each.std(0) / 2000**0.5 + 2e-3).all()


def test_sweeps_leave_the_posterior_as_it_is():
    """After 20 sweeps from a distant state, as above."""
    torch.manual_seed(1)
    setting = Setting()
    x = normal(1, T, D)
    _, probabilities, means = setting.on_grid(x[0])
    many, rows = setting.distribution(2000), x.expand(2000, -1, -1)
    values = {"h": normal(2000, T, 1)}
    for _ in range(20):
        values = many.sweep(rows, values)
    share = torch.nn.functional.one_hot(values["z"], K).double()
    for each, truth in ((share, probabilities), (values["h"], means[:, None])):
        assert ((each.mean(0) - truth).abs() < 5 * each.std(0) / 2000**0.5 + 2e-3).all()


@pytest.mark.parametrize("switching", ["dynamics", "both"])
def test_more_updates_never_lower_the_bound(switching):
    setting = Setting("full", 0, switching, latent=2)
    x, distribution = normal(5, T, D), setting.distribution(5)
    local, bounds = distribution.start(x), []
    for _ in range(8):
        bounds.append(distribution.evidence(x, local))
        local = distribution.settle(x, local, 1)
    assert (torch.stack(bounds).diff(dim=0) > -1e-9).all()


def test_moves_of_known_states_are_probabilities_and_their_expectations_are_bounded():
    setting = Setting(latent=2)
    sticks, h = Sticks(setting.weights), normal(5, T, 2)
    moves = sticks.log_moves({"mean": h, "outer": h[..., :, None] * h[..., None, :]})
    torch.testing.assert_close(moves.exp().sum(-1), torch.ones(5, T - 1, K).double())
    each = [sticks.log_from(torch.full((5,), k), h[:, 1]) for k in range(K)]
    torch.testing.assert_close(moves[:, 1], torch.stack(each, 1))
    spread = h.unsqueeze(0) + 0.8 * normal(20000, 5, T, 2)
    outer = (spread[..., :, None] * spread[..., None, :]).mean(0)
    bound = sticks.log_moves({"mean": spread.mean(0), "outer": outer})
    drawn = torch.stack(
        [sticks.log_moves({"mean": own, "outer": own[..., :, None] * own[..., None, :]}) for own in spread[:2000]]
    )
    assert (bound < drawn.mean(0) + 5 * drawn.std(0) / 2000**0.5).all()


def test_the_logarithm_of_two_cosh_has_a_slope_at_zero():
    square = torch.tensor([0.0, 1e-9, 0.9e-6, 1.1e-6, 4.0, 1e6], dtype=torch.float64, requires_grad=True)
    value = log_two_cosh(square)
    (gradient,) = torch.autograd.grad(value.sum(), square)
    root = square.detach().sqrt()
    torch.testing.assert_close(value.detach(), root / 2 + torch.log1p(torch.exp(-root)))
    expected = torch.where(root < 1e-4, 1 / 8, torch.tanh(root / 2) / (4 * root.clamp_min(1e-9)))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)


def test_an_empty_sequence_says_nothing():
    setting = Setting()
    x = torch.full((1, T, D), torch.nan, dtype=torch.float64)
    with estimates():
        assert setting.distribution().log_prob(x)[0] == 0
    assert abs(setting.distribution().log_prob(x)[0]) < 1e-10


def test_replicated_data_follow_the_states():
    """Shares of discrete states in the third step, of 4,000 draws, within 4.5 standard errors of quadrature."""
    setting = Setting()
    many = setting.distribution(4000)
    fresh = torch.ones(4000, dtype=torch.bool)
    _, z = many._onwards(
        torch.zeros(4000, 1).double(), torch.zeros(4000).long(), torch.ones(4000, 3, 1).double(), fresh
    )
    x = torch.full((3, D), torch.nan, dtype=torch.float64)
    x[2, 0] = 0.0
    wide = {name: value.clone() for name, value in setting.s[1].items()}
    wide["quadratic"], wide["linear"] = 0 * wide["quadratic"], 0 * wide["linear"]
    setting.s[1] = wide
    _, probabilities, _ = setting.on_grid(x)
    share = torch.nn.functional.one_hot(z, K).double().mean(0)
    error = (probabilities * (1 - probabilities) / 4000).sqrt()
    assert ((share - probabilities).abs() < 4.5 * error + 1e-3).all()
    assert math.isclose(float(share.sum()), 3.0)
