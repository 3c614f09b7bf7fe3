"""The laws of every conjugate family, over one table of cases, then what is true of one family only."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine

from ppgen.errors import DataError
from ppgen.families import (
    Beta,
    Dirichlet,
    Family,
    Gamma,
    JumpDirichlet,
    MatrixNormalGamma,
    MatrixNormalInverseWishart,
    Normal,
    NormalGamma,
    NormalInverseWishart,
    SphericalNormalGamma,
)

K, D, R, DRAWS = 2, 3, 2, 20_000
# 5 standard errors, two-sided false-alarm rate 6e-7 for one Gaussian comparison, below 4e-5 for the 60 of one test.
Z_LIMIT = 5.0


def uniform(low, high, *shape):
    return low + (high - low) * torch.rand(*shape, dtype=torch.float64)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def positive_definite(*batch, size):
    root = normal(*batch, size, size + 3)
    return root @ root.mT


class Case(NamedTuple):
    """A family and a maker of random textbook parameters."""

    family: Family
    named: Callable[[], dict]


CASES = {
    "Dirichlet": Case(Dirichlet("p"), lambda: {"concentration": uniform(0.5, 3, K, 4)}),
    "JumpDirichlet": Case(JumpDirichlet("J"), lambda: {"concentration": uniform(0.5, 3, K, 4, 3)}),
    "Beta": Case(Beta("p"), lambda: {"one": uniform(0.5, 3, K), "zero": uniform(0.5, 3, K)}),
    "Gamma": Case(Gamma("rate"), lambda: {"shape": uniform(0.5, 3, K), "rate": uniform(0.5, 3, K)}),
    "NormalGamma": Case(
        NormalGamma("mu", "lambda"),
        lambda: {
            "location": normal(K, D),
            "strength": uniform(0.2, 2, K, D),
            "shape": uniform(2, 4, K, D),
            "rate": uniform(0.5, 2, K, D),
        },
    ),
    "SphericalNormalGamma": Case(
        SphericalNormalGamma("mu", "lambda"),
        lambda: {
            "location": normal(K, D),
            "strength": uniform(0.2, 2, K, D),
            "shape": uniform(2, 4, K),
            "rate": uniform(0.5, 2, K),
        },
    ),
    "Normal": Case(Normal("w"), lambda: {"location": normal(K, R), "precision": positive_definite(K, size=R)}),
    "NormalInverseWishart": Case(
        NormalInverseWishart("mu", "factor"),
        lambda: {
            "location": normal(K, D),
            "strength": uniform(0.2, 2, K),
            "scale": positive_definite(K, size=D),
            "degrees": uniform(D + 2, D + 4, K),
        },
    ),
    "MatrixNormalGamma": Case(
        MatrixNormalGamma("A", "lambda"),
        lambda: {
            "location": normal(K, D, 1, R),
            "column_precision": positive_definite(K, D, size=R),
            "shape": uniform(2, 4, K),
            "rate": uniform(0.5, 3, K),
        },
    ),
    "MatrixNormalInverseWishart": Case(
        MatrixNormalInverseWishart("A", "factor"),
        lambda: {
            "location": normal(K, D, R),
            "column_precision": positive_definite(K, size=R),
            "scale": positive_definite(K, size=D),
            "degrees": uniform(D + 2, D + 4, K),
        },
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.fixture
def family(case):
    return case.family


@pytest.fixture
def eta(case):
    return case.family.natural(**case.named())


@pytest.fixture
def other(case, eta):  # after eta, so that it differs
    return case.family.natural(**case.named())


def close(a, b, **tolerance):
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance)


def gradient(function, eta):
    leaves = {name: value.clone().requires_grad_() for name, value in eta.items()}
    return dict(zip(leaves, torch.autograd.grad(function(leaves).sum(), list(leaves.values())), strict=True))


def log_density(family, eta, theta):
    """Joint log density of the drawn sites, scored as Pyro scores them."""
    scored = poutine.trace(poutine.condition(lambda: family.draw(eta, pyro.sample), data=theta)).get_trace()
    return scored.log_prob_sum()


def test_named_parameters_survive_the_round_trip(case):
    named = case.named()
    eta = case.family.natural(**named)
    case.family.check(eta)
    close(case.family.named(eta), named)
    close(case.family.natural(**case.family.named(eta)), eta)


def test_gradient_of_the_log_normaliser_is_the_expected_statistic(family, eta):
    close(gradient(family.log_normalizer, eta), family.expected(eta))


def test_expected_statistic_is_the_mean_over_draws(family, eta):
    statistics, expected = family.statistic(family.sample(eta, DRAWS)), family.expected(eta)
    for name, draws in statistics.items():
        standard_error = draws.std(0) / math.sqrt(DRAWS)
        assert ((draws.mean(0) - expected[name]).abs() <= Z_LIMIT * standard_error).all(), name


def test_density_of_draws_is_the_exponential_family(family, eta, other):
    """What is left of the density beside <eta, t> - A is the base measure, the same for any eta."""
    for n in range(5):
        theta = {site: draws[0] for site, draws in family.sample(eta if n % 2 else other, 1).items()}
        statistic = family.statistic(theta)
        base_measures = [
            log_density(family, one, theta) - (family.inner(one, statistic) - family.log_normalizer(one)).sum()
            for one in (eta, other)
        ]
        torch.testing.assert_close(*base_measures, rtol=1e-9, atol=1e-9)


def test_divergence_is_positive_and_zero_only_at_home(family, eta, other):
    assert (family.kl(eta, other) > 0).all()
    torch.testing.assert_close(family.kl(eta, eta), torch.zeros_like(family.kl(eta, eta)), rtol=0, atol=1e-12)


def test_divergence_is_the_mean_log_ratio_over_draws(family, eta, other):
    statistics = family.statistic(family.sample(eta, DRAWS))
    log_q, log_p = (family.inner(one, statistics) - family.log_normalizer(one) for one in (eta, other))
    ratio = log_q - log_p
    error = (ratio.mean(0) - family.kl(eta, other)).abs()
    assert (error < Z_LIMIT * ratio.std(0) / math.sqrt(DRAWS)).all()


def test_divergence_has_the_right_gradient_in_both_arguments(family, eta, other):
    """d KL / d eta_p = E_p[t] - E_q[t], and zero in eta_q where the two meet."""
    expected_q, expected_p = family.expected(eta), family.expected(other)
    difference = {name: expected_p[name] - expected_q[name] for name in expected_p}
    close(gradient(lambda p: family.kl(eta, p), other), difference)
    at_home = gradient(lambda q: family.kl(q, {n: v.detach() for n, v in eta.items()}), eta)
    close(at_home, {name: torch.zeros_like(value) for name, value in at_home.items()}, rtol=0, atol=1e-9)


def test_one_draw_carries_every_batch_dimension_as_an_event(family, eta):
    trace = poutine.trace(lambda: family.draw(eta, pyro.sample)).get_trace()
    drawn = [name for name, site in trace.nodes.items() if site["type"] == "sample"]
    assert tuple(drawn) == family.sites
    assert all(trace.nodes[site]["fn"].batch_shape == () for site in drawn)


def test_draws_come_first_and_repeat_with_the_seed(family, eta):
    torch.manual_seed(1)
    first = family.sample(eta, 5)
    torch.manual_seed(1)
    close(first, family.sample(eta, 5), rtol=0, atol=0)
    single = {site: value[0] for site, value in family.sample(eta, 1).items()}
    assert set(first) == set(family.sites)
    assert all(first[site].shape == (5, *single[site].shape) for site in first)
    assert (first[family.sites[0]][0] != first[family.sites[0]][1]).any()


def test_draws_are_reparametrised(family, eta):
    """Monte Carlo variational inference needs the pathwise gradient through every site."""
    leaves = {name: value.clone().requires_grad_() for name, value in eta.items()}
    statistic = family.statistic(family.draw(leaves, lambda _site, distribution: distribution.rsample()))
    total = sum(value.sum() for value in statistic.values())
    assert all(g.isfinite().all() and (g != 0).any() for g in torch.autograd.grad(total, list(leaves.values())))


def test_every_function_works_on_a_batch_through_vmap(family, eta, other):
    torch.testing.assert_close(torch.func.vmap(family.log_normalizer)(eta), family.log_normalizer(eta))
    torch.testing.assert_close(torch.func.vmap(family.kl)(eta, other), family.kl(eta, other))
    close(torch.func.vmap(family.expected)(eta), family.expected(eta))
    close(torch.func.vmap(family.named)(eta), family.named(eta))
    theta = {site: value[0] for site, value in family.sample(eta, 1).items()}
    close(torch.func.vmap(family.statistic)(theta), family.statistic(theta))


def test_expectations_are_differentiable(family, eta):
    def expected(*values):
        return tuple(family.expected(dict(zip(eta, values, strict=True))).values())

    assert torch.autograd.gradcheck(expected, [value.clone().requires_grad_() for value in eta.values()])


def test_single_precision_stays_single(family, eta):
    single = {name: value.float() for name, value in eta.items()}
    assert family.log_normalizer(single).dtype == torch.float32
    torch.testing.assert_close(family.log_normalizer(single).double(), family.log_normalizer(eta), rtol=1e-4, atol=1e-3)
    assert all(value.dtype == torch.float32 for value in family.sample(single, 2).values())


def test_a_wrong_set_of_statistics_is_refused(family, eta):
    with pytest.raises(DataError, match=f"{type(family).__name__}: statistics must be .*, got .*'surprise'"):
        family.check({**eta, "surprise": torch.zeros(())})


def test_a_number_that_is_not_finite_is_refused(family, eta):
    name = next(iter(eta))
    broken = {**eta, name: torch.full_like(eta[name], torch.nan)}
    with pytest.raises(DataError, match=rf"{type(family).__name__}: {name} must be finite, got nan at \(0"):
        family.check(broken)


def test_families_compare_and_print_by_their_sites(family):
    assert replace(family) == family
    assert family != Dirichlet("another")
    assert repr(family).startswith(type(family).__name__)


IMPROPER = [
    (
        Dirichlet("p"),
        {"concentration": torch.tensor([1.0, 2.0, -1.0])},
        r"Dirichlet: concentration must be positive, got -1.0 at \(2,\)",
    ),
    (Beta("p"), {"one": 0.0, "zero": 1.0}, r"Beta: one must be positive, got 0.0$"),
    (Beta("p"), {"one": 1.0, "zero": -2.0}, r"Beta: zero must be positive, got -2.0$"),
    (Gamma("p"), {"shape": -1.0, "rate": 1.0}, r"Gamma: shape must be positive, got -1.0$"),
    (
        Gamma("p"),
        {"shape": 1.0, "rate": torch.tensor([1.0, -3.0])},
        r"Gamma: rate must be positive, got -3.0 at \(1,\)",
    ),
    (
        NormalGamma(),
        {"location": 0.0, "strength": 0.0, "shape": 1.0, "rate": 1.0},
        "strength must be positive, got 0.0",
    ),
    (NormalGamma(), {"location": 2.0, "strength": 1.0, "shape": 1.0, "rate": -1.0}, "rate must be positive, got -1.0"),
    (NormalGamma(), {"location": 2.0, "strength": 1.0, "shape": 0.0, "rate": 1.0}, "shape must be positive, got 0.0"),
]


@pytest.mark.parametrize(("family", "named", "message"), IMPROPER)
def test_improper_scalars_are_refused_in_words(family, named, message):
    with pytest.raises(DataError, match=message):
        family.check(family.natural(**named))


def wishart_case(**changes):
    named = {"location": torch.zeros(D), "strength": 1.0, "scale": torch.eye(D), "degrees": D + 2.0}
    return NormalInverseWishart(), {**named, **changes}


def regression_case(**changes):
    eyes = {"column_precision": torch.eye(R), "scale": torch.eye(D)}
    return MatrixNormalInverseWishart(), {"location": torch.ones(D, R), **eyes, "degrees": D + 2.0, **changes}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (wishart_case(strength=-1.0), "NormalInverseWishart: strength must be positive, got -1.0"),
        (wishart_case(degrees=2.0), r"NormalInverseWishart: degrees must be above 2 \(D - 1\), got 2.0"),
        (wishart_case(scale=-torch.eye(D)), "smallest eigenvalue of scale must be positive, got -1.0"),
        (wishart_case(scale=torch.zeros(D, D)), "smallest eigenvalue of scale must be positive, got 0.0"),
        (wishart_case(scale=torch.eye(D) + torch.ones(D, D).triu(1)), "asymmetry of scale must be zero, got 1.0"),
        (regression_case(degrees=1.5), "MatrixNormalInverseWishart: degrees must be above 2"),
        (regression_case(column_precision=-torch.eye(R)), "eigenvalue of column_precision must be positive, got -1.0"),
        (
            regression_case(scale=-torch.eye(D).expand(K, D, D)),
            r"eigenvalue of scale must be positive, got -1.* at \(0,\)",
        ),
    ],
)
def test_improper_matrices_are_refused_in_words(case, message):
    family, named = case
    with pytest.raises(DataError, match=message):
        family.check(family.natural(**named))


def test_matrices_that_do_not_fit_are_refused():
    eta = MatrixNormalInverseWishart().natural(**regression_case()[1])
    with pytest.raises(
        DataError, match=r"must be \(3, 3\) and \(2, 2\) beside linear \(3, 2\), got \(3, 3\) and \(1, 1\)"
    ):
        MatrixNormalInverseWishart().check({**eta, "quadratic": torch.eye(1)})


def test_scalars_and_batches_are_brought_to_one_batch_shape():
    eta = NormalInverseWishart().natural(location=normal(K, D), strength=0.1, scale=torch.eye(D).double(), degrees=5.0)
    assert {name: tuple(value.shape) for name, value in eta.items()} == {
        "precision": (K, D, D),
        "linear": (K, D),
        "quadratic": (K,),
        "log_det": (K,),
    }
    assert all(value.is_contiguous() for value in eta.values())


def test_whole_numbers_become_floating():
    eta = Gamma("rate").natural(shape=torch.tensor([1, 2]), rate=3)
    assert eta["log"].dtype == eta["value"].dtype == torch.float64


def test_single_and_double_precision_are_never_mixed():
    named = {**wishart_case()[1], "scale": torch.eye(D).double()}
    with pytest.raises(DataError, match="one floating dtype, got torch.float32 and torch.float64; convert them first"):
        NormalInverseWishart().natural(**named)


def test_draws_stay_inside_the_support_where_doubles_end():
    """A tiny concentration puts almost all mass on corners; logarithms of what is drawn must stay finite."""
    corners = Dirichlet("p"), {"concentration": torch.full((20,), 1e-4).double()}
    for family, named in (
        corners,
        (Beta("p"), {"one": 1e-4, "zero": 1e-4}),
        (Gamma("p"), {"shape": 1e-4, "rate": 1.0}),
    ):
        statistic = family.statistic(family.sample(family.natural(**named), 500))
        assert all(value.isfinite().all() for value in statistic.values())


TORCH_PEERS = [
    ("Dirichlet", lambda n: dist.Dirichlet(n["concentration"])),
    ("Beta", lambda n: dist.Beta(n["one"], n["zero"])),
    ("Gamma", lambda n: dist.Gamma(n["shape"], n["rate"])),
]


@pytest.mark.parametrize(("name", "peer"), TORCH_PEERS)
def test_divergence_is_the_closed_form_of_torch(name, peer):
    case = CASES[name]
    named_q, named_p = case.named(), case.named()
    ours = case.family.kl(case.family.natural(**named_q), case.family.natural(**named_p))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(peer(named_q), peer(named_p)))


def test_gaussian_data_give_the_textbook_posterior():
    """Murphy (2012), equations 4.210 to 4.213."""
    case, x = CASES["NormalInverseWishart"], normal(20, D) @ positive_definite(size=D)
    prior = {name: value[0] for name, value in case.named().items()}
    eta = case.family.natural(**prior)
    counts = {"precision": x.mT @ x, "linear": x.sum(0), "quadratic": 20.0, "log_det": 20.0}
    posterior = case.family.named({name: eta[name] + counts[name] for name in eta})
    mean, kappa = x.mean(0), prior["strength"]
    shift = mean - prior["location"]
    scatter = (x - mean).mT @ (x - mean) + kappa * 20 / (kappa + 20) * torch.outer(shift, shift)
    close(
        posterior,
        {
            "location": (kappa * prior["location"] + 20 * mean) / (kappa + 20),
            "strength": kappa + 20,
            "scale": prior["scale"] + scatter,
            "degrees": prior["degrees"] + 20,
        },
    )


def test_regression_data_give_the_textbook_posterior():
    """Least squares with a ridge towards the prior's coefficients."""
    case, r, y = CASES["MatrixNormalInverseWishart"], normal(20, R), normal(20, D)
    prior = {name: value[0] for name, value in case.named().items()}
    eta = case.family.natural(**prior)
    counts = {"precision": y.mT @ y, "linear": y.mT @ r, "quadratic": r.mT @ r, "log_det": 20.0}
    posterior = case.family.named({name: eta[name] + counts[name] for name in eta})
    gram = prior["column_precision"] + r.mT @ r
    location = torch.linalg.solve(gram, prior["column_precision"] @ prior["location"].mT + r.mT @ y).mT
    residual, ridge = y - r @ location.mT, location - prior["location"]
    close(
        posterior,
        {
            "location": location,
            "column_precision": gram,
            "scale": prior["scale"] + residual.mT @ residual + ridge @ prior["column_precision"] @ ridge.mT,
            "degrees": prior["degrees"] + 20,
        },
    )


