"""Gaussian mixtures: against brute force over components, scikit-learn, and data of known components."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from dense import normal
from sklearn.mixture import BayesianGaussianMixture

from ppgen.errors import DataError
from ppgen.expecting import observed_given
from ppgen.inference import mcmc, vb
from ppgen.models.gmm import GMM

CENTERS = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.5, -1.5]]).double()


def rows(count=300, missing=0.0):
    z = torch.randint(3, (count,))
    x = CENTERS[z] + 0.4 * normal(count, 2)
    return z, torch.where(torch.rand(x.shape) < missing, torch.nan, x)


def fit(model, x, **options):
    return vb.fit(model, x, **{"random_seed": 1, "progressbar": False, **options})


def drawn(model):
    theta = {}
    for factor in model.natural_prior().values():
        theta |= {site: value[0] for site, value in factor.family.sample(factor.eta, 1).items()}
    return theta, {name: factor.family.statistic(theta) for name, factor in model.natural_prior().items()}


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
def test_the_evidence_is_the_sum_over_components_of_the_marginal_of_what_was_seen(covariance):
    model = GMM(3, 2, covariance=covariance)
    theta, s = drawn(model)
    x = normal(4, 2)
    x[0, 1] = x[1, 0] = x[2] = torch.nan
    value = observed_given(model, s, x, None)["x"].distribution.log_prob(x)
    for row, found in zip(x, value, strict=True):
        seen, scores = ~row.isnan(), []
        for k in range(3):
            if covariance == "full":
                root = theta["precision_cholesky"][k]
                spread = torch.linalg.inv(root @ root.mT)
            else:
                spread = torch.diag((1 / theta["precision"][k]).expand(2))
            if seen.any():
                marginal = torch.distributions.MultivariateNormal(theta["location"][k][seen], spread[seen][:, seen])
                scores.append(theta["weights"][k].log() + marginal.log_prob(row[seen]))
        wanted = torch.stack(scores).logsumexp(0) if scores else torch.zeros(()).double()
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_weights_of_a_dirichlet_process_add_up_to_one():
    model = GMM(6, 1, nonparametric=True)
    theta, s = drawn(model)
    weights = model._log_weights(s["weights"]).exp()
    left = torch.cat([torch.ones(1).double(), (1 - theta["stick"]).cumprod(0)])
    torch.testing.assert_close(weights, torch.cat([theta["stick"], torch.ones(1).double()]) * left)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_the_bound_and_the_posterior_are_those_of_scikit_learn(covariance):
    """The same prior and the same optimum: its normal-Wishart has the same mean, strength, degrees and scale."""
    _, x = rows(200)
    model = GMM(3, 2, covariance=covariance, concentration=3.0)
    found = fit(model, x, tol=1e-10, max_steps=500)
    peer = BayesianGaussianMixture(
        n_components=3, covariance_type={"full": "full", "diagonal": "diag"}[covariance], tol=1e-12, max_iter=2000,
        n_init=5,
        weight_concentration_prior_type="dirichlet_distribution", weight_concentration_prior=1.0,
        mean_precision_prior=0.1, mean_prior=np.zeros(2), degrees_of_freedom_prior=4.0 if covariance == "full" else 3.0,
        covariance_prior=np.eye(2) if covariance == "full" else np.ones(2), random_state=0,
    ).fit(x.numpy())  # fmt: skip
    factors = found.posterior.factors
    order = factors["emission"].family.named(factors["emission"].eta)["location"][:, 0].argsort()
    theirs = peer.means_[:, 0].argsort()
    named = factors["emission"].family.named(factors["emission"].eta)
    weights = factors["weights"].eta["log_probability"]
    np.testing.assert_allclose(named["location"][order].numpy(), peer.means_[theirs], atol=1e-4)
    np.testing.assert_allclose(weights[order].numpy(), peer.weight_concentration_[theirs], atol=1e-2)
    if covariance == "full":
        np.testing.assert_allclose(named["degrees"][order].numpy(), peer.degrees_of_freedom_[theirs], atol=1e-2)


def test_components_are_found_with_a_third_of_the_entries_missing():
    z, x = rows(400, missing=0.3)
    found = fit(GMM(3, 2), x, n_init=3).order("component", by="location", feature=0)
    seen = ~x.isnan().any(1)
    order = CENTERS[:, 0].argsort().argsort()[z]
    latent = torch.from_numpy(found.latents(x)["z_mode"].values)
    assert (latent[seen] == order[seen]).double().mean() > 0.97


def test_predicted_entries_follow_the_component_that_the_rest_of_the_row_names():
    _, x = rows(500)
    found = fit(GMM(3, 2), x, n_init=3)
    ask = torch.tensor([[-2.0, torch.nan], [torch.nan, 1.5], [0.3, 0.2]], dtype=torch.float64)
    answer = found.predict(ask, draws=400, random_seed=0)
    assert abs(float(answer["estimate"][0, 1]) - 0.0) < 0.15
    assert abs(float(answer["estimate"][1, 0]) - 1.0) < 0.3
    assert answer["estimate"].values[2].tolist() == [0.3, 0.2]
    assert float(answer["sd"][2].max()) == 0.0
    assert answer["quantiles"].dims == ("quantile", "row", "feature")


def test_the_dirichlet_process_empties_the_components_that_the_data_do_not_need():
    _, x = rows(300)
    found = fit(GMM(10, 2, nonparametric=True), x, n_init=3)
    use = np.sort(found.latents(x)["z"].mean("row").values)
    assert use[-3:].min() > 0.25
    assert use[-3:].sum() > 0.95


def test_minibatches_end_near_the_optimum_of_all_rows():
    _, x = rows(2000)
    whole, parts = fit(GMM(3, 2), x), fit(GMM(3, 2), x, batch_size=200, max_steps=300)
    assert abs(whole.history.elbo.iloc[-1] - parts.history.elbo.iloc[-1]) < 0.01 * abs(whole.history.elbo.iloc[-1])


def test_mcmc_and_vb_agree_on_well_separated_components():
    """Means of 3 x 2 locations within 4.5 Monte Carlo errors of each other's and .05: vb is right to that."""
    _, x = rows(150)
    chains = mcmc.fit(GMM(3, 2), x, random_seed=1, progressbar=False, draws=60, chains=16)
    chains = chains.order("component", by="location", feature=0)
    factors = fit(GMM(3, 2), x).order("component", by="location", feature=0)
    one = chains.posterior.draws(900)["location"].mean(0)
    two = factors.posterior.draws(900)["location"].mean(0)
    assert (one - two).abs().max() < 0.1


