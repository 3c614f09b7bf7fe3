import math

import pytest
import torch
from dense import autoregression, condition, log_normal, log_paths, normal, observed, paths, spd, z_score

from ppgen.collapsed import HiddenMarkov
from ppgen.collapsed.estimated import estimates
from ppgen.emissions import Autoregressive, Subspace
from ppgen.errors import DataError

D = 2
SCALE = 1.5


def subspace_of(features=4):
    basis = torch.linalg.qr(normal(features, D)).Q
    return Subspace(normal(features), basis, torch.tensor([1.3, 0.6]).double(), 0.2)


def parameters(states, lags, covariance="full", innovation=0.3):
    """Stable coefficients, and the factor of the innovations' precision."""
    coefficients = 0.4 / lags * normal(states, D, lags * D + 1)
    coefficients[..., -1] *= 3
    precision = torch.linalg.inv(innovation * spd(states, size=D))
    if covariance == "diagonal":
        root = precision.diagonal(dim1=-2, dim2=-1).sqrt()[..., None, None]
        return {"coefficients": coefficients[:, :, None], "precision_cholesky": root}
    return {"coefficients": coefficients, "precision_cholesky": torch.linalg.cholesky(precision)}


class Setting:
    """A hidden Markov model with autoregressive emissions, and the same by brute force."""

    def __init__(self, states, lags, *, subspace=None, covariance="full", innovation=0.3):
        features = D if subspace is None else len(subspace.mean)
        self.emission = Autoregressive(features, lags, covariance=covariance, subspace=subspace, initial_scale=SCALE)
        self.theta = parameters(states, lags, covariance, innovation)
        self.s = self.emission.family.statistic(self.theta)
        self.log_initial, self.log_transition = normal(states).log_softmax(-1), normal(states, states).log_softmax(-1)
        self.hmm = HiddenMarkov(self.log_initial, self.log_transition, self.emission, self.s)

    def gaussian(self, path):
        """Dense Gaussian of the features (T, F) along a path of states."""
        coefficients, root = self.theta["coefficients"], self.theta["precision_cholesky"]
        if self.emission.covariance == "diagonal":
            coefficients, root = coefficients[:, :, 0], torch.diag_embed(root[..., 0, 0])
        innovation = torch.linalg.inv(root @ root.mT)
        mean, covariance = observed(self.emission.subspace, *autoregression(path, coefficients, innovation, SCALE))
        return mean.flatten(), covariance

    def joint(self, x):
        """Log p(path, x) of every path, for one sequence (T, F) without trailing NaN."""
        T, K = len(x), len(self.log_initial)
        emitted = [log_normal(x.flatten(), *self.gaussian(path)) for path in paths(T, K)]
        return log_paths(self.log_initial, self.log_transition, T) + torch.stack(emitted)

    def simulate(self, N, T):
        z = torch.randint(len(self.log_initial), (N, T))
        return self.emission.sample(self.s, z)

    def bound(self, x, sweeps=1):
        return self.hmm.evidence(x, self.hmm.settle(x, sweeps=sweeps))


def cut(x, length):
    """Trailing NaN: the sequence is shorter."""
    x = x.clone()
    x[length:] = torch.nan
    return x


def hide(x, *entries):
    """NaN at each (time, feature); a lone time hides the whole frame."""
    x = x.clone()
    for entry in entries:
        x[entry] = torch.nan
    return x


PATTERNS = {
    "nothing": (),
    "one entry": ((3, 0),),
    "one frame": (4,),
    "leading frames": (0, 1),
    "the first frame and a gap": (0, 3, 4, (5, 1)),
    "every other": ((1, 0), 3, (5, 1), 6),
    "all but the last": (0, 1, 2, 3, 4, 5, 6),
}
SUBSPACED = [False, True]


