"""A switching linear dynamical system against every path of its states, each a dense Gaussian."""

import itertools
import math

import pytest
import torch
from dense import condition, log_normal, normal, spd

from ppgen.collapsed.estimated import estimates
from ppgen.collapsed.switching_linear import SwitchingLinear
from ppgen.errors import DataError
from ppgen.families.regression import Regression

L, D, T, K = 2, 3, 4, 3
GAPS = {"nothing": (), "entries": ((1, 0), (2, 2)), "frames": (0, 2), "the end": (3,), "everything": (0, 1, 2, 3)}


class Setting:
    """Parameters drawn at random, the distribution, and its paths."""

    def __init__(self, covariance="diagonal", inputs=0, switching="dynamics", states=K):
        regressors = L + inputs + 1
        self.states, self.u = states, normal(1, T, inputs) if inputs else None
        self.dynamics = Regression(L, regressors, "dynamics", walk=True, states=states)
        own = states if switching == "both" else None
        self.emission = Regression(D, regressors, "loading", covariance, states=own)
        self.initial, self.transition = normal(states).log_softmax(-1), normal(states, states).log_softmax(-1)
        self.s = {}
        for name, size, batch in (("dynamics", L, (states,)), ("emission", D, () if own is None else (states,))):
            family, full = getattr(self, name).family, getattr(self, name).full
            coefficients, root = 0.5 * normal(*batch, size, regressors), torch.linalg.cholesky(spd(*batch, size=size))
            if not full:
                coefficients = coefficients[..., None, :]
                root = root.diagonal(dim1=-2, dim2=-1)[..., None, None].clone()
            self.s[name] = family.statistic({family.coefficients: coefficients, family.precision_cholesky: root})

    def distribution(self, rows=1, steps=T, u=None):
        return SwitchingLinear(
            self.initial, self.transition, self.dynamics, self.emission, self.s["dynamics"], self.s["emission"],
            (rows, steps), self.u if u is None else u,
        )  # fmt: skip

    def paths(self, steps=T):
        """Each path: its log probability, and mean and covariance of all frames."""
        (A, P), (C, R) = (getattr(self, name).mean_and_precision(self.s[name]) for name in ("dynamics", "emission"))
        C, R = (value.expand(self.states, *value.shape[-2:]) for value in (C, R))
        one = torch.ones(steps, 1, dtype=torch.float64)
        known = one if self.u is None else torch.cat([self.u[0, :steps], one], 1)
        for z in itertools.product(range(self.states), repeat=steps):
            mean, cov = [torch.zeros(L).double()], torch.zeros(steps, L, steps, L).double()
            cov[0, :, 0] = torch.eye(L)
            for t in range(1, steps):
                F = A[z[t]][:, :L]
                mean.append(F @ mean[-1] + A[z[t]][:, L:] @ known[t])
                cov[t] = torch.einsum("ij,jrk->irk", F, cov[t - 1])
                cov[:, :, t] = cov[t].permute(1, 2, 0)
                cov[t, :, t] = F @ cov[t - 1, :, t - 1] @ F.T + torch.linalg.inv(P[z[t]])
            view = torch.block_diag(*[C[k][:, :L] for k in z])
            noise = torch.block_diag(*[torch.linalg.inv(R[k]) for k in z])
            level = torch.stack([C[k] @ torch.cat([mean[t], known[t]]) for t, k in enumerate(z)])
            moves = sum(self.transition[i, j] for i, j in itertools.pairwise(z))
            log_prior = self.initial[z[0]] + moves
            yield z, log_prior, level.reshape(-1), view @ cov.reshape(steps * L, -1) @ view.mT + noise


def hidden(x, gaps):
    x = x.clone()
    for gap in gaps:
        x[(0, *gap) if isinstance(gap, tuple) else (0, gap)] = torch.nan
    return x


def evidence(setting, x):
    """Sum over every path of the steps that the row has."""
    steps = int((~x[0].isnan().all(-1)).nonzero()[-1]) + 1 if not x.isnan().all() else 1
    flat = x[0, :steps].reshape(-1)
    return torch.stack([p + log_normal(flat, mean, cov) for _, p, mean, cov in setting.paths(steps)]).logsumexp(0)


