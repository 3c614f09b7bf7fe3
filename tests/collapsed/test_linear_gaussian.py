"""A linear dynamical system against the dense Gaussian over all its frames, and its draws against its moments."""

import math

import mpmath
import pyro
import pytest
import torch
from dense import condition, log_normal, normal, spd, z_score

from ppgen.collapsed.linear_gaussian import LinearGaussian
from ppgen.errors import DataError
from ppgen.families.regression import Regression

PATTERNS = {
    "nothing": (),
    "one entry": ((3, 0),),
    "one frame": (4,),
    "the first frames": (0, 1),
    "frames and entries": (0, 3, (1, 1), (5, 2)),
    "the end": (4, 5),
    "everything": (0, 1, 2, 3, 4, 5),
}
L, D, T = 2, 3, 6


class Setting:
    """Parameters drawn at random, the distribution, and the dense Gaussian of its frames."""

    def __init__(self, covariance="diagonal", inputs=0, steps=T):
        regressors = L + inputs + 1
        self.dynamics = Regression(L, regressors, "dynamics", walk=True)
        self.emission = Regression(D, regressors, "loading", covariance)
        self.u = normal(1, steps, inputs) if inputs else None
        self.steps = steps
        self.s = {}
        for name, size in (("dynamics", L), ("emission", D)):
            family, full = getattr(self, name).family, getattr(self, name).full
            coefficients, root = 0.5 * normal(size, regressors), torch.linalg.cholesky(spd(size=size))
            if not full:
                coefficients, root = coefficients[:, None], root.diagonal()[:, None, None].clone()
            self.s[name] = family.statistic({family.coefficients: coefficients, family.precision_cholesky: root})

    def distribution(self, s=None, rows=1, u=None):
        s, u = s or self.s, self.u if u is None else u
        return LinearGaussian(self.dynamics, self.emission, s["dynamics"], s["emission"], (rows, self.steps), u)

    def dense(self):
        """Mean (T D,) and covariance of all frames; mean (T L,) and covariance of all states, and what links them."""
        A, P = self.dynamics.mean_and_precision(self.s["dynamics"])
        C, R = self.emission.mean_and_precision(self.s["emission"])
        one = torch.ones(self.steps, 1, dtype=torch.float64)
        known = one if self.u is None else torch.cat([self.u[0], one], 1)
        mean, cov = [torch.zeros(L).double()], torch.zeros(self.steps, L, self.steps, L).double()
        cov[0, :, 0] = torch.eye(L)
        for t in range(1, self.steps):
            mean.append(A[:, :L] @ mean[-1] + A[:, L:] @ known[t])
            cov[t] = torch.einsum("ij,jrk->irk", A[:, :L], cov[t - 1])
            cov[:, :, t] = cov[t].permute(1, 2, 0)
            cov[t, :, t] = A[:, :L] @ cov[t - 1, :, t - 1] @ A[:, :L].T + torch.linalg.inv(P)
        states = torch.stack(mean)
        link = torch.block_diag(*[C[:, :L]] * self.steps)
        cov = cov.reshape(self.steps * L, self.steps * L)
        noise = torch.block_diag(*[torch.linalg.inv(R)] * self.steps)
        frames = (states @ C[:, :L].T + known @ C[:, L:].T).flatten()
        return frames, link @ cov @ link.T + noise, states.flatten(), cov, link


def hide(x, pattern):
    x = x.clone()
    for place in pattern:
        x[(0, *place) if isinstance(place, tuple) else (0, place)] = torch.nan
    return x


