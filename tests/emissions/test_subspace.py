import pytest
import torch
from dense import condition, log_normal, normal, spd, z_score

from ppgen.emissions.subspace import SMALLEST_LOSS, Subspace
from ppgen.errors import DataError

F, D = 7, 2
NOISE = 0.3
DRAWS = 20_000


@pytest.fixture
def subspace():
    basis = torch.linalg.qr(normal(F, D)).Q
    return Subspace(normal(F), basis, torch.tensor([1.5, 0.4]), NOISE)


@pytest.fixture
def prior():
    """A Gaussian over the latent of one row."""
    return normal(D), spd(size=D)


def joint(subspace, prior, missing=None):
    """Dense Gaussian over the features; variances of what is known exactly as `Subspace` keeps them finite."""
    mean, covariance = prior
    residual = torch.eye(F).double() - subspace.basis @ subspace.basis.mT
    if missing is not None:
        g, U = torch.linalg.eigh(subspace.basis[missing].mT @ subspace.basis[missing])
        kept = subspace.basis * (~missing)[:, None] @ U[:, g < SMALLEST_LOSS]
        lift = (SMALLEST_LOSS - g[g < SMALLEST_LOSS]) / (1 - g[g < SMALLEST_LOSS])
        residual = residual + kept @ torch.diag(lift) @ kept.mT
    loading = subspace.basis * subspace.scale
    return subspace.mean + loading @ mean, loading @ covariance @ loading.mT + subspace.noise * residual


def integrate(evidence, prior):
    """Log of the integral of the prior times the potential of the first row."""
    mean, covariance = prior
    prior_precision = torch.linalg.inv(covariance)
    precision = prior_precision + evidence.precision[0]
    shift = prior_precision @ mean + evidence.information[0]
    log_dets = torch.logdet(prior_precision) - torch.logdet(precision)
    quadratic = shift @ torch.linalg.solve(precision, shift) - mean @ prior_precision @ mean
    return evidence.constant[0] + (log_dets + quadratic) / 2


def hide(row, *features):
    row = row.clone()
    row[list(features)] = torch.nan
    return row


@pytest.mark.parametrize("hidden", [(0, 1, 2), (0, 3, 4, 6), (1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5)])
def test_evidence_of_a_partial_row_is_that_of_the_dense_gaussian(subspace, prior, hidden):
    row = hide(subspace.mean + normal(F), *hidden)
    evidence = subspace.evidence(row[None])
    torch.testing.assert_close(
        integrate(evidence, prior), log_normal(row, *joint(subspace, prior)), rtol=1e-8, atol=1e-8
    )
    assert not evidence.known.any()