@pytest.mark.parametrize("gaps", GAPS)
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize(("inputs", "switching"), [(0, "dynamics"), (2, "dynamics"), (0, "both"), (2, "both")])
def test_followed_paths_give_the_evidence_and_the_bound_stays_below(covariance, gaps, inputs, switching):
    setting = Setting(covariance, inputs, switching)
    distribution, x = setting.distribution(), hidden(normal(1, T, D), GAPS[gaps])
    with estimates():
        followed = distribution.log_prob(x)
    exact = 0.0 if gaps == "everything" else evidence(setting, x)
    assert abs(followed[0] - exact) < 1e-10
    assert distribution.log_prob(x)[0] <= exact + 1e-10


@pytest.mark.parametrize("switching", ["dynamics", "both"])
@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("inputs", [0, 2])
def test_the_bound_is_below_the_evidence_and_equals_it_with_one_state(switching, covariance, inputs):
    for states in (1, K):
        setting = Setting(covariance, inputs, switching, states)
        x = hidden(normal(1, T, D), GAPS["entries"])
        bound, exact = setting.distribution().log_prob(x)[0], evidence(setting, x)
        assert bound <= exact + 1e-10
        assert states > 1 or abs(bound - exact) < 1e-10
        assert setting.distribution().exact(x) == (states == 1)


@pytest.mark.parametrize("switching", ["dynamics", "both"])
def test_more_updates_never_lower_the_bound(switching):
    setting = Setting("full", 0, switching)
    x, distribution = normal(5, 12, D), setting.distribution(5, 12)
    local, bounds = distribution.start(x), []
    for _ in range(8):
        bounds.append(distribution.evidence(x, local))
        local = distribution.settle(x, local, 1)
    assert (torch.stack(bounds).diff(dim=0) > -1e-9).all()


