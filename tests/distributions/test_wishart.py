"""Distributions over precisions and over coefficients given them."""

import math

import pyro
import pytest
import scipy.stats
import torch
from pyro import distributions as dist
from pyro.infer import MCMC, NUTS
from torch.distributions import biject_to

from ppgen.distributions import MatrixNormal, PrecisionNormal, WishartCholesky
from ppgen.distributions.wishart import cholesky, expected_log_det, log_multivariate_gamma

D, R, DRAWS = 3, 2, 40_000
# 5 standard errors: two-sided false-alarm rate 6e-7 for one Gaussian comparison, below 2e-5 for the 30 of a test.
Z_LIMIT = 5.0


def positive_definite(*batch, size):
    root = torch.randn(*batch, size, size + 2, dtype=torch.float64)
    return root @ root.mT


def z_score(draws, expected):
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


@pytest.fixture
def wishart():
    return WishartCholesky(torch.tensor(D + 1.5, dtype=torch.float64), torch.linalg.cholesky(positive_definite(size=D)))


def free_entries(factor):
    rows, columns = torch.tril_indices(D, D)
    return factor[..., rows, columns]


def log_jacobian(factor):
    """log |dΛ/dL| over the free entries, by differentiating Λ = LL' entry by entry."""
    rows, columns = torch.tril_indices(D, D)

    def product(entries):
        built = torch.zeros(D, D, dtype=entries.dtype).index_put((rows, columns), entries)
        return (built @ built.mT)[rows, columns]

    return torch.linalg.slogdet(torch.func.jacrev(product)(free_entries(factor))).logabsdet


def test_density_of_the_factor_is_scipys_wishart_times_the_jacobian(wishart):
    scale = wishart.scale_cholesky @ wishart.scale_cholesky.mT
    for factor in wishart.sample((20,)):
        peer = scipy.stats.wishart.logpdf((factor @ factor.mT).numpy(), df=wishart.df.item(), scale=scale.numpy())
        torch.testing.assert_close(
            wishart.log_prob(factor).item() - log_jacobian(factor).item(), peer, rtol=1e-10, atol=1e-10
        )


