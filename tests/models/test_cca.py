"""Canonical correlations and factor analysis: densities, views found and predicted, peers, labels, refusals."""

import numpy as np
import pandas as pd
import pytest
import torch
from dense import log_normal, normal
from sklearn.cross_decomposition import CCA as PeerCCA
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import PCA, FactorAnalysis

from ppgen.errors import DataError
from ppgen.inference import mcmc, svi, vb
from ppgen.models import CCA
from ppgen.predictions import predictive

VIEWS = {"brain": 3, "act": 2}
MODELS = {
    "shared": lambda: CCA(VIEWS, 2),
    "private": lambda: CCA(VIEWS, 1, private={"brain": 2, "act": 1}),
    "full": lambda: CCA(VIEWS, 1, covariance="full"),
    "sparse": lambda: CCA(VIEWS, 3, sparse=True),
    "one view": lambda: CCA(5, 2),
    "spherical": lambda: CCA(5, 2, covariance="spherical"),
    "more latent numbers than features": lambda: CCA(VIEWS, 6),
}


def standard(x):
    return (x - x.mean(0)) / x.std(0)


def fit(model, x, **options):
    return vb.fit(model, x, **{"random_seed": 0, "progressbar": False, **options})


def moments(model, theta):
    """Mean and covariance of a row, by dense matrices."""
    means, loadings, noises = [], [], []
    for view, (emission, _) in model.views.items():
        C = theta[emission.family.coefficients]
        means.append((C if emission.full else C[..., 0, :])[..., -1])
        loadings.append(model._loading(theta, view))
        noises.append(model._noise(theta, view))
    C = torch.cat(loadings)
    return torch.cat(means), C @ C.T + torch.block_diag(*noises)


@pytest.mark.parametrize("name", MODELS)
def test_the_density_is_that_of_the_dense_gaussian_whatever_is_missing(name):
    torch.manual_seed(0)
    model, x = MODELS[name](), normal(6, 5)
    x[0, 1], x[1, :3], x[2, 3:], x[3], x[4, [0, 4]] = (torch.nan,) * 5
    theta = predictive.prior(model, x)
    mean, cov = moments(model, theta)
    found = predictive.log_likelihood(model, theta, x)
    for row, value in zip(x, found, strict=True):
        seen = ~row.isnan()
        exact = log_normal(row[seen], mean[seen], cov[seen][:, seen]) if seen.any() else 0.0
        assert abs(value - exact) < 1e-10 * max(1, abs(exact))


@pytest.mark.parametrize("name", MODELS)
def test_turned_draws_say_the_same_of_data(name):
    torch.manual_seed(1)
    model, x = MODELS[name](), normal(4, 5)
    draws = [predictive.prior(model, x) for _ in range(6)]
    theta = {site: torch.stack([d[site] for d in draws]).unflatten(0, (2, 3)) for site in draws[0]}
    turned = model.turned(theta)
    for c in range(2):
        for i in range(3):
            one, two = ({site: value[c, i] for site, value in found.items()} for found in (theta, turned))
            torch.testing.assert_close(
                predictive.log_likelihood(model, one, x), predictive.log_likelihood(model, two, x), rtol=1e-9, atol=1e-9
            )
    assert not any(
        theta[site].equal(turned[site]) for site in theta if site.startswith("loading") and "pre" not in site
    )


def simulated(N, seed, noise=0.5):
    """Six and four features that share one number; each view has one of its own."""
    rng = np.random.default_rng(seed)
    h, C = rng.normal(size=(N, 3)), rng.normal(size=(10, 3))
    C = np.sign(C) * (0.5 + abs(C))
    C[6:, 1], C[:6, 2] = 0.0, 0.0
    return h @ C.T + noise * rng.normal(size=(N, 10)), h


