"""Factorial hidden Markov models: every combination of paths, recovery of chains, bounds, labels, refusals."""

import itertools

import numpy as np
import pytest
import torch
from dense import log_normal, normal
from scipy.optimize import linear_sum_assignment

from ppgen.errors import DataError
from ppgen.expecting import observed_given
from ppgen.inference import mcmc, vb
from ppgen.models import FactorialHMM
from ppgen.predictions import predictive

SIZES, T, D = {"tempo": 2, "mood": 3}, 3, 2


def fit(model, x, **options):
    return vb.fit(model, x, **{"random_seed": 0, "progressbar": False, **options})


def hidden(x):
    x = x.clone()
    x[0, 1, 0], x[1, 0], x[2, 2] = torch.nan, torch.nan, torch.nan
    x[3] = torch.nan
    return x


def enumerated(model, theta, row):
    """Log joint density of a row and each pair of paths, and these."""
    steps = int((~row.isnan().all(-1)).nonzero().max()) + 1
    effect = theta["effect"] if model.covariance == "full" else theta["effect"][:, 0]
    root = theta["effect_precision_cholesky"]
    noise = torch.linalg.inv(root @ root.mT) if model.covariance == "full" else torch.diag(root[:, 0, 0] ** -2)
    each = [list(itertools.product(range(k), repeat=steps)) for k in SIZES.values()]
    for paths in itertools.product(*each):
        total = torch.zeros(()).double()
        for name, z in zip(SIZES, paths, strict=True):
            total += theta[f"initial_{name}"][z[0]].log()
            total += sum(theta[f"transition_{name}"][i, j].log() for i, j in itertools.pairwise(z))
        for t in range(steps):
            mean = effect[:, -1] + effect[:, paths[0][t]] + effect[:, 2 + paths[1][t]]
            total = total + log_normal(row[t], mean, noise)
        yield total, paths


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_the_density_sums_over_all_combinations_of_paths_and_the_bound_stays_below(covariance):
    torch.manual_seed(0)
    model, x = FactorialHMM(SIZES, D, covariance=covariance), hidden(normal(4, T, D))
    held = FactorialHMM(SIZES, D, covariance=covariance, product=1)
    theta = predictive.prior(model, x)
    found, bound = (predictive.log_likelihood(one, theta, x) for one in (model, held))
    for n, row in enumerate(x[:3]):
        exact = torch.stack([value for value, _ in enumerated(model, theta, row)]).logsumexp(0)
        assert abs(found[n] - exact) < 1e-10
        assert bound[n] <= exact + 1e-10
    assert found[3] == 0.0
    assert abs(bound[3]) < 1e-12


def test_probabilities_of_states_are_those_of_all_combinations():
    torch.manual_seed(1)
    model, x = FactorialHMM(SIZES, D), hidden(normal(4, T, D))
    theta = predictive.prior(model, x)
    s = {name: factor.family.statistic(theta) for name, factor in model.natural_prior().items()}
    found = observed_given(model, s, x, None)["x"].distribution.latents(x).marginals
    values, paths = zip(*enumerated(model, theta, x[0]), strict=True)
    weights = torch.stack(values).softmax(0)
    for c, (name, states) in enumerate(SIZES.items()):
        seen = torch.nn.functional.one_hot(torch.tensor([pair[c] for pair in paths]), states).double()
        torch.testing.assert_close(found[f"z_{name}"][0], (weights[:, None, None] * seen).sum(0), rtol=0, atol=1e-10)


def test_more_updates_never_lower_the_bound_and_no_gap_beats_the_density():
    torch.manual_seed(2)
    model, x = FactorialHMM([2, 2, 3], D, product=1), normal(5, 12, D)
    theta = predictive.prior(model, x)
    s = {name: factor.family.statistic(theta) for name, factor in model.natural_prior().items()}
    distribution = observed_given(model, s, x, None)["x"].distribution
    local, bounds = distribution.start(x), []
    for _ in range(6):
        bounds.append(distribution.evidence(x, local))
        local = distribution.settle(x, local, 1)
    assert (torch.stack(bounds).diff(dim=0) > -1e-9).all()
    exact = predictive.log_likelihood(FactorialHMM([2, 2, 3], D), theta, x)
    assert (bounds[-1] <= exact + 1e-9).all()


def simulated(sizes, seed, steps=300, features=6, rows=2):
    """Chains that stay with probability .95, whose effects are standard normal; noise of .3."""
    rng = np.random.default_rng(seed)
    z = np.zeros((rows, steps, len(sizes)), int)
    x = 0.3 * rng.normal(size=(rows, steps, features))
    for c, states in enumerate(sizes):
        effects = rng.normal(size=(states, features))
        for n in range(rows):
            for t in range(steps):
                z[n, t, c] = rng.integers(states) if t == 0 or rng.random() > 0.95 else z[n, t - 1, c]
        x += effects[z[..., c]]
    return (x - x.mean((0, 1))) / x.std((0, 1)), z


