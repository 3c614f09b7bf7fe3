"""Principal components of rows with holes."""

import json

import numpy as np
import pytest

from ppgen.errors import DataError
from ppgen.pose.incomplete import complete, fit_gaussian
from ppgen.pose.pca import PrincipalComponents, fit_pca


def subspace_data(n=1500, features=12, width=3, noise=0.05, missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(features, width)))[0]
    x = rng.normal(size=(n, width)) * [3.0, 2.0, 1.0] @ basis.T + rng.normal(size=features)
    x += noise * rng.normal(size=x.shape)
    full = x.copy()
    x[rng.random(x.shape) < missing] = np.nan
    return x, full, basis


def angle(a, b):
    """Largest principal angle between two subspaces."""
    return np.arccos(np.clip(np.linalg.svd(a.T @ b)[1].min(), -1, 1))


def test_complete_data_gives_textbook_components():
    x, _, _ = subspace_data()
    fit = fit_pca(x, 3)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    np.testing.assert_allclose(fit.scale**2, values[::-1][:3], rtol=1e-6)
    np.testing.assert_allclose(np.abs(np.sum(fit.basis * vectors[:, ::-1][:, :3], 0)), 1, atol=1e-8)
    np.testing.assert_allclose(fit.noise, values[:-3].mean(), rtol=1e-5)
    np.testing.assert_allclose(fit.basis.T @ fit.basis, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(fit.project(x).std(0), 1, rtol=1e-6)
    assert fit.explained.sum() == pytest.approx(1)


def test_thirty_per_cent_missing_beats_filling_with_the_mean():
    x, full, basis = subspace_data(missing=0.3)
    fit = fit_pca(x, 3)
    filled = np.where(np.isnan(x), np.nanmean(x, 0), x)
    naive = np.linalg.eigh(np.cov(filled.T))[1][:, ::-1][:, :3]
    # The mean-filled scales are shrunk by about the missing share; ours are not.
    assert angle(fit.basis, basis) < 0.2 * angle(naive, basis)
    np.testing.assert_allclose(fit.scale, fit_pca(full, 3).scale, rtol=0.02)
    error = np.sqrt(np.mean((fit.reconstruct(fit.project(x)) - full)[np.isnan(x)] ** 2))
    naive_error = np.sqrt(np.mean((filled - full)[np.isnan(x)] ** 2))
    assert error < 0.2 * naive_error


def test_em_reaches_a_maximum_of_the_likelihood():
    x, _, _ = subspace_data(n=300, features=5, noise=0.5, missing=0.2)

    def log_likelihood(mean, covariance):
        total = 0.0
        for row in x:
            seen = ~np.isnan(row)
            block, off = covariance[np.ix_(seen, seen)], (row - mean)[seen]
            total -= 0.5 * (np.linalg.slogdet(block)[1] + off @ np.linalg.solve(block, off))
        return total

    mean, covariance = fit_gaussian(x, tol=1e-9, steps=2000)
    best = log_likelihood(mean, covariance)
    rng = np.random.default_rng(0)
    for _ in range(20):
        change = rng.normal(size=covariance.shape) * 0.01
        other = covariance + change @ covariance + covariance @ change.T
        assert log_likelihood(mean + 0.01 * rng.normal(size=5), other) < best


def test_a_narrow_model_finds_the_subspace_better_when_rows_are_few():
    # Over 20 data sets the mean angles are 0.42 and 0.51 rad, 4.5 standard errors apart; the seeds here are fixed.
    angles = []
    for seed in range(8):
        x, _, basis = subspace_data(n=50, features=20, noise=0.4, missing=0.4, seed=seed)
        fits = [fit_gaussian(x, rank=rank)[1] for rank in (None, 3)]
        angles.append([angle(np.linalg.eigh(c)[1][:, -3:], basis) for c in fits])
    wide, narrow = np.mean(angles, 0)
    assert narrow < 0.93 * wide


def test_completion_is_the_conditional_mean_and_leaves_seen_entries_alone():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    covariance, mean = root @ root.T, rng.normal(size=4)
    x = rng.normal(size=(3, 4))
    x[0, [1, 3]] = np.nan
    x[2] = np.nan
    filled, leftover = complete(x, mean, covariance)
    gain = covariance[np.ix_([1, 3], [0, 2])] @ np.linalg.inv(covariance[np.ix_([0, 2], [0, 2])])
    np.testing.assert_allclose(filled[0, [1, 3]], mean[[1, 3]] + gain @ (x[0, [0, 2]] - mean[[0, 2]]), rtol=1e-10)
    assert filled[0, 0] == x[0, 0]
    assert (filled[1] == x[1]).all()
    np.testing.assert_allclose(filled[2], mean)
    expected = covariance.copy()
    expected[np.ix_([1, 3], [1, 3])] += covariance[np.ix_([1, 3], [1, 3])] - gain @ covariance[np.ix_([0, 2], [1, 3])]
    np.testing.assert_allclose(leftover, expected, atol=1e-10)


def test_the_width_follows_the_share_of_variance():
    x, _, _ = subspace_data(noise=0.01)
    assert fit_pca(x, variance=0.6).basis.shape[1] == 1
    assert fit_pca(x, variance=0.99).basis.shape[1] == 3
    assert fit_pca(x, variance=1.0).basis.shape[1] == 12


def test_signs_and_fits_do_not_depend_on_luck():
    x, _, _ = subspace_data(missing=0.1)
    a, b = fit_pca(x, 2), fit_pca(x.copy(), 2)
    assert a.basis.tobytes() == b.basis.tobytes()
    assert (a.basis[np.abs(a.basis).argmax(0), [0, 1]] > 0).all()
    again = PrincipalComponents.from_dict(json.loads(json.dumps(a.to_dict())))
    assert again.project(x).tobytes() == a.project(x).tobytes()


def test_a_row_without_anything_has_no_coordinates_and_others_are_not_touched():
    x, _, _ = subspace_data(missing=0.1)
    x[7] = np.nan
    h = fit_pca(x, 2).project(x.reshape(3, 500, 12))
    assert h.shape == (3, 500, 2)
    assert np.isnan(h[0, 7]).all()
    assert np.isnan(h).sum() == 2


def test_long_data_is_thinned_but_says_the_same():
    x, _, basis = subspace_data(n=20_000, missing=0.05)
    assert angle(fit_pca(x, 3, max_rows=2000).basis, basis) < 0.02


def test_constant_and_hidden_features_do_not_break_it():
    x, _, _ = subspace_data(n=200, missing=0.1)
    x[:, 4] = 2.0
    fit = fit_pca(x, 3)
    assert np.isfinite(fit.project(x)).all()
    assert fit.noise > 0


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.full((4, 2), np.nan), {}, "at least 2 rows with something observed, got 0"),
        (np.ones((4, 2)), {}, "every feature is constant"),
        (np.array([[1.0, np.nan], [2.0, np.nan]]), {}, r"\[1\] never are; drop them"),
        (np.array([[1.0, np.inf], [2.0, 1.0]]), {}, "must be finite or NaN"),
        (np.eye(3), {"components": 4}, r"components must lie in 1-3 \(the features\), got 4"),
        (np.eye(3), {"variance": 0.0}, "variance must lie in 0-1"),
    ],
)
def test_impossible_requests_are_refused_in_words(x, options, message):
    with pytest.raises(DataError, match=message):
        fit_pca(x, **options)