def evidence(setting, x):
    frames, covariance, *_ = setting.dense()
    return log_normal(x.flatten(), frames, covariance)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("inputs", [0, 2])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_evidence_and_its_slope_are_those_of_the_dense_gaussian(covariance, inputs, pattern):
    setting = Setting(covariance, inputs)
    x = hide(normal(1, T, D), pattern)
    tracked = {name: {k: v.clone().requires_grad_() for k, v in s.items()} for name, s in setting.s.items()}
    value = setting.distribution(tracked).log_prob(x)[0]
    torch.testing.assert_close(value, evidence(setting, x), rtol=1e-10, atol=1e-10)
    for name, s in setting.s.items():
        for key in s:
            step = torch.randn_like(s[key])
            step = (step + step.mT) / 2 if key in ("precision", "quadratic") and s[key].ndim > 1 else step
            (slope,) = torch.autograd.grad(value, tracked[name][key], retain_graph=True)
            size = 1e-5
            ends = [
                setting.distribution({**setting.s, name: {**s, key: s[key] + sign * size * step}}).log_prob(x)[0]
                for sign in (1, -1)
            ]
            torch.testing.assert_close((slope * step).sum(), (ends[0] - ends[1]) / (2 * size), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_one_step_is_a_factor_model(covariance):
    setting = Setting(covariance, steps=1)
    x = normal(1, 1, D)
    torch.testing.assert_close(setting.distribution().log_prob(x)[0], evidence(setting, x), rtol=1e-10, atol=1e-10)


def test_sequences_of_a_batch_do_not_touch_each_other():
    setting = Setting("full")
    rows = torch.cat([hide(normal(1, T, D), pattern) for pattern in PATTERNS.values()])
    alone = torch.cat([setting.distribution().log_prob(row[None]) for row in rows])
    torch.testing.assert_close(setting.distribution(rows=len(rows)).log_prob(rows), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_states_have_the_means_of_the_dense_gaussian(covariance):
    setting = Setting(covariance, inputs=1)
    x = hide(normal(1, T, D), PATTERNS["frames and entries"])
    frames, total, states, covariance_of_states, link = setting.dense()
    seen = ~x.flatten().isnan()
    gain = covariance_of_states @ link.T[:, seen] @ torch.linalg.inv(total[seen][:, seen])
    wanted = states + gain @ (x.flatten()[seen] - frames[seen])
    found = setting.distribution().latents(x).marginals["h"]
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_imputed_entries_are_drawn_from_the_conditional_gaussian(covariance):
    """4,000 draws; with 9 means and 9 variances within 4.5 standard errors, a false alarm has probability 1e-4."""
    setting, count = Setting(covariance, inputs=1), 4000
    x = hide(normal(1, T, D), PATTERNS["frames and entries"])
    frames, total, *_ = setting.dense()
    hidden = x.flatten().isnan()
    mean, spread = condition(x.flatten(), frames, total)
    drawn = setting.distribution(rows=count, u=setting.u.expand(count, -1, -1)).impute(x.expand(count, -1, -1))
    assert drawn[:, ~x[0].isnan()].equal(x.expand(count, -1, -1)[:, ~x[0].isnan()])
    drawn = drawn.flatten(1)[:, hidden]
    assert z_score(drawn, mean) < 4.5
    assert z_score((drawn - mean) ** 2, spread.diagonal()) < 4.5


def test_replicated_and_forecast_frames_have_the_moments_of_the_dense_gaussian():
    """4,000 draws, 27 means within 4.5 standard errors: a false alarm has probability 2e-4."""
    setting, count = Setting("diagonal", inputs=1), 4000
    frames, total, *_ = setting.dense()
    u = setting.u.expand(count, -1, -1)
    drawn = setting.distribution(rows=count, u=u).sample()
    assert z_score(drawn.flatten(1), frames) < 4.5
    x = normal(1, T - 3, D)
    longer = torch.cat([x, torch.full((1, 3, D), torch.nan).double()], 1)
    mean, _ = condition(longer.flatten(), frames, total)
    ahead = setting.distribution(rows=count, u=u).forecast(x.expand(count, -1, -1), 3)
    assert z_score(ahead.flatten(1), mean) < 4.5


def test_a_forecast_needs_the_inputs_of_the_steps_ahead():
    with pytest.raises(DataError, match="a row for each step seen and ahead, 8, got 6"):
        Setting(inputs=1).distribution().forecast(normal(1, T, D), 2)


def test_another_batch_than_that_of_the_sequences_is_refused():
    with pytest.raises(DataError, match="one batch dimension"), pyro.plate("more", 2):
        pyro.sample("x", Setting().distribution())


def test_a_trailing_gap_is_a_shorter_sequence():
    setting = Setting("full")
    x = hide(normal(1, T, D), PATTERNS["the end"])
    short = setting.distribution().log_prob(x[:, :4])
    torch.testing.assert_close(setting.distribution().log_prob(x), short, rtol=1e-12, atol=1e-12)


def test_the_densities_of_the_sampler_are_those_of_the_model():
    """Under vmap and grad, as samplers run it."""
    setting = Setting("full", inputs=1)
    x = hide(normal(1, T, D), PATTERNS["frames and entries"])
    many = 0.5 * normal(3, L, L + 2)
    root = torch.linalg.cholesky(spd(size=L))

    def density(coefficients):
        theta = {"dynamics": coefficients, "dynamics_precision_cholesky": root}
        return setting.distribution({**setting.s, "dynamics": setting.dynamics.family.statistic(theta)}).log_prob(x)[0]

    value = torch.func.vmap(density)(many)
    slope = torch.func.vmap(torch.func.grad(density))(many)
    for i, coefficients in enumerate(many):
        tracked = coefficients.clone().requires_grad_()
        one = density(tracked)
        torch.testing.assert_close(value[i], one.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(slope[i], torch.autograd.grad(one, tracked)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_densities_of_steps_are_differences_of_the_dense_evidence(covariance, pattern):
    setting = Setting(covariance, inputs=1)
    x = hide(normal(1, T, D), pattern)
    found = setting.distribution().log_prob_steps(x)[0]
    before = 0.0
    for t in range(T):
        now = evidence(setting, hide(x, tuple(range(t + 1, T))))
        torch.testing.assert_close(found[t], now - before, rtol=1e-9, atol=1e-9)
        before = now


@pytest.mark.parametrize(("growth", "steps", "within"), [(1.1, 120, 1e-8), (1.3, 60, 1e-6)])
def test_a_state_that_grows_unseen_costs_few_digits(growth, steps, within):
    """A Kalman filter in eighty digits says what the evidence is; the state that grows is not seen after ten steps."""
    setting = Setting()
    A, C = (
        torch.diag(torch.tensor([growth, 0.5])).double(),
        torch.tensor([[1.0, 0.4], [0.0, 1.0], [0.0, -0.7]]).double(),
    )
    one = {"dynamics": torch.cat([A, torch.full((L, 1), 0.1).double()], 1)}
    one["dynamics_precision_cholesky"] = 3.0 * torch.eye(L).double()
    two = {
        "loading": torch.nn.functional.pad(C, (0, 1))[:, None],
        "loading_precision_cholesky": torch.full((D, 1, 1), 2.0).double(),
    }
    s = {"dynamics": setting.dynamics.family.statistic(one), "emission": setting.emission.family.statistic(two)}
    x = normal(1, steps, D)
    x[:, 10:, 0] = torch.nan
    fn = LinearGaussian(setting.dynamics, setting.emission, s["dynamics"], s["emission"], (1, steps))
    wanted = filtered(x[0], one["dynamics"], C, 1 / 9, 1 / 4)
    assert abs(float(fn.log_prob(x)[0]) - wanted) < within
    assert abs(float(fn.log_prob_steps(x).sum()) - wanted) < 1e-9
    assert 0.01 < float(fn.latents(x).sample()["h_draw"].abs().max()) / growth ** (steps - 10) < 100


def filtered(x, A, C, q, r):
    """Log evidence with the noise variances q and r, by scalar updates in eighty digits."""
    with mpmath.workdps(80):
        F, b, q, r = mpmath.matrix(A[:, :L].tolist()), mpmath.matrix(A[:, L:].tolist()), mpmath.mpf(q), mpmath.mpf(r)
        m, P, value = mpmath.zeros(L, 1), mpmath.eye(L), mpmath.mpf(0)
        for t, frame in enumerate(x.tolist()):
            if t:
                m, P = F * m + b, F * P * F.T + q * mpmath.eye(L)
            for one, row in zip(frame, C.tolist(), strict=True):
                if math.isnan(one):
                    continue
                c = mpmath.matrix([row])
                apart, spread = one - (c * m)[0], (c * P * c.T)[0] + r
                value -= (mpmath.log(2 * mpmath.pi * spread) + apart**2 / spread) / 2
                m, P = m + P * c.T * (apart / spread), P - P * c.T * c * P / spread
        return float(value)