def test_an_observation_adds_its_own_statistics_and_nothing_else():
    """Evidence of one observation, by the change of A, is the Student t that the textbook gives."""
    family, named = CASES["NormalInverseWishart"].family, CASES["NormalInverseWishart"].named()
    eta, x = family.natural(**named), normal(K, D)
    counts = {"precision": x[:, :, None] * x[:, None, :], "linear": x, "quadratic": 1.0, "log_det": 1.0}
    updated = {name: eta[name] + counts[name] for name in eta}
    evidence = family.log_normalizer(updated) - family.log_normalizer(eta) - D / 2 * math.log(2 * math.pi)
    df, kappa = named["degrees"] - D + 1, named["strength"]
    spread = named["scale"] * ((kappa + 1) / (kappa * df))[:, None, None]
    peer = dist.MultivariateStudentT(df, named["location"], torch.linalg.cholesky(spread))
    torch.testing.assert_close(evidence, peer.log_prob(x))


def test_normal_gamma_is_the_normal_inverse_wishart_of_one_dimension():
    named = CASES["NormalGamma"].named()
    scalar, matrix = NormalGamma(), NormalInverseWishart()
    eta = scalar.natural(**named)
    same = matrix.natural(
        location=named["location"][..., None],
        strength=named["strength"],
        scale=2 * named["rate"][..., None, None],
        degrees=2 * named["shape"],
    )
    torch.testing.assert_close(scalar.log_normalizer(eta), matrix.log_normalizer(same))
    close(scalar.expected(eta), {n: v.reshape(K, D) for n, v in matrix.expected(same).items()})


