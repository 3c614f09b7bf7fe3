"""Linear dynamical systems: parameters recovered, coverage of gaps, peers, inputs, refusals."""

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from dense import normal

from ppgen.errors import DataError
from ppgen.expecting import observed_given
from ppgen.inference import mcmc, vb
from ppgen.models.lds import LDS
from ppgen.models.slds import SLDS


def simulated(N=3, T=80, L=2, D=4, inputs=0, model=None):
    """Data from the model's own prior."""
    model = model or LDS(L, D, inputs=inputs)
    theta = {}
    for factor in model.natural_prior().values():
        theta |= {site: value[0] for site, value in factor.family.sample(factor.eta, 1).items()}
    s = {name: factor.family.statistic(theta) for name, factor in model.natural_prior().items()}
    empty, u = torch.full((N, T, D), torch.nan).double(), normal(N, T, inputs) if inputs else None
    return model, theta, observed_given(model, s, empty, u)["x"].distribution.sample(), u


def fit(model, x, **options):
    return vb.fit(model, x, **{"random_seed": 1, "progressbar": False, **options})


def stable(N, T, inputs=0):
    """A slow rotation seen through four features, which may be driven."""
    A = 0.97 * torch.tensor([[0.96, -0.28], [0.28, 0.96]]).double()
    C, B = normal(4, 2), normal(2, inputs)
    u, h = normal(N, T, inputs), normal(N, 2)
    frames = []
    for t in range(T):
        h = h @ A.T + 0.3 * normal(N, 2) + u[:, t] @ B.T if t else h
        frames.append(h @ C.T + 0.4 * normal(N, 4))
    x = torch.stack(frames, 1)
    return (x - x.mean((0, 1))) / x.std((0, 1)), u if inputs else None


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("inputs", [0, 2])
def test_the_bound_never_falls(covariance, inputs):
    x, u = stable(3, 40, inputs)
    x[torch.rand(x.shape) < 0.2] = torch.nan
    x[0, 30:], x[1, 10:14] = torch.nan, torch.nan
    bounds = fit(LDS(2, 4, inputs=inputs, covariance=covariance), x, u=u, max_steps=25, tol=0).history.elbo.values
    assert (np.diff(bounds) > -1e-9 * abs(bounds[-1])).all()


def test_gaps_are_covered_as_often_as_they_say():
    """90 % intervals of 4 x 4 x 30 entries of 12 gaps; within a gap they are alike, so some 60 independent ones: fewer
    than 77 % happens once in a thousand.
    """
    x, _ = stable(4, 150)
    hidden = x.clone()
    for n in range(4):
        hidden[n, 30 + n : 34 + n] = hidden[n, 60:63] = hidden[n, 100:103] = torch.nan
    found = fit(LDS(2, 4), hidden, max_steps=150).predict(hidden, quantiles=(0.05, 0.95), random_seed=0)
    low, high = torch.from_numpy(found["quantiles"].values)
    gap = hidden.isnan()
    inside = ((x >= low) & (x <= high))[gap].double().mean()
    assert 0.77 < inside <= 1.0
    assert float((torch.from_numpy(found["estimate"].values) - x)[gap].std()) < 0.9


def test_inputs_explain_what_they_drive():
    x, u = stable(4, 60, 1)
    model = {"max_steps": 80}
    driven = fit(LDS(2, 4, inputs=1), x[:3], u=u[:3], **model).log_likelihood(x[3:], u=u[3:], random_seed=0)
    blind = fit(LDS(2, 4), x[:3], **model).log_likelihood(x[3:], random_seed=0)
    assert float(driven[0]) > float(blind[0]) + 5


def test_inputs_follow_the_names_of_their_columns_and_rows():
    xr = pytest.importorskip("xarray")
    x, u = stable(3, 30, 2)
    named = xr.DataArray(u.numpy(), dims=("sequence", "time", "input"), coords={"input": ["a", "b"]})
    found = fit(LDS(2, 4, inputs=2), x, u=named, max_steps=20)
    turned = found.log_likelihood(x, u=named[..., ::-1], random_seed=0)
    np.testing.assert_allclose(turned.values, found.log_likelihood(x, u=named, random_seed=0).values)


