"""The bound and its gradient, estimator by estimator, against sums over all values and closed forms."""

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.func import functional_call, grad

from ppgen.errors import DataError, FitError
from ppgen.inference.svi.objective import Objective
from ppgen.programs.isolated import isolated

DOUBLE = {"dtype": torch.float64}


def place(logits):
    return pyro.sample("z", dist.Categorical(logits=logits))


class Programs(torch.nn.Module):
    """A pair of programs with one vector of parameters."""

    def __init__(self, model, guide, theta):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(theta, **DOUBLE))
        self.pair = (lambda *args: model(self.theta, *args), lambda *args: guide(self.theta, *args))

    def model(self, *args):
        return self.pair[0](*args)

    def guide(self, *args):
        return self.pair[1](*args)


@pytest.fixture(autouse=True)
def quiet():
    torch.set_default_dtype(torch.float64)
    with isolated():
        yield
    torch.set_default_dtype(torch.float32)


def objective(model, guide, theta, *args):
    programs = Programs(model, guide, theta)
    made = Objective(programs.model, programs.guide, (programs,))
    made.learn(args, {})
    return made


def estimate(made, *args, particles=1, baselines=None, theta=None):
    """Bound and gradient at the present parameters, or others."""
    own = dict(made.named_parameters())
    if theta is not None:
        own = dict.fromkeys(own, torch.as_tensor(theta))
    baselines = torch.zeros(len(made.plan.scored)) if baselines is None else baselines

    def surrogate(own):
        return functional_call(made, own, (args, {}, {}, baselines, particles))[0]

    with torch.no_grad():
        bound = functional_call(made, own, (args, {}, {}, baselines, particles))[1]
    (gradient,) = grad(surrogate)({k: v.detach() for k, v in own.items()}).values()
    return float(bound), gradient


def normal_pair(mu, log_scale, prior_scale):
    """KL(N(mu, s) || N(0, prior_scale))."""
    q, p = dist.Normal(mu, log_scale.exp()), dist.Normal(0.0, prior_scale)
    return torch.distributions.kl_divergence(q, p)


def test_a_divergence_in_closed_form_carries_no_noise():
    def model(theta, x):
        h = pyro.sample("h", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        pyro.sample("x", dist.Delta(x), obs=x)  # nothing is learnt from it
        return h

    def guide(theta, x):
        pyro.sample("h", dist.Normal(theta[:2], theta[2:].exp()).to_event(1))

    made = objective(model, guide, [0.3, -1.0, 0.2, 0.4], torch.zeros(()))
    assert made.plan.words() == {"h": "closed form"}
    theta = made.owners[0].theta.detach()
    exact = -normal_pair(theta[:2], theta[2:], 2.0).sum()
    assert [estimate(made, torch.zeros(()))[0] for _ in range(3)] == [pytest.approx(float(exact), abs=1e-12)] * 3


def test_a_pair_whose_parents_come_in_another_order_is_sampled():
    """In the guide ``a`` depends on ``b``, in the model ``b`` on ``a``: no divergence at fixed parents is right."""

    def model(theta):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    def guide(theta):
        b = pyro.sample("b", dist.Normal(theta[0], 1.0))
        pyro.sample("a", dist.Normal(0.5 * b, 1.0))

    made = objective(model, guide, [0.7])
    assert made.plan.words() == {"a": "closed form", "b": "reparameterised"}
    bounds = torch.tensor([estimate(made, particles=200)[0] for _ in range(30)])
    b2, half = 0.7**2 + 1, math.log(2 * math.pi) / 2
    log_p = -2 * half - 0.5 * (b2 / 4 + 1) - 0.5 * (b2 / 4 + 1)
    exact = log_p + 2 * half + 1
    assert abs(float(bounds.mean()) - exact) < 5.4 * float(bounds.std()) / 30**0.5  # odds of a false alarm 1e-5


def mixture(theta, x):
    with pyro.plate("row", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=theta[:3]))
        pyro.sample("x", dist.Normal(theta[3:6][z], 1.0), obs=x)