def test_spherical_noise_of_one_view_is_probabilistic_principal_components():
    """Of many rows the noise is the mean of the variances left over, and new rows are as dense as scikit-learn says."""
    rng = np.random.default_rng(0)
    x, new = (rng.normal(size=(n, 2)) @ [[1.0, 0.8, 0.5, -0.2], [0.0, 0.6, -0.9, 1.0]] for n in (2000, 1000))
    x, new = (rows + 0.4 * rng.normal(size=rows.shape) for rows in (x, new))
    peer, found = PCA(2).fit(x), fit(CCA(4, 2, covariance="spherical"), x)
    assert found.model.dims["loading_precision"] == ()
    variance = float((1 / found.posterior.draws(200)["loading_precision"]).mean())
    assert abs(variance / peer.noise_variance_ - 1) < 0.02
    assert abs(float(found.log_likelihood(new, draws=20, random_seed=0).mean()) - peer.score(new)) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_sparse_model_finds_which_view_has_which_number_and_leaves_the_others_empty(seed):
    x, _ = simulated(300, seed)
    model = fit(CCA({"one": 6, "two": 4}, 5, sparse=True), standard(x)).model
    used = model.log_relevance.exp() < 50
    assert sorted(map(tuple, used.T.tolist())) == sorted(
        [(True, True), (True, False), (False, True), (False, False), (False, False)]
    )


def test_a_view_that_is_hidden_is_predicted_with_intervals_that_hold():
    """90 % intervals of 4 features of 400 rows, alike within a row: fewer than 86 % or more than 94 % of them would be
    four standard errors of 400 independent ones off, a false alarm in some 10^4.
    """
    x, _ = simulated(1000, 9)
    x = standard(x)
    found = fit(CCA({"one": 6, "two": 4}, 1, private=1), x[:600])
    hidden = x[600:].copy()
    hidden[:, 6:] = np.nan
    low, high = found.predict(hidden, quantiles=(0.05, 0.95), random_seed=0)["quantiles"].values
    inside = ((low <= x[600:]) & (x[600:] <= high))[:, 6:]
    assert 0.86 < inside.mean() < 0.94
    off = found.predict(hidden, random_seed=0)["estimate"].values[:, 6:] - x[600:, 6:]
    assert off.std() < 0.9


def test_canonical_correlations_are_those_of_the_data():
    x = standard(simulated(2000, 3)[0])
    found = fit(CCA({"one": 6, "two": 4}, 1, covariance="full"), x)
    draws = found.posterior.draws(50)
    ours = found.model.canonical_correlations(draws, "one", "two")[..., 0]
    a, b = PeerCCA(1).fit_transform(x[:, :6], x[:, 6:])
    assert abs(float(ours.mean()) - np.corrcoef(a[:, 0], b[:, 0])[0, 1]) < 0.02
    shares = found.model.explained(draws)
    assert shares.shape == (50, 2, 1)
    assert ((shares > 0) & (shares < 1)).all()
    with pytest.raises(DataError, match="views are \\['one', 'two'\\], got 'three'"):
        found.model.canonical_correlations(draws, "one", "three")