def test_inputs_of_more_rows_follow_the_labels_of_the_data_and_name_the_regressors():
    xr = pytest.importorskip("xarray")
    x, u = stable(3, 30, 2)
    rows = {"sequence": ["p", "q", "r"]}
    data = xr.DataArray(x.numpy(), dims=("sequence", "time", "feature"), coords=rows)
    inputs = xr.DataArray(u.numpy(), dims=("sequence", "time", "input"), coords={**rows, "input": ["heat", "wind"]})
    found = fit(LDS(2, 4, inputs=2), data, u=inputs, max_steps=20)
    whole = found.log_likelihood(data, u=inputs, random_seed=0)
    some = found.log_likelihood(data[[2, 0]], u=inputs, random_seed=0)
    np.testing.assert_allclose(some.values, whole.values[[2, 0]])
    assert list(found.to_arviz(draws=2).posterior["regressor"].values) == ["h0", "h1", "heat", "wind", "one"]


def test_densities_of_steps_sum_to_that_of_the_row():
    x, u = stable(2, 30, 1)
    x[0, 5], x[1, 25:] = torch.nan, torch.nan
    found = fit(LDS(2, 4, inputs=1), x, u=u, max_steps=20)
    steps = found.log_likelihood(x, u=u, per="step", draws=50, random_seed=0)
    assert np.isnan(steps.values[1, 25:]).all()
    rows = found.log_likelihood(x, u=u, draws=50, random_seed=0)
    np.testing.assert_allclose(np.nansum(steps.values, 1), rows.values, rtol=1e-9)


def test_dynamics_that_grow_are_fitted_with_a_warning_that_names_their_spectral_radius(caplog):
    h = torch.tensor(1.06).double() ** torch.arange(60)[None, :, None]
    x = h * torch.tensor([1.0, -1.0]) + 0.05 * normal(1, 60, 2)
    x = (x - x.mean(1)) / x.std(1)
    fit(LDS(1, 2), x, max_steps=100)
    assert "the dynamics grow, their spectral radius is 1.0" in caplog.text
    caplog.clear()
    fit(LDS(2, 4), stable(3, 60)[0], max_steps=50)
    assert "spectral" not in caplog.text


def test_a_forecast_takes_inputs_of_the_steps_ahead():
    x, u = stable(2, 60, 1)
    found = fit(LDS(2, 4, inputs=1), x[:, :50], u=u[:, :50], max_steps=60)
    up, down = (u.clone(), u.clone())
    up[:, 50:], down[:, 50:] = 3.0, -3.0
    one, two = (found.forecast(x[:, :50], 10, draws=50, u=v, random_seed=0).mean("draw") for v in (up, down))
    assert one.shape == (2, 10, 4)
    assert float(abs(one - two).max()) > 1
    for given, came in ((u[:, :50], 50), (u[:, 50:], 10)):
        with pytest.raises(
            DataError, match=f"u must have a row for each of the 50 steps of x .*10 ahead, 60, got {came};"
        ):
            found.forecast(x[:, :50], 10, u=given)
    with pytest.raises(
        DataError, match="got none; pass u, with a row for each of the 50 steps of x and the 10 ahead, 60"
    ):
        found.forecast(x[:, :50], 10)
    with pytest.raises(DataError, match=r"must have 1 rows like x, got shape \(60, 1\); .* pass u\[None\]"):
        found.forecast(x[:1, :50], 10, u=u[0])


ENDS = {"long": 40, "short": 25}


@pytest.mark.parametrize("model", [LDS(2, 4, inputs=2), SLDS(2, 2, 4, inputs=2)], ids=["lds", "slds"])
def test_inputs_of_each_sequence_are_read_to_its_own_end_and_ahead_of_it(model):
    (x, u), horizon = stable(2, 45, 2), 5
    data = {key: x[place, :n].numpy() for place, (key, n) in enumerate(ENDS.items())}
    past = {key: u[place, :n].numpy() for place, (key, n) in enumerate(ENDS.items())}
    found = fit(model, data, u=past, max_steps=3)
    whole = u[:, :40].clone()
    whole[1, 25:] = 7.0  # no sequence is there
    again = fit(model, data, u=whole, max_steps=3)
    np.testing.assert_allclose(again.history.elbo, found.history.elbo, rtol=1e-12)
    xr.testing.assert_allclose(again.latents(data, u=whole), found.latents(data, u=past), rtol=1e-9)
    ahead = {key: u[place, : n + horizon].numpy() for place, (key, n) in enumerate(ENDS.items())}

    def means(inputs):
        return found.forecast(data, horizon, draws=20, u=inputs, random_seed=0).mean("draw")

    other = u.clone()
    other[1, 30:] = 7.0
    np.testing.assert_allclose(means(other), means(ahead), rtol=1e-12)
    moved = means({**ahead, "short": ahead["short"] + 10 * (np.arange(30) >= 25)[:, None]})
    xr.testing.assert_allclose(moved.sel(sequence="long"), means(ahead).sel(sequence="long"), rtol=1e-12)
    assert float(abs(moved - means(ahead)).sel(sequence="short").max()) > 1