def responsibilities(theta, x):
    with pyro.plate("row", len(x)):
        pyro.sample("z", dist.Categorical(logits=x[:, None] * theta[6:9]))


THETA = [0.1, -0.2, 0.3, -1.0, 0.0, 1.5, 0.5, -0.3, 0.2]
X = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)


def mixture_bound(theta):
    """Sum over all assignments, by hand."""
    q = torch.log_softmax(X[:, None] * theta[6:9], -1)
    joint = torch.log_softmax(theta[:3], -1) + dist.Normal(theta[3:6], 1.0).log_prob(X[:, None])
    return (q.exp() * (joint - q)).sum()


@pytest.mark.parametrize("particles", [1, 3])
def test_small_discrete_sites_of_the_guide_are_averaged_over_exactly(particles):
    made = objective(mixture, responsibilities, THETA, X)
    assert made.plan.words() == {"z": "enumerated"}
    bound, gradient = estimate(made, X, particles=particles)
    exact = torch.tensor(THETA)
    assert bound == pytest.approx(float(mixture_bound(exact)), abs=1e-12)
    torch.testing.assert_close(gradient, grad(mixture_bound)(exact), rtol=1e-10, atol=1e-12)


def test_discrete_sites_that_depend_on_each_other_are_averaged_over_exactly():
    def model(theta):
        a = pyro.sample("a", dist.Bernoulli(logits=theta[0]))
        b = pyro.sample("b", dist.Categorical(logits=theta[1:4] * a[..., None]))
        with pyro.plate("row", 2):
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=torch.tensor([0.5, 1.5]))

    def guide(theta):
        a = pyro.sample("a", dist.Bernoulli(logits=theta[4]))
        pyro.sample("b", dist.Categorical(logits=theta[1:4] + a[..., None]))

    values = torch.tensor([0.2, 0.4, -0.5, 0.1, 0.6])

    def exact(theta):
        total = 0.0
        for a in (0.0, 1.0):
            qa, pa = dist.Bernoulli(logits=theta[4]), dist.Bernoulli(logits=theta[0])
            for b in range(3):
                qb, pb = dist.Categorical(logits=theta[1:4] + a), dist.Categorical(logits=theta[1:4] * a)
                at, bt = torch.tensor(a), torch.tensor(b)
                log_q = qa.log_prob(at) + qb.log_prob(bt)
                seen = dist.Normal(at + bt, 1.0).log_prob(torch.tensor([0.5, 1.5])).sum()
                total = total + log_q.exp() * (pa.log_prob(at) + pb.log_prob(bt) + seen - log_q)
        return total

    made = objective(model, guide, values.tolist())
    bound, gradient = estimate(made)
    assert bound == pytest.approx(float(exact(values)), abs=1e-12)
    torch.testing.assert_close(gradient, grad(exact)(values), rtol=1e-10, atol=1e-12)


def test_discrete_sites_that_the_guide_leaves_out_are_summed_out():
    def model(theta, x, total):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0))
        with pyro.plate("row", total, subsample_size=len(x)):
            z = pyro.sample("z", dist.Categorical(logits=theta[:2]))
            pyro.sample("x", dist.Normal(theta[2:4][z], scale), obs=x)

    def guide(theta, x, total):
        pyro.sample("scale", dist.Delta(theta[4].exp()))

    values = torch.tensor([0.3, -0.1, -1.0, 1.0, 0.2])

    def exact(theta, x, total):
        scale = theta[4].exp()
        each = torch.log_softmax(theta[:2], -1) + dist.Normal(theta[2:4], scale).log_prob(x[:, None])
        return dist.LogNormal(0.0, 1.0).log_prob(scale) + total / len(x) * each.logsumexp(-1).sum()

    for x, total in ((X, len(X)), (X[:2], len(X))):
        made = objective(model, guide, values.tolist(), x, total)
        assert made.plan.words() == {"scale": "reparameterised", "z": "summed out"}
        bound, gradient = estimate(made, x, total)
        assert bound == pytest.approx(float(exact(values, x, total)), abs=1e-10)
        torch.testing.assert_close(gradient, grad(exact)(values, x, total), rtol=1e-10, atol=1e-12)