@pytest.mark.parametrize("load", [load_wine, load_breast_cancer])
def test_held_out_rows_are_at_least_as_probable_as_by_scikit_learn(load):
    """A third of the rows held out; three factors; no option set."""
    x = standard(load().data)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = x[order[: 2 * len(x) // 3]], x[order[2 * len(x) // 3 :]]
    ours = fit(CCA(x.shape[1], 3), train).log_likelihood(test, random_seed=0).values.mean()
    assert ours > FactorAnalysis(3).fit(train).score(test)


def test_views_come_as_a_dict_of_tables_and_keep_their_names():
    x = standard(simulated(60, 2)[0])
    rows = [f"r{i}" for i in range(60)]
    one = pd.DataFrame(x[:, :6], rows, list("abcdef"))
    two = pd.DataFrame(x[::-1, 6:], rows[::-1], list("wxyz"))
    found = fit(CCA({"one": list("abcdef"), "two": list("wxyz")}, 1, private=1), {"one": one, "two": two})
    plain = fit(CCA({"one": 6, "two": 4}, 1, private=1), x)
    assert found.history["elbo"].iloc[-1] == pytest.approx(plain.history["elbo"].iloc[-1])
    h = found.latents({"one": one, "two": two})["h"]
    assert list(h["latent"].values) == ["shared0", "one0", "two0"]
    assert list(h["row"].values) == rows
    tree = found.to_arviz(draws=3).posterior
    assert tree["loading_two"].dims[2:] == ("two_feature", "two_regressor")
    assert list(tree["two_feature"].values) == list("wxyz")
    assert list(tree["two_regressor"].values) == ["shared0", "two0", "one"]


SETTINGS = {"random_seed": 0, "progressbar": False}
ENGINES = [
    pytest.param(lambda model, x: svi.fit(model, x, **SETTINGS), id="svi"),
    pytest.param(
        lambda model, x: mcmc.fit(model, x, draws=100, tune=300, chains=8, **SETTINGS),
        id="mcmc",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["private", pytest.param("sparse", marks=pytest.mark.slow)])
def test_every_engine_finds_the_density_that_vb_finds(name, engine):
    """Within a tenth of a nat a row."""
    x = standard(simulated(80, 5)[0])[:, [0, 1, 2, 6, 7]]
    x[0, :3] = np.nan
    found = [fit(MODELS[name](), x), engine(MODELS[name](), x)]
    one, two = (float(one.log_likelihood(x, random_seed=0).mean()) for one in found)
    assert abs(one - two) < 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CCA({}, 1), "views must be {name: number of columns, at least 1}, got {}"),
        (lambda: CCA({"a": 0}, 1), "views must be"),
        (lambda: CCA({"a": 2, "b c": 2}, 1), "names of letters, digits and _, not row, latent or view, got"),
        (lambda: CCA(VIEWS, -1), "shared must be a whole number of at least 0, got -1"),
        (lambda: CCA(VIEWS, 0), "there must be a latent number"),
        (lambda: CCA(VIEWS, 1, private={"legs": 1}), "private must name views of .* got \\['legs'\\]"),
        (lambda: CCA(VIEWS, 2, private=1, sparse=True), "sparse=True finds private numbers by itself"),
        (lambda: CCA(VIEWS, 1, noise=0.0), "noise must be positive, got 0.0"),
        (
            lambda: fit(CCA(VIEWS, 1), np.zeros((4, 6))),
            "x must have shape \\(N, D=5\\), of brain 3, act 2, got \\(4, 6\\)",
        ),
        (
            lambda: fit(CCA(VIEWS, 1), np.zeros((4, 5)), u=np.zeros((4, 1))),
            "takes no inputs u, got some; give them as a",
        ),
    ],
)
def test_what_cannot_be_is_said(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_views_without_a_row_in_common_are_named(caplog):
    x = normal(20, 5)
    x[:10, :3], x[10:, 3:] = torch.nan, torch.nan
    fit(CCA(VIEWS, 1), x, max_steps=3)
    assert "no row has both brain and act" in caplog.text


def test_views_and_columns_are_told_by_their_names():
    """They were taken in the order of the data, and names put on other columns."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(60, 1))
    v = pd.DataFrame(h + 0.3 * rng.normal(size=(60, 3)), columns=list("abc"))
    v["a"] = rng.normal(size=60)
    w = pd.DataFrame(h + 0.3 * rng.normal(size=(60, 2)), columns=list("pq"))

    def loading(fit):
        return fit.to_arviz(draws=100)["posterior"]["loading_v"].sel(regressor="shared0").mean(("chain", "draw"))

    named = fit(CCA({"v": ["c", "b", "a"], "w": ["p", "q"]}, shared=1), {"v": v, "w": w})
    assert abs(float(loading(named).sel(v_feature="a"))) < 0.4 < abs(float(loading(named).sel(v_feature="c")))
    turned = fit(CCA({"v": 3, "w": 2}, shared=1), {"w": w, "v": v})
    np.testing.assert_allclose(np.abs(loading(turned).values[0]), 0, atol=0.4)
    plain = fit(CCA({"v": 3, "w": 2}, shared=1), {"v": v, "w": w})
    assert turned.history["elbo"].iloc[-1] == pytest.approx(plain.history["elbo"].iloc[-1])


@pytest.mark.parametrize(
    ("views", "x", "words"),
    [
        ({"v": 3, "w": 2}, {"v": normal(9, 2).numpy(), "w": normal(9, 3).numpy()}, "must have the views"),
        ({"brain": 3, "face": 2}, {"v": normal(9, 3).numpy(), "w": normal(9, 2).numpy()}, "must have the views"),
        (
            {"v": ["a", "b"]},
            pd.DataFrame(normal(9, 2).numpy(), columns=["a", "z"]),
            "columns must be those of the model",
        ),
    ],
)
def test_other_views_and_columns_than_the_models_are_refused(views, x, words):
    with pytest.raises(DataError, match=words):
        fit(CCA(views, shared=1), x)