def test_a_forecast_takes_labelled_inputs_and_answers_with_the_times_ahead():
    times, columns = pd.date_range("2026-01-01", periods=34), ["a", "b", "c", "d"]
    x, u = stable(1, 34, 1)
    seen = pd.DataFrame(x[0, :30], index=times[:30], columns=columns)
    drive = pd.DataFrame(u[0], index=times, columns=["p"])
    array = xr.DataArray(u, dims=("sequence", "time", "input"), coords={"time": times, "input": ["p"]})
    found = fit(LDS(2, 4, inputs=1), seen, u=drive[:30], max_steps=20)
    plain = found.forecast(seen, 4, draws=20, u=u, random_seed=0)
    assert "time" not in plain.coords
    for given in (drive, drive[::-1], array, array[:, ::-1]):
        ahead = found.forecast(seen, 4, draws=20, u=given, random_seed=0)
        np.testing.assert_array_equal(ahead, plain)
        np.testing.assert_array_equal(ahead["time"], times[30:])
        assert ahead["time"].dims == ("ahead",)
    with pytest.raises(DataError, match="30 steps of x and the 4 ahead, 34, got 30"):
        found.forecast(seen, 4, u=drive[:30])
    with pytest.raises(
        DataError, match="u must have the times of x, 2026-01-01.*, and then those ahead, got 2026-01-06"
    ):
        found.forecast(seen, 4, u=drive.shift(5, freq="D"))
    with pytest.raises(DataError, match="times ahead that follow the last one of x, 2026-01-30.*, got 2025-12-30"):
        found.forecast(seen, 4, u=drive.set_axis([*times[:30], *pd.date_range("2025-12-30", periods=4, freq="8h")]))


def test_times_ahead_are_those_behind_the_end_of_each_sequence():
    times = pd.date_range("2026-01-01", periods=23)
    x, u = stable(2, 23, 1)
    x = xr.DataArray(x, dims=("sequence", "time", "feature"), coords={"time": times})[:, :20].copy()
    x[1, 15:] = np.nan
    drive = xr.DataArray(u, dims=("sequence", "time", "input"), coords={"time": times})
    found = fit(LDS(2, 4, inputs=1), x, u=drive[:, :20], max_steps=5)
    ahead = found.forecast(x, 3, draws=2, u=drive)
    np.testing.assert_array_equal(ahead["time"], [times[20:23], times[15:18]])
    counted = found.forecast(x.drop_vars("time"), 3, draws=2, u=drive)
    np.testing.assert_array_equal(counted["time"], ahead["time"])