def counts(theta, x):
    with pyro.plate("row", len(x)):
        n = pyro.sample("n", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(n, 1.0), obs=x)


def counted(theta, x):
    with pyro.plate("row", len(x)):
        pyro.sample("n", dist.Poisson(theta.exp()))


def test_the_score_function_has_the_right_mean_and_a_baseline_lessens_its_noise(caplog):
    """Against the sum over n up to 60; |t| < 6 of 8 entries (29 degrees) is a false-alarm rate of 1e-5."""
    theta = torch.tensor([0.2, 0.9, -0.4, 0.5])

    def exact(theta):
        n = torch.arange(61.0)[:, None]
        q = dist.Poisson(theta.exp()).log_prob(n)
        return (q.exp() * (dist.Poisson(2.0).log_prob(n) + dist.Normal(n, 1.0).log_prob(X) - q)).sum()

    with caplog.at_level(logging.WARNING, logger="ppgen"):
        made = objective(counts, counted, theta.tolist(), X)
    assert "the gradient of site 'n' comes from its score function (Poisson has no reparam" in caplog.text
    assert made.plan.words() == {"n": "score function"}
    gradients = {}
    for baseline in (0.0, -3.0):
        torch.manual_seed(1)  # the same draws for both
        drawn = [estimate(made, X, particles=50, baselines=torch.tensor([baseline]))[1] for _ in range(30)]
        gradients[baseline] = torch.stack(drawn)
        z = (gradients[baseline].mean(0) - grad(exact)(theta)) / (gradients[baseline].std(0) / 30**0.5)
        assert float(z.abs().max()) < 6
    assert gradients[-3.0].var(0).sum() < 0.85 * gradients[0.0].var(0).sum()


def test_a_baseline_is_the_mean_weight_of_its_site():
    made = objective(counts, counted, [0.2, 0.9, -0.4, 0.5], X)
    own = dict(made.named_parameters())
    with torch.no_grad():
        found = functional_call(made, own, ((X,), {}, {}, torch.zeros(1), 400))
    assert float(found[2]) == pytest.approx(float(found[1]) / len(X), rel=0.05)


