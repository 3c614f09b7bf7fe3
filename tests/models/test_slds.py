"""Switching linear dynamical systems: states recovered, prediction better than one regime's, gaps, inputs, refusals."""

import numpy as np
import pytest
import torch
from dense import normal
from scipy.optimize import linear_sum_assignment

from ppgen.emissions.decision_list import decision_list
from ppgen.errors import DataError
from ppgen.expecting import observed_given
from ppgen.inference import vb
from ppgen.models import LDS, SLDS

TURNS, PUSHES = (0.1, 0.5, -0.3), ((0.0, 0.0), (0.3, 0.0), (0.0, -0.3))


def simulated(rows, steps, seed=0):
    """Three turns of a plane at unlike speeds, seen through six noisy features, and the states."""
    rng = np.random.default_rng(seed)
    C = np.random.default_rng(7).normal(size=(6, 2))
    x, z = np.empty((rows, steps, 6)), np.zeros((rows, steps), int)
    for n in range(rows):
        h = rng.normal(size=2)
        for t in range(steps):
            if t:
                z[n, t] = rng.integers(3) if rng.random() < 0.03 else z[n, t - 1]
                c, s = np.cos(TURNS[z[n, t]]), np.sin(TURNS[z[n, t]])
                h = 0.98 * np.array([[c, -s], [s, c]]) @ h + PUSHES[z[n, t]] + 0.1 * rng.normal(size=2)
            x[n, t] = C @ h + 0.3 * rng.normal(size=6)
    return x / 2.0, z


def matched(found, truth):
    """Share of steps in which states agree, numbered as well as can be."""
    counts = np.zeros((3, 3))
    np.add.at(counts, (found.ravel().astype(int), truth.ravel()), 1)
    return counts[linear_sum_assignment(-counts)].sum() / truth.size


def fit(model, x, **options):
    return vb.fit(model, x, **{"random_seed": 0, "progressbar": False, **options})


@pytest.fixture(scope="module")
def fitted():
    x, z = simulated(3, 200)
    x[0, 100:110] = np.nan
    return fit(SLDS(3, 2, 6, stickiness=20.0), x), x, z


def test_states_are_recovered_and_the_bound_never_falls(fitted):
    found, x, z = fitted
    assert (found.history["elbo"].diff().dropna() > -1e-6).all()
    assert matched(found.latents(x)["z"].values.argmax(-1), z) > 0.95


def test_more_latent_dimensions_than_there_are_do_not_hide_the_states():
    """Of five, three are noise, among which the start's autoregressive HMM lost the states (.70 of the steps right)."""
    x, z = simulated(3, 200)
    found = fit(SLDS(3, 5, 6, stickiness=20.0), x, max_steps=40)
    assert matched(found.latents(x, draws=4)["z"].values.argmax(-1), z) > 0.95


def test_new_sequences_are_predicted_better_than_by_one_regime(fitted):
    """By more than a quarter of a nat a step."""
    found, x, _ = fitted
    new, z = simulated(1, 150, seed=1)
    one = fit(LDS(2, 6), x)
    scores = [float(one.log_likelihood(new, draws=8, random_seed=0).sum()) for one in (found, one)]
    assert scores[0] > scores[1] + 0.25 * 150
    assert matched(found.latents(new)["z"].values.argmax(-1), z) > 0.9


def test_a_gap_is_filled_with_as_much_doubt_as_it_deserves(fitted):
    """Of 60 hidden entries the 90 % intervals hold at least 45: by chance less in 10^-4 of runs of independent ones."""
    found, x, _ = fitted
    truth = simulated(3, 200)[0]
    quantiles = found.predict(x, draws=50, random_seed=0)["quantiles"].values
    gap = np.isnan(x)
    inside = (quantiles[0] <= truth) & (truth <= quantiles[-1])
    assert inside[gap].sum() >= 45


def test_inputs_drive_the_states():
    torch.manual_seed(0)
    u = normal(2, 60, 1)
    h = torch.zeros(2, 60, 1).double()
    for t in range(1, 60):
        h[:, t] = 0.8 * h[:, t - 1] + 0.7 * u[:, t] + 0.2 * normal(2, 1)
    x = h @ normal(1, 3) + 0.2 * normal(2, 60, 3)
    found = fit(SLDS(2, 1, 3, inputs=1), x, u=u, max_steps=15)
    ahead = found.forecast(x, 5, draws=20, u=torch.cat([u, normal(2, 5, 1)], 1), random_seed=0)
    assert np.isfinite(ahead.values).all()


def bouncing(steps, seed):
    """A number that rises until it passes one, then falls until it passes minus one, seen three times; the states."""
    rng = np.random.default_rng(seed)
    h, z = np.zeros(steps), np.zeros(steps, int)
    h[0], z[0] = rng.uniform(-1, 1), rng.integers(2)
    for t in range(1, steps):
        z[t] = 1 if h[t - 1] > 1 else 0 if h[t - 1] < -1 else z[t - 1]
        h[t] = h[t - 1] + (0.1, -0.1)[z[t]] + 0.03 * rng.normal()
    return h[:, None] * [1.0, -0.5, 0.8] + 0.1 * rng.normal(size=(steps, 3)), z


