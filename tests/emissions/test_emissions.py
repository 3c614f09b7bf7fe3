"""The laws of emissions whose observations are independent given the states, over one table of cases."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from dense import condition, log_normal, normal, spd, z_score
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.emissions import Autoregressive, Bernoulli, Categorical, Emission, Gaussian, Poisson, quadratic
from ppgen.emissions.emission import distinct_patterns
from ppgen.errors import DataError

K, D, V = 3, 3, 4


def uniform(*shape):
    return 0.1 + 0.8 * torch.rand(*shape, dtype=torch.float64)


def full_score(row, theta, k):
    root = theta["precision_cholesky"][k]
    return log_normal(row, theta["location"][k], torch.linalg.inv(root @ root.mT))


def diagonal_score(row, theta, k):
    return log_normal(row, theta["location"][k], torch.diag(1 / theta["precision"][k]))


def spherical_score(row, theta, k):
    return log_normal(row, theta["location"][k], torch.eye(D).double() / theta["precision"][k])


def discrete_score(make):
    def score(row, theta, k):
        seen = (~row.isnan()).nonzero()[:, 0].tolist()
        return sum((make(theta, k, d).log_prob(row[d]) for d in seen), torch.zeros(()).double())

    return score


class Case(NamedTuple):
    """An emission, parameters of it, data, and the log-density of one row under one state."""

    emission: Emission
    theta: Callable[[], dict]
    data: Callable[..., torch.Tensor]
    score: Callable


CASES = {
    "full": Case(
        Gaussian(D),
        lambda: {"location": normal(K, D), "precision_cholesky": torch.linalg.cholesky(spd(K, size=D))},
        normal,
        full_score,
    ),
    "diagonal": Case(
        Gaussian(D, covariance="diagonal"),
        lambda: {"location": normal(K, D), "precision": 0.3 + uniform(K, D)},
        normal,
        diagonal_score,
    ),
    "spherical": Case(
        Gaussian(D, covariance="spherical"),
        lambda: {"location": normal(K, D), "precision": 0.3 + uniform(K)},
        normal,
        spherical_score,
    ),
    "categorical": Case(
        Categorical(V, features=D),
        lambda: {"probability": normal(K, D, V).softmax(-1)},
        lambda *shape: torch.randint(V, shape).double(),
        discrete_score(lambda theta, k, d: torch.distributions.Categorical(theta["probability"][k, d])),
    ),
    "poisson": Case(
        Poisson(D),
        lambda: {"rate": 4 * uniform(K, D)},
        lambda *shape: torch.randint(5, shape).double(),
        discrete_score(lambda theta, k, d: torch.distributions.Poisson(theta["rate"][k, d])),
    ),
    "bernoulli": Case(
        Bernoulli(D),
        lambda: {"probability": uniform(K, D)},
        lambda *shape: torch.randint(2, shape).double(),
        discrete_score(lambda theta, k, d: torch.distributions.Bernoulli(theta["probability"][k, d])),
    ),
}
GAUSSIAN = ["full", "diagonal", "spherical"]


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture
def theta(case):
    return case.theta()


@pytest.fixture
def s(case, theta):
    return case.emission.family.statistic(theta)


@pytest.fixture
def x(case):
    """One sequence with every pattern of missing features, twice, in some order."""
    patterns = torch.tensor(list(itertools.product([False, True], repeat=D)) * 2)[torch.randperm(2 * 2**D)]
    return case.data(1, len(patterns), D).masked_fill(patterns, torch.nan)


def test_potential_is_the_density_of_what_was_seen_for_every_pattern(case, theta, s, x):
    wanted = torch.stack([torch.stack([case.score(row, theta, k) for k in range(K)]) for row in x[0]])
    torch.testing.assert_close(case.emission.potential(x, s)[0], wanted, rtol=1e-10, atol=1e-10)


def test_nothing_seen_scores_zero_and_has_no_gradient(case, s):
    leaves = {name: value.requires_grad_() for name, value in s.items()}
    score = case.emission.potential(torch.full((2, 3, D), torch.nan).double(), leaves)
    assert (score == 0).all()
    score.sum().backward()
    assert all(leaf.grad is None or (leaf.grad == 0).all() for leaf in leaves.values())


def test_potential_is_linear_in_the_statistics_of_what_is_complete(case, s, x):
    complete, other = torch.nan_to_num(x, 1.0), case.emission.family.statistic(case.theta())
    mixed = case.emission.potential(complete, {name: 0.3 * s[name] + 0.7 * other[name] for name in s})
    apart = 0.3 * case.emission.potential(complete, s) + 0.7 * case.emission.potential(complete, other)
    torch.testing.assert_close(mixed, apart)


def test_gradients_are_finite_and_correct(case, s, x):
    names = list(s)

    def potential(*values):
        return case.emission.potential(x, dict(zip(names, values, strict=True)))

    def symmetric(name, value):  # the statistics of a symmetric matrix stay symmetric when nudged
        return (value + value.mT) / 2 if name == "precision" and value.ndim == 3 else value

    assert torch.autograd.gradcheck(
        lambda *values: potential(*(symmetric(n, v) for n, v in zip(names, values, strict=True))),
        [value.clone().requires_grad_() for value in s.values()],
    )


def test_potential_runs_under_vmap_over_parameters(case, x):
    many = [case.emission.family.statistic(case.theta()) for _ in range(4)]
    stacked = {name: torch.stack([one[name] for one in many]) for name in many[0]}
    together = torch.func.vmap(lambda one: case.emission.potential(x, one))(stacked)
    torch.testing.assert_close(together, torch.stack([case.emission.potential(x, one) for one in many]))


def test_potential_is_traced_into_a_graph_for_any_parameters(case, s, x):
    names = list(s)
    graph = make_fx(lambda *values: case.emission.potential(x, dict(zip(names, values, strict=True))))(*s.values())
    other = case.emission.family.statistic(case.theta())
    torch.testing.assert_close(graph(*other.values()), case.emission.potential(x, other))


def test_what_is_hidden_does_not_matter(case, s, x):
    payload = x.clone()
    payload.view(torch.int64)[x.isnan()] |= 12345
    assert case.emission.potential(payload, s).equal(case.emission.potential(x, s))


def test_filled_data_keeps_what_was_seen_bit_for_bit(case, s, x):
    z = torch.randint(K, x.shape[:2])
    before = x.clone()
    filled = case.emission.fill(x, s, z)
    assert not filled.isnan().any()
    assert filled[~x.isnan()].equal(x[~x.isnan()])
    assert torch.equal(x.nan_to_num(7), before.nan_to_num(7))
    case.emission.check(filled)


def test_rows_are_sequences_without_time(case, s, x):
    rows = x[0]
    assert case.emission.potential(rows, s).equal(case.emission.potential(x, s)[0])
    z = torch.randint(K, (len(rows),))
    torch.manual_seed(1)
    filled = case.emission.fill(rows, s, z)
    torch.manual_seed(1)
    assert filled.equal(case.emission.fill(x, s, z[None])[0])
    assert case.emission.sample(s, z).shape == rows.shape
    assert case.emission.embed(rows).equal(case.emission.embed(x)[0])
    assert case.emission.log_frames(rows).equal(torch.zeros(len(rows)).double())
    assert case.emission.potential(x.reshape(2, -1, 1, D), s).shape == (2, len(rows) // 2, 1, K)


def test_replicates_have_the_mean_of_their_state(case, theta, s):
    """z below 5 for 3 means: false-alarm rate below 2e-6."""
    draws = 20_000
    drawn = case.emission.sample(s, torch.full((draws, 1), 1))[:, 0]
    case.emission.check(drawn[None])
    reference = {
        "location": lambda: theta["location"][1],
        "rate": lambda: theta["rate"][1],
        "probability": lambda: (
            theta["probability"][1]
            if theta["probability"].ndim == 2
            else theta["probability"][1] @ torch.arange(V).double()
        ),
    }
    (mean,) = [value() for name, value in reference.items() if name in theta]
    assert z_score(drawn, mean) < 5


@pytest.mark.parametrize("name", GAUSSIAN)
def test_filled_entries_have_the_moments_of_the_conditional_gaussian(name):
    """z below 5 for 2 means and 4 products: false-alarm rate below 4e-6."""
    case, draws = CASES[name], 20_000
    theta = case.theta()
    s = case.emission.family.statistic(theta)
    row = normal(D)
    row[[0, 2]] = torch.nan
    roots = theta["precision"].sqrt() if "precision" in theta else None
    root = theta["precision_cholesky"][1] if roots is None else roots[1].expand(D).diag_embed()
    mean, spread = condition(row, theta["location"][1], torch.linalg.inv(root @ root.mT))
    filled = case.emission.fill(row.expand(draws, 1, D), s, torch.ones(draws, 1, dtype=torch.long))[:, 0]
    missing = filled[:, row.isnan()]
    assert z_score(missing, mean) < 5
    products = (missing - mean)[:, :, None] * (missing - mean)[:, None]
    assert z_score(products.flatten(1), spread.flatten()) < 5


def test_the_prior_is_proper_and_fits_any_number_of_states(case):
    for states in (1, 5):
        eta = case.emission.prior(states)
        case.emission.family.check(eta)
        assert all(value.shape[0] == states for value in eta.values())


def test_an_emission_is_rebuilt_from_its_config(case):
    again = type(case.emission)(**case.emission.config)
    assert again.config == case.emission.config
    assert set(again.dims) == set(again.family.sites)


def test_start_features_are_finite(case, x):
    embedded = case.emission.embed(x)
    assert embedded.shape[:2] == x.shape[:2]
    assert embedded.isfinite().all()


def test_data_of_another_shape_or_kind_is_refused(case):
    name, emission = type(case.emission).__name__, case.emission
    with pytest.raises(DataError, match=rf"{name}: x must have shape \(N, T, D=3\), got \(5, 4, 2\)"):
        emission.check(torch.zeros(5, 4, 2))
    with pytest.raises(DataError, match=rf"{name}: x must have shape \(N, T, D=3\), got \(4, 3\)"):
        emission.check(torch.zeros(4, 3))
    with pytest.raises(DataError, match=f"{name}: x must be floating point, got torch.int64; convert it"):
        emission.check(torch.zeros(1, 4, 3, dtype=torch.long))
    infinite = torch.zeros(2, 4, 3)
    infinite[1, 2, 0] = -torch.inf
    with pytest.raises(DataError, match=rf"{name}: x must be finite or NaN, got -inf at \(1, 2, 0\)"):
        emission.check(infinite)


def test_rows_are_checked_as_rows(case):
    name, emission = type(case.emission).__name__, case.emission
    emission.check(torch.zeros(4, 3), ("row",))
    with pytest.raises(DataError, match=rf"{name}: x must have shape \(N, D=3\), got \(5, 4, 3\); NaN for what"):
        emission.check(torch.zeros(5, 4, 3), ("row",))
    with pytest.raises(DataError, match=rf"{name}: x must be finite or NaN, got inf at \(3, 1\)"):
        emission.check(
            torch.zeros(4, 3).index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(torch.inf)), ("row",)
        )


def test_a_value_that_cannot_be_is_placed_in_its_row():
    x = torch.zeros(5, 3)
    x[3, 2] = -1
    with pytest.raises(DataError, match='x holds counts, got -1.0 at row 3, feature 2; use NaN for "not observed"'):
        Poisson(3).check(x, ("row",))


def test_frames_that_follow_one_another_are_no_rows():
    with pytest.raises(
        DataError, match=r"Autoregressive: .* follow others in time, x of shape \(N, T, D=3\), got axes"
    ):
        Autoregressive(3).check(torch.zeros(5, 3), ("row",))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("categorical", 4.0, r"Categorical: x holds symbols 0 to 3, got 4.0 at sequence 1, step 2, feature 0"),
        ("categorical", -1.0, r"Categorical: x holds symbols 0 to 3, got -1.0 at"),
        ("categorical", 0.5, r"Categorical: x holds symbols 0 to 3, got 0.5 at"),
        ("poisson", -1.0, r'Poisson: x holds counts, got -1.0 at sequence 1, .*; use NaN for "not observed"'),
        ("poisson", 2.5, r"Poisson: x holds counts, got 2.5 at"),
        ("bernoulli", 2.0, r"Bernoulli: x holds zeros and ones, got 2.0 at"),
        ("bernoulli", 0.5, r"Bernoulli: x holds zeros and ones, got 0.5 at"),
    ],
)
def test_values_that_cannot_be_are_refused_where_they_stand(name, value, message):
    x = torch.ones(2, 4, 3)
    x[0, 0] = torch.nan
    x[1, 2, 0] = value
    with pytest.raises(DataError, match=message):
        CASES[name].emission.check(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0), "Gaussian: features must be at least 1, got 0"),
        (
            lambda: Gaussian(2, covariance="tied"),
            'Gaussian: covariance must be "full", "diagonal" or "spherical", got \'tied\'',
        ),
        (lambda: Gaussian(2, scale=0), "Gaussian: scale and strength must be positive, got 0 and 0.1"),
        (lambda: Gaussian(2, strength=float("nan")), "Gaussian: scale and strength must be positive"),
        (lambda: Categorical(0), "Categorical: vocabulary, features and concentration must be positive, got 0, 1, 1.0"),
        (lambda: Poisson(1, rate=0), "Poisson: features, shape and rate must be positive, got 1, 1.0, 0"),
        (lambda: Bernoulli(1, one=-1), "Bernoulli: features, one and zero must be positive, got 1, -1, 1.0"),
    ],
)
def test_bad_arguments_are_refused_in_words(make, message):
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize("width", [1, 5, 62, 63, 100])
def test_patterns_of_any_width_are_told_apart(width):
    missing = torch.rand(50, width) < 0.5
    missing[10] = missing[3]
    missing[20, :-1], missing[20, -1] = missing[21, :-1], ~missing[21, -1]
    patterns, inverse = distinct_patterns(missing)
    assert patterns[inverse].equal(missing)
    assert len(patterns) == len(torch.unique(missing, dim=0))


def test_entries_far_outside_do_not_lose_the_density():
    """Data a thousand units from zero and a state 0.1 wide: the quadratic form must not cancel to noise."""
    theta = {"location": torch.full((1, 1), 1e3).double(), "precision_cholesky": torch.full((1, 1, 1), 10.0).double()}
    emission = Gaussian(1)
    x = torch.tensor([[[1e3 + 0.1], [1e3]]]).double()
    wanted = torch.distributions.Normal(1e3, 0.1).log_prob(x[..., 0])
    ours = emission.potential(x, emission.family.statistic(theta))[..., 0]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)


def test_scores_made_by_hand_are_those_of_torch_with_two_derivatives(monkeypatch):
    """More rows than are taken at once, which do not fill the last part."""
    w = torch.randn(5000, 4, dtype=torch.float64, requires_grad=True)
    root = torch.randn(3, 4, 4, dtype=torch.float64)
    forms = (root @ root.mT).requires_grad_()
    weights = torch.randn(5000, 3, dtype=torch.float64)

    def results():
        value = quadratic.scores(w, forms)
        (alone,) = torch.autograd.grad((weights * value).sum(), forms, retain_graph=True)
        first = torch.autograd.grad((weights * value**2).sum(), (w, forms), create_graph=True)
        second = torch.autograd.grad(first[0].square().sum() + first[1].square().sum(), (w, forms))
        return value, alone, *first, *second

    by_hand = results()
    torch.testing.assert_close(by_hand[0], torch.einsum("ni,kij,nj->nk", w, forms, w))
    monkeypatch.setattr(quadratic, "is_eager", lambda: False)
    for a, b in zip(by_hand, results(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-9)