@pytest.mark.parametrize(("inputs", "switching"), [(0, "dynamics"), (2, "both")])
def test_probabilities_of_states_are_those_of_all_paths(inputs, switching):
    """Of three steps: particles enough for every path."""
    setting = Setting("diagonal", inputs, switching)
    x = hidden(normal(1, 3, D), (0, (2, 1)))
    found = setting.distribution(1, 3).latents(x).marginals
    weights, z = zip(*((p + log_normal(x[0].reshape(-1), m, c), z) for z, p, m, c in setting.paths(3)), strict=True)
    weights = torch.stack(weights).softmax(0)
    exact = (torch.nn.functional.one_hot(torch.tensor(z), K) * weights[:, None, None]).sum(0)
    torch.testing.assert_close(found["z"][0], exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("switching", ["dynamics", "both"])
def test_missing_entries_are_drawn_from_the_mixture_over_paths(switching):
    """Mean of 4,000 draws within 5 of its standard errors, entry by entry: a false alarm in some 3 x 10^5 runs."""
    torch.manual_seed(1)
    setting, rows = Setting("diagonal", 0, switching), 4000
    x = hidden(normal(1, T, D), ((1, 0), (2, 2), (2, 0)))
    parts = []
    for _, p, mean, cov in setting.paths():
        m, c = condition(x[0].reshape(-1), mean, cov)
        parts.append((p + log_normal(x[0].reshape(-1), mean, cov), m, c.diagonal()))
    weights, means, variances = (torch.stack(values) for values in zip(*parts, strict=True))
    weights = weights.softmax(0)[:, None]
    mean = (weights * means).sum(0)
    spread = (weights * (variances + means**2)).sum(0) - mean**2
    drawn = setting.distribution(rows).impute(x.expand(rows, -1, -1))
    filled = drawn[:, x[0].isnan()]
    assert ((filled.mean(0) - mean).abs() < 5 * (spread / rows).sqrt()).all()
    assert ((filled.var(0) / spread).log().abs() < 0.25).all()


def test_replicated_data_and_forecasts_have_the_moments_of_the_paths():
    """Means of 4,000 draws within 5 of their standard errors."""
    torch.manual_seed(2)
    setting, rows = Setting("full", 1), 4000
    weights, means, covs = zip(*((p, m, c) for _, p, m, c in setting.paths()), strict=True)
    weights, means = torch.stack(weights).exp()[:, None], torch.stack(means)
    mean = (weights * means).sum(0)
    spread = (weights * (torch.stack([c.diagonal() for c in covs]) + means**2)).sum(0) - mean**2
    u = setting.u.expand(rows, -1, -1)
    drawn = setting.distribution(rows, u=u).sample().flatten(1)
    assert ((drawn.mean(0) - mean).abs() < 5 * (spread / rows).sqrt()).all()
    nothing = torch.full((rows, 2, D), torch.nan).double()
    ahead = setting.distribution(rows, 2, u=u).forecast(nothing, 2).flatten(1)
    assert ((ahead.mean(0) - mean[: 2 * D]).abs() < 5 * (spread[: 2 * D] / rows).sqrt()).all()


def test_trailing_nan_is_a_shorter_sequence():
    setting, x = Setting("full", 0, "both"), normal(2, T, D)
    longer = torch.cat([x, torch.full((2, 3, D), torch.nan)], 1).double()
    one, two = setting.distribution(2).log_prob(x), setting.distribution(2, T + 3).log_prob(longer)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_inputs_of_a_forecast_reach_to_its_end():
    setting = Setting(inputs=1)
    with pytest.raises(DataError, match=rf"a row for each step seen and ahead, {T + 2}, got {T}"):
        setting.distribution().forecast(normal(1, T, D), 2)


def test_paths_are_unbiased_where_they_are_too_many_to_follow():
    """Against a bootstrap filter over z that sums h out with 20,000 particles, both within a tenth of a nat."""
    torch.manual_seed(3)
    setting = Setting("full")
    x = setting.distribution(1, 40).sample()
    with estimates():
        found = torch.stack([setting.distribution(1, 40).log_prob(x)[0] for _ in range(8)]).logsumexp(0) - math.log(8)
    assert abs(found - _filtered(setting, x[0], 20_000)) < 0.1


def _filtered(setting, x, n):
    (A, P), (C, R) = (getattr(setting, name).mean_and_precision(setting.s[name]) for name in ("dynamics", "emission"))
    Q, R = torch.linalg.inv(P), torch.linalg.inv(R)
    z = torch.multinomial(setting.initial.exp(), n, replacement=True)
    mean, cov, total = torch.zeros(n, L).double(), torch.eye(L).double().expand(n, L, L), 0.0
    for t, frame in enumerate(x):
        if t:
            z = torch.multinomial(setting.transition.exp()[z], 1)[:, 0]
            F = A[z][:, :, :L]
            mean, cov = (F @ mean[..., None])[..., 0] + A[z][:, :, L], F @ cov @ F.mT + Q[z]
        S = C[:, :L] @ cov @ C[:, :L].mT + R
        apart = frame - mean @ C[:, :L].T - C[:, L]
        score = torch.distributions.MultivariateNormal(torch.zeros(D).double(), S).log_prob(apart)
        gain = torch.linalg.solve(S, C[:, :L] @ cov).mT
        mean, cov = mean + (gain @ apart[..., None])[..., 0], cov - gain @ C[:, :L] @ cov
        total = total + score.logsumexp(0) - math.log(n)
        kept = torch.multinomial(score.softmax(0), n, replacement=True)
        z, mean, cov = z[kept], mean[kept], (cov[kept] + cov[kept].mT) / 2
    return total


@pytest.mark.parametrize("switching", ["dynamics", "both"])
@pytest.mark.parametrize("inputs", [0, 2])
def test_states_that_are_the_same_are_as_one_also_under_expected_statistics(switching, inputs):
    """Uncertain coefficients leave a quadratic form of the regressors, which the paths must weigh."""

    def evidence(states, read):
        regressors, own = L + inputs + 1, states if switching == "both" else None
        dynamics = Regression(L, regressors, "dynamics", walk=True, states=states)
        emission = Regression(D, regressors, "loading", states=own)
        s = [part.prior() for part in (dynamics, emission)]
        s = [factor.family.expected({k: 3 * v for k, v in factor.eta.items()}) for factor in s]
        even = torch.full((states,), -math.log(states), dtype=torch.float64)
        return read(SwitchingLinear(even, even.expand(states, states), dynamics, emission, *s, (1, T), u))

    torch.manual_seed(3)
    x, u = hidden(normal(1, T, D), GAPS["entries"]), normal(1, T, inputs) if inputs else None
    one = evidence(1, lambda distribution: distribution.log_prob(x))
    with estimates():
        two = evidence(2, lambda distribution: distribution.log_prob(x))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-10)