@pytest.mark.parametrize(
    ("family", "peer", "counts"),
    [
        (Gamma("rate"), lambda v: dist.Poisson(v), lambda y: {"log": y, "value": -torch.ones_like(y)}),
        (Beta("p"), lambda v: dist.Bernoulli(v), lambda y: {"log_one": y, "log_zero": 1 - y}),
    ],
)
def test_counts_are_the_likelihood(family, peer, counts):
    """<counts, t(theta)> is the log likelihood up to a constant in theta."""
    first, second = uniform(0.1, 0.9, K), uniform(0.1, 0.9, K)
    y = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ours = [family.inner(counts(y), family.statistic({family.site: theta})) for theta in (first, second)]
    theirs = [peer(theta).log_prob(y) for theta in (first, second)]
    torch.testing.assert_close(ours[0] - ours[1], theirs[0] - theirs[1])


@pytest.mark.parametrize("offset", [1.0, 1e3, 1e5])
def test_scale_keeps_its_digits_far_from_the_origin(offset):
    """The natural parameters hold offset², so at most log10(offset²) of 16 digits are lost, and never definiteness."""
    scale = positive_definite(size=D)
    family = NormalInverseWishart()
    eta = family.natural(location=torch.full((D,), offset).double(), strength=3.0, scale=scale, degrees=D + 2.0)
    family.check(eta)
    torch.testing.assert_close(family.named(eta)["scale"], scale, rtol=1e-13 * max(1, offset**2), atol=0)


def test_one_improper_member_shows_as_nan_and_spares_the_others():
    eta = CASES["NormalInverseWishart"].family.natural(**CASES["NormalInverseWishart"].named())
    broken = {**eta, "precision": torch.stack([eta["precision"][0], -torch.eye(D).double()])}
    family = CASES["NormalInverseWishart"].family
    assert family.log_normalizer(broken)[1].isnan()
    torch.testing.assert_close(family.log_normalizer(broken)[0], family.log_normalizer(eta)[0])