def test_density_in_one_dimension_is_the_chi_square():
    df, scale = torch.tensor(4.5, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    root = torch.tensor(1.3, dtype=torch.float64)
    peer = dist.Gamma(df / 2, 1 / (2 * scale)).log_prob(root.square()) + math.log(2 * root)
    ours = WishartCholesky(df, scale.sqrt()[None, None]).log_prob(root[None, None])
    torch.testing.assert_close(ours, peer)


def test_draws_are_lower_factors_with_the_moments_of_the_wishart(wishart):
    factors = wishart.sample((DRAWS,))
    assert wishart.support.check(factors).all()
    scale = wishart.scale_cholesky @ wishart.scale_cholesky.mT
    precisions = factors @ factors.mT
    diagonal = scale.diagonal()
    variance = wishart.df * (scale.square() + diagonal[:, None] * diagonal)
    assert z_score(precisions, wishart.df * scale).abs().max() < Z_LIMIT
    assert z_score((precisions - wishart.df * scale).square(), variance).abs().max() < Z_LIMIT
    log_det = 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    assert z_score(log_det, expected_log_det(wishart.df, wishart.scale_cholesky)).abs() < Z_LIMIT


def test_draws_of_the_factor_have_its_mean(wishart):
    assert z_score(free_entries(wishart.sample((DRAWS,))), free_entries(wishart.mean)).abs().max() < Z_LIMIT


def test_density_integrates_to_one(wishart):
    # Importance sampling from another Wishart with heavier tails; the weights' mean is one within 5 standard errors.
    other = WishartCholesky(wishart.df - 1, 1.3 * wishart.scale_cholesky)
    factors = other.sample((DRAWS,))
    assert z_score((wishart.log_prob(factors) - other.log_prob(factors)).exp(), 1.0).abs() < Z_LIMIT


def test_a_reparametrised_draw_moves_with_its_parameters(wishart):
    # d E[log|Λ|] / d(df) is half the sum of trigammas: the pathwise gradient must agree with it.
    df = wishart.df.clone().requires_grad_()
    draws = WishartCholesky(df.expand(DRAWS), wishart.scale_cholesky.expand(DRAWS, D, D)).rsample()
    log_det = 2 * draws.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    (ours,) = torch.autograd.grad(log_det.mean(), df)
    (exact,) = torch.autograd.grad(expected_log_det(df, wishart.scale_cholesky), df)
    # The gradient of one draw has a standard deviation of a few units; 1 % of 40,000 draws is over 5 standard errors.
    torch.testing.assert_close(ours, exact, rtol=0.02, atol=0)


def test_the_support_has_a_bijection_from_flat_space(wishart):
    transform = biject_to(wishart.expand((5,)).to_event(1).support)
    assert transform.inverse_shape((5, D, D)) == (5, D * (D + 1) // 2)
    assert transform.forward_shape((5, D * (D + 1) // 2)) == (5, D, D)
    flat = torch.randn(5, D * (D + 1) // 2, dtype=torch.float64)
    factors = transform(flat)
    assert wishart.support.check(factors).all()
    torch.testing.assert_close(transform.inv(factors), flat)
    torch.testing.assert_close(torch.func.vmap(biject_to(wishart.support))(flat), factors)


def test_the_bijection_knows_its_jacobian(wishart):
    transform, flat = biject_to(wishart.support), torch.randn(D * (D + 1) // 2, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda entries: free_entries(transform(entries)))(flat)
    log_det = transform.log_abs_det_jacobian(flat, transform(flat))
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet)


def test_no_factor_has_five_free_entries(wishart):
    with pytest.raises(ValueError, match=r"D \(D \+ 1\) / 2 entries, got 5"):
        biject_to(wishart.support)(torch.zeros(5))


@pytest.mark.slow
def test_nuts_explores_the_wishart_itself(wishart):
    sampler = MCMC(NUTS(lambda: pyro.sample("factor", wishart)), 1500, 300, disable_progbar=True)
    sampler.run()
    log_det = 2 * sampler.get_samples()["factor"].diagonal(dim1=-2, dim2=-1).log().sum(-1)
    exact = expected_log_det(wishart.df, wishart.scale_cholesky)
    # At least a quarter of the draws count as independent: 5 standard errors, false-alarm rate below 1e-6.
    assert (log_det.mean() - exact).abs() < 5 * log_det.std() / math.sqrt(1500 / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions_keep_the_dtype_of_their_parameters(dtype):
    factor = torch.eye(D, dtype=dtype)
    for made in (
        WishartCholesky(D + 1.0, factor),
        MatrixNormal(torch.zeros(D, R, dtype=dtype), factor, torch.eye(R, dtype=dtype)),
        PrecisionNormal(torch.zeros(D, dtype=dtype), factor, 2.0),
    ):
        value = made.sample((4,))
        assert value.dtype == made.log_prob(value).dtype == made.mean.dtype == dtype
        assert made.log_prob(value).isfinite().all()


def test_expanding_repeats_the_distribution(wishart):
    made = [
        wishart,
        MatrixNormal(torch.randn(D, R).double(), wishart.scale_cholesky, torch.eye(R).double()),
        PrecisionNormal(torch.randn(D).double(), wishart.scale_cholesky, 2.0),
    ]
    for one in made:
        many = one.expand(torch.Size((2, 4)))
        value = many.sample((3,))
        assert value.shape == (3, 2, 4, *one.event_shape)
        torch.testing.assert_close(many.log_prob(value), one.log_prob(value))


@pytest.mark.parametrize(("df", "match"), [(D - 1.0, "df"), (float("nan"), "df")])
def test_too_few_degrees_are_refused(df, match):
    with pytest.raises(ValueError, match=match):
        WishartCholesky(df, torch.eye(D, dtype=torch.float64), validate_args=True)


def test_a_factor_that_is_not_lower_is_refused():
    with pytest.raises(ValueError, match="scale_cholesky"):
        WishartCholesky(5.0, torch.ones(D, D, dtype=torch.float64), validate_args=True)


@pytest.fixture
def matrix_normal():
    rows, columns = (torch.linalg.cholesky(positive_definite(4, size=size)) for size in (D, R))
    return MatrixNormal(torch.randn(4, D, R, dtype=torch.float64), rows, columns)


def flattened(matrix_normal):
    """The same Gaussian over the stacked rows."""
    rows, columns = (f @ f.mT for f in (matrix_normal.row_precision_cholesky, matrix_normal.column_precision_cholesky))
    precision = torch.stack([torch.kron(a, b) for a, b in zip(rows, columns, strict=True)])
    return dist.MultivariateNormal(matrix_normal.location.flatten(-2), precision_matrix=precision)


def test_matrix_normal_density_is_that_of_the_stacked_vector(matrix_normal):
    value = matrix_normal.sample((7,))
    torch.testing.assert_close(matrix_normal.log_prob(value), flattened(matrix_normal).log_prob(value.flatten(-2)))


def test_matrix_normal_draws_have_the_covariance_of_the_stacked_vector(matrix_normal):
    peer, draws = flattened(matrix_normal), matrix_normal.sample((DRAWS,)).flatten(-2)
    centred = draws - peer.mean
    assert z_score(draws, peer.mean).abs().max() < Z_LIMIT
    products = centred[..., :, None] * centred[..., None, :]
    # 4 batches of 36 products: false-alarm rate below 1e-4.
    assert z_score(products, peer.covariance_matrix).abs().max() < Z_LIMIT
    torch.testing.assert_close(matrix_normal.variance.flatten(-2), peer.variance)


def test_precision_normal_is_the_gaussian_with_that_precision():
    factor, location = torch.linalg.cholesky(positive_definite(4, size=D)), torch.randn(4, D, dtype=torch.float64)
    strength = torch.rand(4, dtype=torch.float64) + 0.5
    ours = PrecisionNormal(location, factor, strength)
    precision = strength[:, None, None] * factor @ factor.mT
    peer = dist.MultivariateNormal(location, precision_matrix=precision)
    value = ours.sample((7,))
    assert value.shape == (7, 4, D)
    torch.testing.assert_close(ours.log_prob(value), peer.log_prob(value))
    torch.testing.assert_close(ours.variance, peer.variance)


def test_one_bad_matrix_does_not_spoil_a_batch_nor_pass_unseen():
    matrices = positive_definite(3, size=D)
    matrices[1] = -torch.eye(D)
    factors = cholesky(matrices)
    assert factors[1].isnan().any()
    torch.testing.assert_close(factors[::2], torch.linalg.cholesky(matrices[::2]))


def test_multivariate_gamma_is_scipys():
    half_df = torch.tensor([1.6, 4.0, 300.0], dtype=torch.float64)
    peer = torch.tensor([scipy.special.multigammaln(v, D) for v in half_df.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_multivariate_gamma(half_df, D), peer)