def test_a_row_never_seen_a_constant_and_a_twin_column_are_no_trouble():
    _, x = rows(80)
    x = torch.cat([x, x[:, :1], torch.zeros(80, 1).double()], 1)
    x[3] = torch.nan
    found = fit(GMM(2, 4), x)
    assert torch.isfinite(torch.tensor(found.history.elbo.values)).all()
    assert float(found.log_likelihood(x, random_seed=0)[3]) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GMM(0, 2), "components must be a whole number of at least 1, got 0"),
        (lambda: GMM(1, 2, nonparametric=True), "components must be at least 2 with nonparametric=True"),
        (lambda: GMM(2, 2, covariance="tied"), 'covariance must be "full"'),
        (lambda: GMM(2, 2, concentration=-1.0), "concentration must be positive"),
        (lambda: fit(GMM(9, 2), normal(5, 2)), "at least as many rows as components .9., got 5"),
        (lambda: fit(GMM(2, 2), normal(5, 3)), r"GMM, Gaussian: x must have shape \(N, D=2\)"),
        (lambda: fit(GMM(2, 2), normal(20, 2), u=normal(20, 1)), "takes no inputs"),
        (lambda: fit(GMM(2, 2), normal(20, 2), start="best"), 'a start is "kmeans" or "random"'),
        (lambda: fit(GMM(2, 2), normal(20, 2) / 1000), "in units of about the prior's"),
    ],
)
def test_bad_input_is_refused_in_words(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_the_density_integrates_to_one():
    """A lattice of 401 x 401 points: off by less than 1e-6."""
    model = GMM(2, 2, scale=0.5, strength=5.0)
    _, s = drawn(model)
    axis = torch.linspace(-30, 30, 401).double()
    points = torch.cartesian_prod(axis, axis)
    value = observed_given(model, s, points, None)["x"].distribution.log_prob(points)
    step = 2 * math.log(60 / 400)
    assert float(torch.logsumexp(value, 0)) + step == pytest.approx(0, abs=2e-2)


def test_sites_have_the_names_of_the_features_with_and_without_the_data():
    frame = pd.DataFrame(rows(60)[1].numpy(), columns=["b", "a"])
    found = fit(GMM(2, 2), frame, max_steps=5)
    for tree in (found.to_arviz(draws=5), found.to_arviz(frame, draws=5)):
        assert tree["posterior"]["feature"].values.tolist() == ["b", "a"]


def test_a_column_that_was_never_observed_is_predicted_from_the_prior():
    frame = pd.DataFrame(rows(60)[1].numpy(), columns=["b", "a"]).assign(never=np.nan)
    found = fit(GMM(2, 3), frame, max_steps=5)
    filled = found.impute(frame, draws=200)
    assert np.isfinite(filled).all()
    assert filled.sel(feature="never").values.std() > 0.2
    np.testing.assert_array_equal(filled.isel(draw=0).sel(feature=["b", "a"]), frame[["b", "a"]])


def test_starts_do_not_depend_on_units():
    """A feature in thousands does not decide alone; clusters that differ in another one are found."""
    torch.manual_seed(0)
    x = torch.cat([normal(80, 2) + torch.tensor([shift, 0.0]) for shift in (-4.0, 4.0)])
    paths = [GMM(2, 2).guess([x * torch.tensor([1.0, scale])], [None], "kmeans")[0]["z"] for scale in (1.0, 1000.0)]
    assert paths[0].equal(paths[1]) or paths[0].equal(1 - paths[1])


def test_units_so_small_that_the_prior_widens_components_are_said(caplog):
    torch.manual_seed(0)
    x = 0.1 * torch.cat([0.5 * normal(100, 2) + shift for shift in (-2.0, 2.0)])
    fit(GMM(2, 2), x, n_init=3)
    assert caplog.text.count("whose states the prior will make wider") == 1
    caplog.clear()
    fit(GMM(2, 2), 5 * x)
    assert not caplog.text