def matched(latents, z, sizes):
    """Share of steps at which states agree, the chains and their states numbered as well as can be; the worst chain."""
    share = np.zeros((len(sizes), len(sizes)))
    for i, j in itertools.product(range(len(sizes)), repeat=2):
        if sizes[i] == sizes[j]:
            counts = np.zeros((sizes[i], sizes[i]))
            np.add.at(counts, (latents[f"z_{i}_mode"].values.ravel(), z[..., j].ravel()), 1)
            share[i, j] = counts[linear_sum_assignment(-counts)].sum() / z[..., 0].size
    return share[linear_sum_assignment(-share)].min()


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 3], [2, 3]])
@pytest.mark.parametrize("seed", range(5))
def test_chains_are_recovered(sizes, seed):
    x, z = simulated(sizes, seed)
    found = fit(FactorialHMM(sizes, 6), x)
    assert matched(found.latents(x), z, sizes) > 0.98
    assert (found.history["elbo"].diff().dropna() > -1e-6).all()


def test_gaps_are_covered_as_often_as_they_say():
    """90 % intervals of 6 x 120 hidden entries: under 83 % or over 97 % would be five standard errors of some 400
    independent ones off, a false alarm in a million.
    """
    x, _ = simulated([2, 3], 7, rows=3)
    gaps = x.copy()
    gaps[np.random.default_rng(0).random(x.shape) < 0.2] = np.nan
    low, high = (
        fit(FactorialHMM([2, 3], 6), gaps).predict(gaps, quantiles=(0.05, 0.95), random_seed=0)["quantiles"].values
    )
    inside = ((low <= x) & (x <= high))[np.isnan(gaps)]
    assert 0.83 < inside.mean() < 0.97


def test_chains_have_names_and_states_labels():
    x, _ = simulated([2, 3], 3, steps=60)
    found = fit(FactorialHMM(SIZES, 6), x)
    latents = found.latents(x)
    assert latents["z_mood"].dims == ("sequence", "time", "mood_state")
    assert latents["z_tempo_mode"].dims == ("sequence", "time")
    tree = found.to_arviz(draws=3).posterior
    assert list(tree["regressor"].values) == ["tempo:0", "tempo:1", "mood:0", "mood:1", "mood:2", "one"]
    assert tree["transition_mood"].dims[2:] == ("mood_state", "next_mood_state")
    assert found.forecast(x, 5, draws=4, random_seed=0).shape == (4, 2, 5, 6)


def test_turned_draws_say_the_same_of_data_and_are_alike():
    torch.manual_seed(3)
    model, x = FactorialHMM([2, 3, 2], D), normal(2, 4, D)
    one = predictive.prior(model, x)
    other = {
        "initial_0": one["initial_2"][[1, 0]], "initial_1": one["initial_1"][[2, 0, 1]], "initial_2": one["initial_0"],
        "transition_0": one["transition_2"][[1, 0]][:, [1, 0]], "transition_2": one["transition_0"],
        "transition_1": one["transition_1"][[2, 0, 1]][:, [2, 0, 1]],
        "effect": one["effect"][..., [6, 5, 4, 2, 3, 0, 1, 7]],
        "effect_precision_cholesky": one["effect_precision_cholesky"],
    }  # fmt: skip
    torch.testing.assert_close(predictive.log_likelihood(model, one, x), predictive.log_likelihood(model, other, x))
    theta = {site: torch.stack([one[site], other[site]])[None] for site in one}
    for site, value in model.turned(theta).items():
        torch.testing.assert_close(value[0, 1], value[0, 0], msg=site)


@pytest.mark.slow
def test_chains_of_a_sampler_agree_after_their_labels_are_made_alike():
    x, _ = simulated([2, 2], 5, steps=40)
    found = mcmc.fit(FactorialHMM([2, 2], 6), x, chains=8, draws=100, tune=300, random_seed=0, progressbar=False)
    one, two = (float(f.log_likelihood(x, random_seed=0).sum()) for f in (found, fit(FactorialHMM([2, 2], 6), x)))
    assert abs(one - two) < 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FactorialHMM([], 2), "chains must be numbers of states, each at least 2, got"),
        (lambda: FactorialHMM([2, 1], 2), "chains must be numbers of states, each at least 2, got"),
        (lambda: FactorialHMM({"a b": 2}, 2), "names of letters, digits and _, got"),
        (lambda: FactorialHMM([2], 0), "features must be a whole number of at least 1, got 0"),
        (lambda: FactorialHMM([2], 2, noise=-1.0), "noise and strength must be positive"),
        (lambda: fit(FactorialHMM([2, 2], 2), np.zeros((1, 9, 3))), "x must have shape \\(N, T, D=2\\)"),
        (lambda: fit(FactorialHMM([2, 2], 1), np.zeros((1, 3, 1))), "at least as many frames as there are states"),
        (lambda: fit(FactorialHMM([2, 2], 1), np.zeros((1, 9, 1)), u=np.zeros((1, 1))), "takes no inputs u, got some"),
    ],
)
def test_what_cannot_be_is_said(make, words):
    with pytest.raises(DataError, match=words):
        make()
