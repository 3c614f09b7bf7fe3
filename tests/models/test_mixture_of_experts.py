"""Mixtures of experts: the sum over experts, crossing lines found, gates behind gates, labels, refusals."""

import numpy as np
import pytest
import torch
from dense import normal
from pyro import poutine

from ppgen.errors import DataError
from ppgen.inference import mcmc, svi
from ppgen.models import MixtureOfExperts
from ppgen.predictions import predictive

MODELS = {
    "normal": lambda: MixtureOfExperts(3, 2, 2),
    "bernoulli": lambda: MixtureOfExperts(2, 2, 2, likelihood="bernoulli"),
    "two gates": lambda: MixtureOfExperts(2, 2, 2, likelihood="poisson", depth=2),
    "categorical": lambda: MixtureOfExperts(2, 2, 2, likelihood="categorical", categories=2),
}


def gates(model, theta, u):
    """Probability of each expert."""
    first = (theta["gate"] @ u).softmax(0)
    if model.depth == 1:
        return first
    return torch.cat([p * (second @ u).softmax(0) for p, second in zip(first, theta["second_gate"], strict=True)])


def density(model, theta, x, u):
    """Probability of what is seen of a row, summed over experts."""
    total = 0.0
    for k, gate in enumerate(gates(model, theta, u)):
        value = torch.ones(()).double()
        for d in range(2):
            eta, kind = theta["weights"][k, d] @ u, model.likelihood.likelihood
            if x[d].isnan():
                continue
            one = {
                "normal": lambda: torch.distributions.Normal(eta, theta["noise"][k, d]),  # noqa: B023
                "bernoulli": lambda: torch.distributions.Bernoulli(logits=eta),  # noqa: B023
                "poisson": lambda: torch.distributions.Poisson(eta.exp()),  # noqa: B023
                "categorical": lambda: torch.distributions.Categorical(logits=eta),  # noqa: B023
            }[kind]()
            value = value * one.log_prob(x[d]).exp()
        total = total + gate * value
    return total


@pytest.mark.parametrize("name", MODELS)
def test_the_density_sums_over_experts_whatever_is_missing(name):
    torch.manual_seed(0)
    model, u = MODELS[name](), normal(4, 2)
    x = torch.randint(2, (4, 2)).double()
    x[0, 1], x[1] = torch.nan, torch.nan
    theta = predictive.prior(model, x, u=u)
    found = predictive.log_likelihood(model, theta, x, u=u)
    for value, row, own in zip(found, x, u, strict=True):
        exact = density(model, theta, row, torch.cat([own, torch.ones(1).double()])).log()
        assert abs(value - exact) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_is_that_of_the_sum_over_experts(name):
    torch.manual_seed(1)
    model, u = MODELS[name](), normal(3, 2)
    x = torch.randint(2, (3, 2)).double()
    x[0, 1], x[2] = torch.nan, torch.nan
    theta = {site: value.requires_grad_() for site, value in predictive.prior(model, x, u=u).items()}
    one = torch.ones(1).double()
    exact = sum(density(model, theta, row, torch.cat([own, one])).log() for row, own in zip(x, u, strict=True))
    trace = poutine.trace(poutine.condition(model.model, data=theta)).get_trace(x, u=u)
    found = trace.nodes["x"]["fn"].log_prob(x).sum()
    for site in theta:
        pair = (torch.autograd.grad(value, theta[site], retain_graph=True)[0] for value in (found, exact))
        torch.testing.assert_close(*pair, rtol=0, atol=1e-10, msg=site)


def test_groups_and_their_experts_are_numbered_alike_and_say_the_same():
    torch.manual_seed(4)
    model, x, u = MixtureOfExperts(2, 2, 2, depth=2), normal(5, 2), normal(5, 2)
    one = predictive.prior(model, x, u=u)
    order = [3, 2, 0, 1]  # the groups change places, and the experts of one of them
    other = {
        "gate": one["gate"][[1, 0]] + 0.3, "weights": one["weights"][order], "noise": one["noise"][order],
        "second_gate": torch.stack([one["second_gate"][1, [1, 0]], one["second_gate"][0]]) - 0.2,
    }  # fmt: skip
    said = [predictive.log_likelihood(model, theta, x, u=u) for theta in (one, other)]
    torch.testing.assert_close(*said)
    theta = {site: torch.stack([one[site], other[site], one[site]])[None] for site in one}
    turned = model.turned(theta)
    for site in ("weights", "noise"):
        torch.testing.assert_close(turned[site], turned[site][:, :1].expand_as(turned[site]))
    for s in range(3):
        own = {site: value[0, s] for site, value in turned.items()}
        torch.testing.assert_close(predictive.log_likelihood(model, own, x, u=u), said[0])