def test_particles_of_every_distribution_are_independent_draws():
    """Distributions that fill a tensor in place draw anew for each particle; constant draws would have no spread."""

    def model(theta):
        for name in ("a", "b", "c", "d", "e"):
            pyro.sample(name, dist.Normal(0.0, 1.0))

    def guide(theta):
        pyro.sample("a", dist.Cauchy(theta[0], 1.0))
        pyro.sample("b", dist.Exponential(theta[1].exp()))
        pyro.sample("c", dist.Laplace(theta[2], 1.0))
        pyro.sample("d", dist.Gamma(theta[3].exp(), 1.0))
        pyro.sample("e", dist.Gumbel(theta[4], 1.0))

    made = objective(model, guide, [0.1, 0.2, 0.3, 0.4, 0.5])
    drawn, stats = made.draw(300, (), {}, {})
    for name, fn in {
        "a": torch.distributions.Cauchy(0.1, 1.0),
        "b": torch.distributions.Exponential(math.exp(0.2)),
        "c": torch.distributions.Laplace(0.3, 1.0),
        "d": None,
        "e": torch.distributions.Gumbel(0.5, 1.0),
    }.items():
        assert drawn[name].shape == (300,)
        assert len(drawn[name].unique()) == 300
        if fn is not None:  # uniform ranks: Kolmogorov's statistic above .13 at n = 300 has odds 1e-4
            u = fn.cdf(drawn[name]).sort().values
            assert float((u - (torch.arange(300) + 0.5) / 300).abs().max()) < 0.13
    assert stats["log_q"].shape == (300,)


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_draws_of_a_dirichlet_have_its_moments_and_gradients(scale):
    """E log p_k = digamma(a_k) - digamma(sum a); of 6 comparisons |z| < 4.9 is a false-alarm rate of 6e-6."""
    theta = scale * torch.tensor([0.5, 1.0, 2.0])

    def guide(theta):
        pyro.sample("p", dist.Dirichlet(theta))

    def model(theta):
        pyro.factor("first", pyro.sample("p", dist.Dirichlet(torch.ones(3)))[0])

    made = objective(model, guide, theta.tolist())
    assert made.plan.words() == {"p": "closed form"}
    drawn, _ = made.draw(4000, (), {}, {})
    exact = torch.distributions.Dirichlet(theta)
    z = (drawn["p"].mean(0) - exact.mean) / (exact.variance / 4000).sqrt()
    assert float(z.abs().max()) < 4.9
    gradients = torch.stack([estimate(made, particles=100)[1] for _ in range(40)])

    def bound(theta):
        q, p = torch.distributions.Dirichlet(theta), torch.distributions.Dirichlet(torch.ones(3))
        return theta[0] / theta.sum() - torch.distributions.kl_divergence(q, p)

    z = (gradients.mean(0) - grad(bound)(theta)) / (gradients.std(0) / 40**0.5)
    assert float(z.abs().max()) < 5.5


@pytest.mark.parametrize("rows", [3, 4])
def test_plates_side_by_side_share_nothing_though_they_have_one_dim(rows):
    """Each z is weighed by all rows of y, which depend on it; |z| < 4.5 for three numbers fails once in 50,000 runs."""
    rate, y = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 5.0, 9.0, 2.0])[:rows]
    far = torch.arange(60.0)

    def model(theta):
        with pyro.plate("a", 3):
            z = pyro.sample("z", dist.Poisson(torch.full((3,), 3.0)))
        with pyro.plate("b", rows):
            pyro.sample("y", dist.Normal(z[0], 1.0).expand([rows]), obs=y)

    def guide(theta):
        with pyro.plate("a", 3):
            pyro.sample("z", dist.Poisson(theta.exp()))

    theta = rate.log().requires_grad_()
    log_q = dist.Poisson(theta.exp()[:, None]).log_prob(far)
    value = dist.Poisson(3.0).log_prob(far).expand(3, -1).clone()
    value[0] += dist.Normal(far[:, None], 1.0).log_prob(y).sum(-1)
    exact = torch.autograd.grad((log_q.exp() * (value - log_q)).sum(), theta)[0]
    made = objective(model, guide, rate.log().tolist())
    torch.manual_seed(0)
    found = torch.stack([estimate(made, particles=1000)[1] for _ in range(40)])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - exact).abs() < 4.5 * error).all()


def test_a_guide_that_scores_and_enumerates_is_refused():
    def model(theta):
        n = pyro.sample("n", dist.Poisson(1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(n + z, 1.0), obs=torch.tensor(1.0))

    def guide(theta):
        pyro.sample("n", dist.Poisson(theta[0].exp()))
        pyro.sample("z", dist.Bernoulli(logits=theta[1]))

    with pytest.raises(FitError, match="draws the small discrete site 'z' must draw every other .* 'n' is not"):
        objective(model, guide, [0.0, 0.0])


def test_a_large_discrete_site_must_be_in_the_guide():
    def model(theta):
        pyro.sample("n", dist.Poisson(1.0))
        pyro.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(DataError, match="discrete site 'n' must have few values to be summed out"):
        objective(model, lambda theta: pyro.sample("a", dist.Normal(theta[0], 1.0)), [0.0])