@pytest.mark.parametrize("hidden", [(0,), (6,)])
def test_what_a_row_fixes_exactly_is_kept_finite_and_is_still_a_density(subspace, prior, hidden):
    """With fewer missing features than components some directions of the latent are known exactly."""
    row = hide(subspace.mean + 3 * normal(F), *hidden)
    value = integrate(subspace.evidence(row[None]), prior)
    torch.testing.assert_close(value, log_normal(row, *joint(subspace, prior, row.isnan())), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(value, log_normal(row, *joint(subspace, prior)), rtol=0, atol=0.02)


def test_a_complete_row_is_known_and_scored_with_the_jacobian(subspace, prior):
    row = subspace.mean + normal(F)
    evidence = subspace.evidence(row[None])
    assert evidence.known.all()
    h = evidence.value[0]
    value = evidence.constant[0] + torch.distributions.MultivariateNormal(*prior).log_prob(h)
    torch.testing.assert_close(value, log_normal(row, *joint(subspace, prior)))
    torch.testing.assert_close(h, (row - subspace.mean) @ subspace.basis / subspace.scale)


def test_losing_little_comes_near_to_losing_nothing():
    """A feature outside the subspace tells nothing: without it the latent stays known, up to the finite precision."""
    basis = torch.eye(F, D).double()
    subspace = Subspace(torch.zeros(F), basis, torch.ones(D), NOISE)
    row = normal(F)
    partial, whole = subspace.evidence(hide(row, 6)[None]), subspace.evidence(row[None])
    mean = torch.linalg.solve(partial.precision[0], partial.information[0])
    torch.testing.assert_close(mean, whole.value[0], rtol=1e-3, atol=1e-3)
    assert (torch.linalg.eigvalsh(partial.precision[0]) > 0.99 / (NOISE * SMALLEST_LOSS)).all()


def test_losing_a_whole_direction_leaves_nothing_known_of_it():
    basis = torch.eye(F, D).double()
    subspace = Subspace(torch.zeros(F), basis, torch.ones(D), NOISE)
    evidence = subspace.evidence(hide(normal(F), 0)[None])
    assert evidence.precision[0, 0].abs().max() < 1e-9
    assert evidence.information[0, 0].abs() < 1e-9


def test_an_empty_row_says_nothing(subspace):
    evidence = subspace.evidence(torch.full((2, F), torch.nan).double())
    assert not evidence.known.any()
    assert len(evidence.partial) == 0
    assert evidence.constant.tolist() == [0, 0]


def test_each_row_of_a_batch_is_answered_by_itself(subspace):
    rows = normal(6, F)
    rows[1, 0] = rows[2, 3:] = rows[3, :5] = rows[5] = torch.nan
    together = subspace.evidence(rows)
    assert together.known.all(-1).tolist() == [True, False, False, False, True, False]
    alone = [subspace.evidence(row[None]) for row in rows]
    torch.testing.assert_close(together.constant, torch.cat([e.constant for e in alone]))
    for i, row in enumerate(together.partial.tolist()):
        torch.testing.assert_close(together.precision[i], alone[row].precision[0])
        torch.testing.assert_close(together.information[i], alone[row].information[0])


@pytest.mark.parametrize("hidden", [(0, 1, 2), (0, 1, 3, 4, 5), tuple(range(F))])
def test_filled_features_have_the_moments_of_the_dense_conditional(subspace, hidden):
    """Given the latent and what is seen. z below 5 for at most 7 means and 28 products: false-alarm rate below 3e-5."""
    h, row = normal(D), subspace.mean + normal(F)
    fixed = (h, torch.zeros(D, D).double())
    mean, covariance = joint(subspace, fixed)
    row = row - (row - mean) @ subspace.basis @ subspace.basis.mT  # a residual that the latent h leaves
    row = hide(row, *hidden)
    wanted, spread = condition(row, mean, covariance)
    drawn = subspace.fill(row.expand(DRAWS, F), h.expand(DRAWS, D))
    assert torch.equal(drawn[:, ~row.isnan()], row[~row.isnan()].expand(DRAWS, -1))
    missing = drawn[:, row.isnan()]
    assert z_score(missing, wanted) < 5
    products = (missing - wanted)[:, :, None] * (missing - wanted)[:, None]
    assert z_score(products.flatten(1), spread.flatten()) < 5


def test_a_filled_row_lies_where_its_latent_says(subspace):
    """The projection of the filled row is the latent it was filled for."""
    h, row = normal(4, D), hide(subspace.mean + normal(F), 0, 2, 5)
    filled = subspace.fill(row.expand(4, F), h)
    torch.testing.assert_close((filled - subspace.mean) @ subspace.basis / subspace.scale, h)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": torch.ones(F, D)}, "Subspace: the columns of basis must be orthonormal"),
        ({"mean": torch.zeros(3)}, r"Subspace: mean \(F,\), basis \(F, D\) and scale \(D,\) must agree, got \(3,\)"),
        ({"noise": 0.0}, "Subspace: noise and scale must be positive, got noise 0.0"),
        ({"noise": float("nan")}, "Subspace: noise and scale must be positive"),
        ({"scale": -torch.ones(D)}, "Subspace: noise and scale must be positive"),
        ({"basis": torch.zeros(F)}, r"must agree, got \(7,\), \(7,\) and \(2,\)"),
        ({"mean": torch.full((F,), torch.nan)}, "Subspace: mean must be finite"),
    ],
)
def test_bad_arguments_are_refused_in_words(changes, message):
    good = {"mean": torch.zeros(F), "basis": torch.eye(F, D), "scale": torch.ones(D), "noise": 1.0}
    with pytest.raises(DataError, match=message):
        Subspace(**{**good, **changes})