@pytest.mark.parametrize("subspaced", SUBSPACED, ids=["plain", "subspace"])
@pytest.mark.parametrize(("lags", "covariance"), [(1, "full"), (2, "diagonal"), (3, "full")])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
def test_with_one_state_the_bound_is_the_marginal_of_the_dense_gaussian(subspaced, covariance, lags, pattern):
    setting = Setting(1, lags, subspace=subspace_of() if subspaced else None, covariance=covariance)
    x = setting.simulate(1, 8)[0]
    pattern = tuple((t[0], slice(2 * t[1], 2 * t[1] + 2)) if subspaced and isinstance(t, tuple) else t for t in pattern)
    x = hide(x, *pattern)  # in the subspace, two of four features: as many as there are components
    torch.testing.assert_close(setting.bound(x[None])[0], setting.joint(x)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lags", [1, 2, 3])
@pytest.mark.parametrize("lengths", [(7, 4, 5), (7, 1, 2), (1, 3, 0)])
def test_trailing_nan_is_a_shorter_sequence(lags, lengths):
    """Lengths at, below and above the lags, and not a multiple of them; gaps inside."""
    setting = Setting(1, lags)
    x = torch.stack([cut(one, length) for one, length in zip(setting.simulate(3, 7), lengths, strict=True)])
    x[0, 1, 0] = x[1, 0, 1] = torch.nan
    dense = [
        setting.joint(one[:length])[0] if length else one.new_zeros(()) for one, length in zip(x, lengths, strict=True)
    ]
    torch.testing.assert_close(setting.bound(x), torch.stack(dense), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("lags", [1, 2])
@pytest.mark.parametrize("subspaced", SUBSPACED, ids=["plain", "subspace"])
def test_without_gaps_the_evidence_is_the_sum_over_every_path(lags, subspaced):
    setting = Setting(2, lags, subspace=subspace_of() if subspaced else None)
    x = setting.simulate(2, 6)
    wanted = torch.stack([setting.joint(one).logsumexp(-1) for one in x])
    torch.testing.assert_close(setting.hmm.log_prob(x), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pattern", [(2,), (0, (3, 1)), ((1, 0), 3, 4), (0, 1, 2)])
@pytest.mark.parametrize("lags", [1, 2])
def test_with_gaps_the_bound_is_below_the_evidence_and_near_it(lags, pattern):
    setting = Setting(2, lags)
    x = hide(setting.simulate(1, 6)[0], *pattern)
    bound, evidence = setting.bound(x[None], sweeps=30)[0], setting.joint(x).logsumexp(-1)
    assert bound < evidence + 1e-10
    assert bound > evidence - 2


@pytest.mark.parametrize("subspaced", SUBSPACED, ids=["plain", "subspace"])
def test_every_sweep_raises_the_bound(subspaced):
    setting = Setting(3, 2, subspace=subspace_of() if subspaced else None)
    x = setting.simulate(3, 30)
    x[torch.rand(x.shape) < 0.3] = torch.nan
    local, bounds = setting.hmm.settle(x, sweeps=0), []
    for _ in range(15):
        bounds.append(setting.hmm.evidence(x, local))
        local = setting.hmm.settle(x, local, sweeps=1)
    steps = torch.stack(bounds).diff(dim=0)
    assert (steps > -1e-9).all()
    assert (steps[0] > 1e-3).all()


@pytest.mark.parametrize("lags", [1, 3])
def test_completed_frames_are_the_conditional_mean(lags):
    setting = Setting(1, lags)
    x = hide(setting.simulate(1, 8)[0], 0, 3, (4, 1), (6, 0))
    completed = setting.hmm.completed(x[None]).marginals["h"][0]
    wanted, _ = condition(x.flatten(), *setting.gaussian((0,) * 8))
    torch.testing.assert_close(completed[x.isnan()], wanted, rtol=1e-8, atol=1e-8)
    assert torch.equal(completed[~x.isnan()], x[~x.isnan()])


def test_gradient_of_the_bound_is_the_expected_statistic():
    """With one state the gradient at fixed completion is the full derivative of the dense marginal."""
    setting = Setting(1, 2)
    x = hide(setting.simulate(1, 7)[0], 2, (4, 0))[None]
    s = {name: value.clone().requires_grad_() for name, value in setting.s.items()}
    hmm = HiddenMarkov(setting.log_initial, setting.log_transition, setting.emission, s)
    hmm.evidence(x, hmm.settle(x)).sum().backward()
    direction = {name: torch.randn_like(value) for name, value in setting.theta.items()}
    direction["precision_cholesky"] = direction["precision_cholesky"].tril()

    def moved(step):
        theta = {name: value + step * direction[name] for name, value in setting.theta.items()}
        copy = Setting.__new__(Setting)
        copy.__dict__ |= {**setting.__dict__, "theta": theta}
        return copy.joint(x[0])[0], setting.emission.family.statistic(theta)

    (up, s_up), (down, s_down) = moved(1e-5), moved(-1e-5)
    ours = sum((s[name].grad * (s_up[name] - s_down[name])).sum() for name in s)
    torch.testing.assert_close(ours / 2e-5, (up - down) / 2e-5, rtol=1e-6, atol=1e-6)


def test_what_is_hidden_does_not_matter():
    setting = Setting(2, 2)
    x = setting.simulate(2, 9)
    x[0, 3:5] = x[1, 0] = x[1, 7:] = torch.nan
    payload = x.clone()
    bits = payload.view(torch.int64)
    bits[x.isnan()] |= 12345
    assert payload.isnan().equal(x.isnan())
    assert setting.bound(payload).equal(setting.bound(x))


def test_a_batch_is_the_sum_of_its_sequences():
    setting = Setting(2, 2)
    x = setting.simulate(4, 11)
    x[0, 3:5] = x[1, 0] = x[1, 7:] = x[2, ::2, 0] = torch.nan
    alone = torch.cat([setting.bound(one[None], sweeps=5) for one in x])
    torch.testing.assert_close(setting.bound(x, sweeps=5), alone, rtol=1e-10, atol=1e-10)


def exact_moments(setting, x):
    """Weight of every path, and the mean and second moments of the missing entries, over all paths."""
    weight = setting.joint(x).softmax(-1)
    each = [condition(x.flatten(), *setting.gaussian(path)) for path in paths(len(x), 2)]
    mean = sum(w * m for w, (m, _) in zip(weight, each, strict=True))
    return weight, mean, sum(w * (m**2 + v.diagonal()) for w, (m, v) in zip(weight, each, strict=True))


GAPS = [(2, (4, 1)), (2, 3), (0, 3)]


@pytest.mark.parametrize("pattern", GAPS)
@pytest.mark.parametrize("lags", [1, 2])
def test_imputation_is_from_the_exact_posterior_whatever_its_modes(lags, pattern):
    """Narrow innovations. z below 5 for at most 4 means and 4 squares: false-alarm rate below 5e-6."""
    setting = Setting(2, lags, innovation=0.01)
    x = hide(setting.simulate(1, 6)[0], *pattern)
    _, mean, square = exact_moments(setting, x)
    filled = setting.hmm.impute(x.expand(2000, 6, D))
    assert torch.equal(filled[:, ~x.isnan()], x[~x.isnan()].expand(2000, -1))
    assert z_score(filled[:, x.isnan()], mean) < 5
    assert z_score(filled[:, x.isnan()] ** 2, square) < 5


@pytest.mark.parametrize("subspaced", SUBSPACED, ids=["plain", "subspace"])
@pytest.mark.parametrize("pattern", [*GAPS, (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("lags", [1, 2, 3])
def test_states_across_a_gap_and_the_evidence_are_those_of_the_listed_paths(lags, pattern, subspaced):
    setting = Setting(2, lags, subspace=subspace_of() if subspaced else None, innovation=0.1)
    x = hide(setting.simulate(1, 6)[0], *pattern)
    score, z = setting.joint(x), torch.nn.functional.one_hot(torch.tensor(paths(6, 2)), 2).double()
    latents, atol = setting.hmm.latents(x[None]), 1e-3 if subspaced else 1e-8  # partial rows: see SMALLEST_LOSS
    wanted = torch.einsum("p,ptk->tk", score.softmax(-1), z)
    torch.testing.assert_close(latents.marginals["z"][0], wanted, rtol=0, atol=atol)
    with estimates() as said:
        torch.testing.assert_close(setting.hmm.log_prob(x[None])[0], score.logsumexp(-1), rtol=0, atol=atol)
    assert "unbiased" in said.attrs["log_likelihood"]


def test_few_particles_estimate_the_evidence_without_bias():
    """4 particles for 64 paths, 2,000 runs. z below 5: false-alarm rate below 1e-6."""
    setting = Setting(2, 1)
    x = hide(setting.simulate(1, 8)[0], 2, 3, 4, 5)[None]
    switching, _ = setting.emission.switching(x, setting.s)

    def estimate(particles):
        thinning, uniforms = torch.rand(8, dtype=torch.float64), torch.rand(0, 1, 8, dtype=torch.float64)
        found = switching.states(
            setting.log_initial, setting.log_transition, thinning=thinning, uniforms=uniforms, particles=particles
        )
        return found.log_evidence[0]

    exact = estimate(1000)
    ratio = torch.stack([(estimate(4) - exact).exp() for _ in range(2000)])
    assert ratio.std() > 0.05
    assert z_score(ratio[:, None], torch.ones(1).double()) < 5


def test_the_mode_across_a_gap_is_the_most_probable_state_of_each_step():
    setting = Setting(3, 1, innovation=0.1)
    x = hide(setting.simulate(1, 30)[0], *range(10, 14))
    x[28:] = torch.nan
    latents = setting.hmm.latents(x[None])
    mode = latents.mode["z_mode"][0]
    assert mode[10:15].equal(latents.marginals["z"][0, 10:15].argmax(-1))
    assert (mode[28:] == -1).all()
    assert (mode[:28] >= 0).all()


def test_with_expected_statistics_the_states_are_those_of_the_listed_paths():
    """Coefficients are uncertain: each path's weight is the integral of the product of its potentials."""
    emission = Autoregressive(1, 1, initial_scale=SCALE)
    theta = {"coefficients": normal(2, 1, 2), "precision_cholesky": 1 + torch.rand(2, 1, 1).double()}
    s = emission.family.statistic(theta)
    s["quadratic"] = s["quadratic"] - torch.diag(torch.tensor([0.3, 0.2]).double())
    s["log_det"] = s["log_det"] - torch.tensor([0.1, 0.4]).double()
    hmm = HiddenMarkov(normal(2).log_softmax(-1), normal(2, 2).log_softmax(-1), emission, s)
    x = torch.tensor([[[0.4], [torch.nan], [-0.7], [0.2]]]).double()
    grid = torch.linspace(-12, 12, 24_001).double()
    whole = torch.where(x.isnan(), grid[:, None, None], x)
    potential = emission.potential(whole, s)
    score = []
    for path in paths(4, 2):
        emitted = sum(potential[:, t, k] for t, k in enumerate(path))
        walk = -0.5 * ((whole[:, 0, 0] / SCALE) ** 2)
        score.append((emitted + walk).logsumexp(0))
    weight = (log_paths(hmm.log_initial, hmm.log_transition, 4) + torch.stack(score)).softmax(-1)
    z = torch.nn.functional.one_hot(torch.tensor(paths(4, 2)), 2).double()
    wanted = torch.einsum("p,ptk->tk", weight, z)
    torch.testing.assert_close(hmm.latents(x).marginals["z"][0], wanted, rtol=0, atol=1e-6)


def test_frames_drawn_given_the_states_have_the_moments_of_the_dense_conditional():
    """z below 5 for 5 means and 15 products: false-alarm rate below 2e-5."""
    setting = Setting(2, 2)
    path = (0, 1, 1, 0, 1, 0, 0)
    x = hide(setting.simulate(1, 7)[0], 0, 3, (5, 1))
    wanted, spread = condition(x.flatten(), *setting.gaussian(path))
    draws = 20_000
    filled = setting.emission.fill(x.expand(draws, 7, D), setting.s, torch.tensor(path).expand(draws, 7))
    missing = filled[:, x.isnan()]
    assert z_score(missing, wanted) < 5
    products = (missing - wanted)[:, :, None] * (missing - wanted)[:, None]
    assert z_score(products.flatten(1), spread.flatten()) < 5


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("subspaced", SUBSPACED, ids=["plain", "subspace"])
def test_replicates_have_the_moments_of_the_dense_gaussian(covariance, subspaced):
    """z below 5.5 for at most 20 means and 400 products: false-alarm rate below 2e-5."""
    setting = Setting(2, 2, subspace=subspace_of() if subspaced else None, covariance=covariance)
    path, draws = (0, 1, 1, 0, 1), 20_000
    mean, spread = setting.gaussian(path)
    drawn = setting.emission.sample(setting.s, torch.tensor(path).expand(draws, 5)).flatten(1)
    assert z_score(drawn, mean) < 5.5
    products = (drawn - mean)[:, :, None] * (drawn - mean)[:, None]
    assert z_score(products.flatten(1), spread.flatten()) < 5.5


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_a_continuation_has_the_moments_of_the_dense_conditional(length):
    """Also of a past shorter than the lags. z below 5 for 6 means and 36 products: false-alarm rate below 3e-5."""
    setting, ahead, draws = Setting(2, 2), 3, 20_000
    path = (0, 1, 1, 0, 1, 0, 0)[: length + ahead]
    x = cut(setting.simulate(1, length + ahead)[0], length)
    wanted, spread = condition(x.flatten(), *setting.gaussian(path))
    future = torch.tensor(path[length:]).expand(draws, ahead)
    lengths = torch.full((draws,), length)
    drawn = setting.emission.extend(x[:4].expand(draws, -1, D), setting.s, future, lengths).flatten(1)
    assert z_score(drawn, wanted) < 5
    products = (drawn - wanted)[:, :, None] * (drawn - wanted)[:, None]
    assert z_score(products.flatten(1), spread.flatten()) < 5


def test_start_features_are_finite_whatever_is_missing():
    setting = Setting(2, 2)
    x = setting.simulate(3, 9)
    x[0, :5] = x[1, 4] = x[2] = torch.nan
    embedded = setting.emission.embed(x)
    assert embedded.shape[:2] == x.shape[:2]
    assert embedded.isfinite().all()


def test_the_prior_is_a_random_walk():
    named = Autoregressive(3, 2).family.named(Autoregressive(3, 2).prior(4))
    wanted = torch.eye(3, 7).double().expand(4, 3, 7)
    torch.testing.assert_close(named["location"], wanted)
    torch.testing.assert_close(named["degrees"], torch.full((4,), 5.0).double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lags": 0}, "Autoregressive: features and lags must be at least 1, got 2 and 0"),
        ({"features": 0}, "Autoregressive: features and lags must be at least 1, got 0 and 1"),
        ({"covariance": "spherical"}, r'covariance must be "full" or "diagonal", got .spherical'),
        (
            {"noise": -1.0},
            "Autoregressive: noise, strength, initial_scale and initial_step must be positive, got -1.0, .*",
        ),
        ({"initial_scale": math.nan}, "initial_scale and initial_step must be positive"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(DataError, match=message):
        Autoregressive(**{"features": 2, **arguments})


def test_a_subspace_of_other_features_is_refused():
    with pytest.raises(DataError, match="Autoregressive: subspace has 4 features, the emission 2"):
        Autoregressive(2, subspace=subspace_of())