def test_one_step_is_factor_analysis():
    """The covariance of the features is found, within a tenth: 2,000 rows know it to .04."""
    loading = normal(5, 2)
    x = (normal(2000, 2) @ loading.T + 0.5 * normal(2000, 5))[:, None]
    found = fit(LDS(2, 5), x, max_steps=200)
    s = found.posterior.statistics()
    C, precision = found.model.emission.mean_and_precision(s["loading"])
    covariance = C[:, :2] @ C[:, :2].T + torch.linalg.inv(precision)
    wanted = loading @ loading.T + 0.25 * torch.eye(5).double()
    assert (covariance - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_mcmc_sums_the_states_out():
    x, u = stable(2, 25, 1)
    found = mcmc.fit(LDS(1, 4, inputs=1), x, u=u, draws=20, chains=16, tune=60, random_seed=0, progressbar=False)
    assert set(found.posterior.sites) == {
        "dynamics", "dynamics_precision_cholesky", "loading", "loading_precision_cholesky"
    }  # fmt: skip
    assert np.isfinite(found.log_likelihood(x, draws=20, u=u, random_seed=0).values).all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_turns_of_the_states_change_neither_prior_nor_evidence(covariance):
    """And draws that differ by a turn alone become the same draw."""
    torch.manual_seed(0)
    model, theta, x, _ = simulated(2, 6, 2, 3, model=LDS(2, 3, covariance=covariance))
    many = {site: value[None, None].expand(1, 9, *value.shape).clone() for site, value in theta.items()}
    Q = torch.linalg.qr(torch.randn(9, 2, 2).double()).Q
    wide = Q[:, None] if covariance == "diagonal" else Q
    many["loading"][0, ..., :2] = many["loading"][0, ..., :2] @ wide.mT
    many["dynamics"][0, ..., :2] = many["dynamics"][0, ..., :2] @ Q.mT
    many["dynamics"][0] = Q @ many["dynamics"][0]
    root = Q @ many["dynamics_precision_cholesky"][0]
    many["dynamics_precision_cholesky"][0] = torch.linalg.cholesky(root @ root.mT)
    turned = model.turned(many)
    for site in theta:
        torch.testing.assert_close(turned[site], turned[site][:, :1].expand_as(turned[site]), rtol=0, atol=1e-9)
    for given in ({site: value[0, 3] for site, value in some.items()} for some in (many, turned)):
        for name, factor in model.natural_prior().items():
            one, two = (factor.family.inner(factor.eta, factor.family.statistic(values)) for values in (theta, given))
            torch.testing.assert_close(one, two, msg=name)
        scores = [_evidence(model, values, x) for values in (theta, given)]
        torch.testing.assert_close(*scores, rtol=0, atol=1e-9)


def _evidence(model, theta, x):
    s = {name: factor.family.statistic(theta) for name, factor in model.natural_prior().items()}
    return observed_given(model, s, x, None)["x"].distribution.log_prob(x)


def test_states_after_mcmc_are_not_averaged_over_their_two_signs():
    """Chains end in either sign; the mean state follows the data as closely as that of `vb` does."""
    torch.manual_seed(1)
    h = torch.zeros(1, 60).double()
    for t in range(1, 60):
        h[:, t] = 0.9 * h[:, t - 1] + 0.4 * torch.randn(1).double()
    x = torch.stack([h, -h], -1) + 0.1 * torch.randn(1, 60, 2).double()
    found = mcmc.fit(LDS(1, 2), x, draws=10, chains=16, tune=50, random_seed=0, progressbar=False)
    signs = found.posterior.sites["loading"][:, -1, 0, 0, 0].sign()
    assert signs.min() < signs.max()
    mean = torch.as_tensor(found.latents(x, random_seed=0)["h"].values)[0, :, 0]
    assert abs(np.corrcoef(mean, h[0])[0, 1]) > 0.95
    assert mean.std() > 0.5 * torch.as_tensor(fit(LDS(1, 2), x).latents(x)["h"].values).std()


def test_dynamics_that_grow_are_replicated_and_forecast():
    """Prior draws of 60 steps and forecasts of 300, among which some dynamics grow: none is refused."""
    x = normal(1, 60, 2).cumsum(1)
    x = (x - x.mean(1)) / x.std(1)
    found = fit(LDS(2, 2), x, max_steps=10)
    tree = found.to_arviz(x, draws=50)
    assert np.isfinite(tree["prior_predictive"]["x"].values).all()
    assert np.isfinite(found.forecast(x, 300, draws=50, random_seed=0).values).all()


@pytest.mark.parametrize(
    ("change", "words"), [(lambda u: u + 100, "mean (99|100)"), (lambda u: u / 1000, "deviation 0.00")]
)
def test_inputs_whose_effect_the_prior_would_suppress_are_refused(change, words):
    x, u = stable(2, 40, 1)
    with pytest.raises(DataError, match=f"u must be in units of about one around zero.*{words}"):
        fit(LDS(2, 4, inputs=1), x, u=change(u))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LDS(0, 2), "latent must be a whole number of at least 1, got 0"),
        (lambda: LDS(1, 2, covariance="tied"), 'covariance must be "full", "diagonal" or "spherical"'),
        (lambda: LDS(1, 2, noise=0.0), "noise must be positive"),
        (lambda: fit(LDS(1, 2), normal(2, 9, 3)), r"x must have shape \(N, T, D=2\)"),
        (lambda: fit(LDS(1, 2), normal(2, 9, 2), u=normal(2, 9, 1)), "takes no inputs"),
        (lambda: fit(LDS(1, 2, inputs=1), normal(2, 9, 2)), "u must have 1 inputs"),
        (lambda: fit(LDS(1, 2, inputs=2), normal(2, 9, 2), u=normal(2, 9, 1)), "u must have 2 inputs"),
        (lambda: fit(LDS(1, 2, inputs=1), normal(2, 9, 2), u=normal(2, 8, 1)), "a row for each of the 9 steps"),
        (lambda: fit(LDS(1, 2), normal(2, 9, 2), start="best"), 'a start is "pca" or "random"'),
    ],
)
def test_bad_input_is_refused_in_words(make, words):
    with pytest.raises(DataError, match=words):
        make()