def test_gates_that_leave_out_experts_are_told():
    model = MixtureOfExperts(3, 1, 1)
    gate = torch.zeros(1, 3, 2).double()
    assert model.remarks({"gate": gate}) == []
    gate[:, 0, 1] = -9.0
    (words,) = model.remarks({"gate": gate})
    assert "choose 2 of the 3 experts" in words
    (words,) = MixtureOfExperts(2, 1, 1, depth=2).remarks(
        {"gate": torch.tensor([[[0.0, 9.0], [0.0, -9.0]]]).double(), "second_gate": torch.zeros(1, 2, 2, 2).double()}
    )
    assert "choose 2 of the 4 experts" in words


def test_inputs_in_other_units_are_told_of_and_rare_events_are_not(caplog):
    x, u, _ = lines(1, 100)
    rare = np.zeros_like(u)
    rare[[3, 50]] = 1.0
    fit = {"guide": "map", "max_steps": 2, "random_seed": 0, "progressbar": False}
    svi.fit(MixtureOfExperts(2, 2, 1), x, u=np.concatenate([u, rare], 1), **fit)
    assert "units" not in caplog.text
    for odd in (100 * u, 0.01 * u, u + 50):
        caplog.clear()
        svi.fit(MixtureOfExperts(2, 2, 1), x, u=np.concatenate([rare, odd], 1), **fit)
        assert "u must be in units of about one around zero, got input 1" in caplog.text
    caplog.clear()
    svi.fit(MixtureOfExperts(2, 2, 1), x, u=np.concatenate([u, 0 * u + 1], 1), **fit)
    assert "input 1 is 1 everywhere" in caplog.text


def lines(seed, rows=400):
    """Two lines that cross, each more often on its own side."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-2, 2, size=(rows, 1))
    first = rng.random(rows) < 1 / (1 + np.exp(-3 * u[:, 0]))
    mean = np.where(first, 1.0 + 1.5 * u[:, 0], -0.5 - 1.0 * u[:, 0])
    return (mean + 0.2 * rng.normal(size=rows))[:, None], u, first


@pytest.mark.parametrize("seed", range(5))
def test_crossing_lines_are_found(seed):
    x, u, first = lines(seed)
    found = svi.fit(MixtureOfExperts(2, 1, 1), x, u=u, guide="map", n_init=4, random_seed=0, progressbar=False)
    weights = found.to_arviz(draws=1).posterior["weights"].values[0, 0, :, 0]
    weights = weights[weights[:, 0].argsort()[::-1]]
    np.testing.assert_allclose(weights, [[1.5, 1.0], [-1.0, -0.5]], atol=0.12)
    z = found.latents(x, u=u)["z_mode"].values
    assert max((z == first).mean(), (z != first).mean()) > 0.9


def test_new_rows_are_predicted_by_the_expert_of_their_side():
    x, u, _ = lines(7)
    found = svi.fit(MixtureOfExperts(2, 1, 1), x, u=u, guide="map", n_init=4, random_seed=0, progressbar=False)
    ahead = np.array([[-1.8], [1.8]])
    told = found.predict(np.full((2, 1), np.nan), u=ahead, draws=400, random_seed=0)["estimate"].values[:, 0]
    np.testing.assert_allclose(told, [1.3, 3.7], atol=0.25)


def test_gates_behind_gates_have_labels():
    x, u, _ = lines(3, 60)
    found = svi.fit(MixtureOfExperts(2, 1, 1, depth=2), x, u=u, guide="map", random_seed=0, progressbar=False)
    tree = found.to_arviz(draws=1).posterior
    assert list(tree["expert"].values) == ["0.0", "0.1", "1.0", "1.1"]
    assert tree["second_gate"].dims[2:] == ("group", "member", "regressor")
    assert found.latents(x, u=u)["z"].dims == ("row", "expert")


@pytest.mark.slow
def test_a_sampler_finds_the_density_that_a_point_finds():
    x, u, _ = lines(2, 150)
    options = {"random_seed": 0, "progressbar": False}
    point = svi.fit(MixtureOfExperts(2, 1, 1), x, u=u, guide="map", n_init=4, **options)
    chains = mcmc.fit(MixtureOfExperts(2, 1, 1), x, u=u, chains=8, draws=150, tune=300, **options)
    one, two = (float(f.log_likelihood(x, u=u, random_seed=0).mean()) for f in (point, chains))
    assert abs(one - two) < 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MixtureOfExperts(0, 1, 1), "experts must be a whole number of at least 1, got 0"),
        (lambda: MixtureOfExperts(2, 0, 1), "inputs must be a whole number of at least 1, got 0"),
        (lambda: MixtureOfExperts(2, 1, 1, depth=3), "depth must be 1 or 2, got 3"),
        (lambda: MixtureOfExperts(2, 1, 1, scale=0.0), "scale must be positive, got 0.0"),
        (lambda: MixtureOfExperts(2, 1, 1, categories=3), "categories must be given with"),
    ],
)
def test_what_cannot_be_is_said(make, words):
    with pytest.raises(DataError, match=words):
        make()