def test_a_recurrent_system_knows_where_it_turns():
    """New sequences are denser by a twentieth of a nat a step, and forecasts across turns three times closer."""
    x, z = bouncing(300, 0)
    new = np.stack([bouncing(60, seed)[0] for seed in range(1, 9)])
    density, error = {}, {}
    for recurrent in (False, True):
        found = fit(SLDS(2, 1, 3, recurrent=recurrent), x[None], max_steps=100)
        density[recurrent] = float(found.log_likelihood(new, draws=8, random_seed=0).sum()) / new[..., 0].size
        ahead = found.forecast(new[:, :40], 20, draws=20, random_seed=0).values.mean(0)
        error[recurrent] = float(np.square(ahead - new[:, 40:]).mean() ** 0.5)
    assert density[True] > density[False] + 0.05
    assert error[True] < error[False] / 3
    states = found.latents(x[None], draws=4)["z"].values[0].argmax(-1)
    assert max((states == z).mean(), (states != z).mean()) > 0.95
    weights = found.to_arviz()["posterior"]["transition_weights"]
    assert list(weights["cause"].values) == ["state 0", "state 1", "h0"]


def test_turns_of_the_continuous_state_change_nothing_that_a_recurrent_system_says():
    torch.manual_seed(0)
    model, x = SLDS(3, 2, 4, recurrent=True), normal(2, 9, 4)
    theta = {
        site: value
        for factor in model.natural_prior().values()
        for site, value in factor.family.sample(factor.eta, 3).items()
    }
    turned = {site: value[0] for site, value in model.turned({s: v[None] for s, v in theta.items()}).items()}
    scores = []
    for some in (theta, turned):
        s = {
            name: factor.family.statistic({site: some[site][1] for site in factor.family.sites})
            for name, factor in model.natural_prior().items()
        }
        (found,) = observed_given(model, s, x, None).values()
        scores.append(found.distribution.evidence(x, found.distribution.settle(x, sweeps=300)))
    torch.testing.assert_close(*scores, rtol=0, atol=1e-9)
    prior = model.natural_prior()["transition"]
    one, two = (prior.family.inner(prior.eta, prior.family.statistic(some)) for some in (theta, turned))
    torch.testing.assert_close(one, two)


def test_sticks_are_broken_first_for_the_state_that_is_told_best():
    """State 2 comes when h is high; 0 and 1 come as they like."""
    torch.manual_seed(0)
    h = normal(1, 400, 1)
    z = torch.where(h[..., 0].roll(1, 1) > 0.5, 2, torch.randint(2, (1, 400)))
    assert decision_list([h], [z], 3)[0] == 2


@pytest.mark.parametrize("start", ["smoothed", "components", "random"])
def test_every_start_gives_paths_that_fit_the_data(start):
    x = torch.tensor(simulated(2, 40)[0])
    x[1, 30:] = torch.nan
    (values,) = SLDS(3, 2, 6).guess([x], [None], start)
    assert values["h"].shape == (2, 40, 2)
    assert values["z"].shape == (2, 40)
    assert 0 <= values["z"].min() <= values["z"].max() < 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SLDS(0, 2, 3), "states must be a whole number of at least 1, got 0"),
        (lambda: SLDS(2, 0, 3), "latent must be a whole number of at least 1, got 0"),
        (lambda: SLDS(2, 1, 3, switching="emission"), 'switching must be "dynamics" or "both", got'),
        (lambda: SLDS(1, 1, 3, recurrent=True), "recurrent must be False for fewer than 2 states, got 1"),
        (lambda: SLDS(2, 1, 3, recurrent=True, scale=0.0), "scale must be positive, got 0.0"),
        (lambda: SLDS(2, 1, 3, stickiness=-1.0), "concentration must be positive and stickiness zero or more"),
        (lambda: fit(SLDS(2, 1, 3), normal(2, 9, 4)), r"x must have shape \(N, T, D=3\), got \(2, 9, 4\)"),
        (lambda: fit(SLDS(2, 1, 3, inputs=1), normal(2, 9, 3)), "u must have 1 inputs"),
        (lambda: fit(SLDS(2, 1, 3), normal(2, 9, 3), u=normal(2, 9, 1)), "takes no inputs u"),
        (lambda: fit(SLDS(20, 1, 3), normal(1, 9, 3)), r"at least as many frames as states \(20\), got 9"),
    ],
)
def test_bad_input_is_refused_in_words(make, words):
    with pytest.raises(DataError, match=words) as caught:
        make()
    assert str(caught.value).startswith("SLDS:"), str(caught.value)
