import itertools

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from dense import normal

from ppgen.emissions import Autoregressive, Categorical, Gaussian
from ppgen.emissions.units import check_units
from ppgen.errors import DataError
from ppgen.expecting import first_factors, observed_given
from ppgen.inference import mcmc, svi, vb
from ppgen.inference.vb.engine import _refine
from ppgen.models import HMM
from ppgen.results.fit import load

CENTRES = 4 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).double()


def visits(N=4, T=150, stay=15):
    """Three places, each visited for ``stay`` steps at a time: (z, x)."""
    z = torch.randint(3, (N, T // stay)).repeat_interleave(stay, -1)
    return z, CENTRES[z] + normal(*z.shape, 2)


def accuracy(labels, z):
    """Best share of steps that agree over every way to name the states."""
    return max(float((torch.tensor(names)[labels] == z).double().mean()) for names in itertools.permutations(range(3)))


def fit(model, x, **options):
    return vb.fit(model, x, **({"random_seed": 0, "progressbar": False} | options))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_states_that_differ_are_found_whatever_is_missing(missing):
    z, x = visits()
    x[torch.rand(x.shape) < missing] = torch.nan
    labels = torch.from_numpy(fit(HMM(states=3, features=2), x, n_init=2).latents(x)["z_mode"].values)
    seen = ~x.isnan().all(-1)
    assert accuracy(labels[seen], z[seen]) > 0.97


def test_the_hierarchical_prior_empties_the_states_that_the_data_do_not_need():
    _, x = visits(N=3)
    crowded = HMM(states=8, features=2, hierarchical=True, stickiness=10.0)
    result = fit(crowded, x, n_init=4, max_steps=60, tol=1e-4)
    used = result.latents(x)["z"].mean(("sequence", "time")).values
    assert (used > 0.01).sum() == 3
    usage = np.sort(result.model.usage.detach().numpy())
    assert usage[-3:].sum() > 0.9


def test_the_usage_is_where_the_bound_is_highest():
    """The gradient of the bound in the point estimate vanishes after a step of its own."""
    _, x = visits()
    model = fit(HMM(states=5, features=2, hierarchical=True), x, max_steps=50)
    model, q = model.model, model.posterior.factors

    def bound():
        prior = model.natural_prior()["transition"]
        return model.log_hyperprior() - prior.family.kl(q["transition"].eta, prior.eta).sum()

    _refine(model, q)
    (gradient,) = torch.autograd.grad(bound(), list(model.parameters()))
    assert gradient.abs().max() < 1e-3


def test_the_prior_of_the_usage_is_dirichlet_on_the_unconstrained_scale():
    model = HMM(states=4, features=1, hierarchical=True, usage_concentration=2.0)
    model.usage_logits.data = normal(4)
    usage = model.usage
    wanted = dist.Dirichlet(torch.full((4,), 0.5).double()).log_prob(usage) + usage.log().sum()
    torch.testing.assert_close(model.log_hyperprior(), wanted)


def test_the_prior_counts_are_those_of_the_story():
    model = HMM(states=4, features=2, stickiness=7.0, concentration=2.0)
    prior = model.natural_prior()
    torch.testing.assert_close(prior["initial"].eta["log_probability"], torch.full((4,), 0.5).double())
    rows = prior["transition"].eta["log_probability"]
    torch.testing.assert_close(rows, 0.5 + 7 * torch.eye(4).double())


def test_assigned_paths_score_as_the_listed_ones_do():
    """The evidence is the log of the sum over paths of the complete-data score, trailing NaN left out."""
    model, x = HMM(states=2, features=2), normal(2, 4, 2)
    x[0, 1, 0] = x[1, 3] = torch.nan
    s = {name: factor.expected() for name, factor in model.natural_prior().items()}
    for n, length in ((0, 4), (1, 3)):
        one = x[n : n + 1, :length]
        states = observed_given(model, s, one, None)["x"].distribution
        scores = [states.joint(one, {"z": torch.tensor([path])}) for path in itertools.product(range(2), repeat=length)]
        torch.testing.assert_close(torch.cat(scores).logsumexp(0), states.log_prob(x)[n], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["kmeans", "random", "segments-5", "segments-1000"])
@pytest.mark.parametrize(
    "emission", [Gaussian(2), Autoregressive(2, 3), Categorical(3, features=2)], ids=["gaussian", "ar", "categorical"]
)
def test_every_start_labels_every_step(method, emission):
    x = torch.randint(3, (3, 20, 2)).double()
    x[0, 4:9] = x[1, 12:] = x[2] = torch.nan
    model = HMM(states=4, emission=emission)
    (labels,) = (values["z"] for values in model.guess([x], [None], method))
    assert labels.shape == x.shape[:2]
    assert ((labels >= 0) & (labels < 4)).all()
    for factor in first_factors(model, [x], [None], method).values():
        factor.family.check(factor.eta)


def test_equal_steps_are_no_trouble_for_a_start():
    for method in ("kmeans", "segments-4"):
        (values,) = HMM(states=5, features=1).guess([torch.ones(2, 10, 1).double()], [None], method)
        assert len(values["z"].unique()) <= 5


def test_names_of_states_label_every_answer():
    _, x = visits()
    result = fit(HMM(states=["rest", "walk", "run"], features=2), x, max_steps=5)
    assert result.latents(x)["z"]["state"].values.tolist() == ["rest", "walk", "run"]
    assert HMM(**result.model.config).coords == result.model.coords


def test_stochastic_variational_inference_nears_the_natural_gradient():
    _, x = visits(N=2, T=60)
    model = HMM(states=3, features=2)
    natural = fit(model, x)
    stochastic = svi.fit(model, x, max_steps=200, lr=0.03, draws=200, random_seed=0, progressbar=False)
    bound = stochastic.history["elbo"].tail(50).mean()
    assert abs(bound - natural.history["elbo"].iloc[-1]) < 0.03 * abs(bound)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_short_chains_of_mcmc_run_and_hold_every_site(hierarchical):
    _, x = visits(N=1, T=30)
    model = HMM(states=2, features=2, hierarchical=hierarchical)
    chain = mcmc.fit(model, x, draws=3, tune=3, chains=1, random_seed=0, progressbar=False)
    assert set(chain.posterior.sites) == set(model.dims)
    transition = chain.posterior.sites["transition"]
    torch.testing.assert_close(transition.sum(-1), torch.ones_like(transition.sum(-1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"states": 0}, "HMM: states must be at least 1, got 0"),
        ({"states": []}, r"HMM: states must be at least 1, got \[\]"),
        ({"states": "rest"}, "HMM: states must be a whole number or a list of names, got 'rest'"),
        ({"states": ["a", "a"]}, r"HMM: names of states must differ, got \['a', 'a'\]"),
        ({"features": None}, "HMM: give either features .* or emission, one of the two"),
        ({"emission": Gaussian(2)}, "HMM: give either features .* or emission, one of the two"),
        ({"features": 0}, "Gaussian: features must be at least 1, got 0"),
        ({"stickiness": -1.0}, "HMM: stickiness must be zero or more, got -1.0"),
        ({"stickiness": float("inf")}, "HMM: stickiness must be zero or more, got inf"),
        ({"concentration": 0.0}, "HMM: concentration must be positive, got 0.0"),
        ({"concentration": float("nan")}, "HMM: concentration must be positive, got nan"),
        ({"usage_concentration": -2}, "HMM: usage_concentration must be positive, got -2.0"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(DataError, match=message):
        HMM(**{"states": 2, "features": 2, **arguments})


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert HMM(states=np.int64(3), features=2).states == 3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 4, 3), r"HMM, Gaussian: x must have shape \(N, T, D=2\), got \(5, 4, 3\)"),
        ((1, 3, 2), r"HMM: x must have at least as many frames as states \(7\), got 3"),
    ],
)
def test_data_of_the_wrong_size_is_refused_in_words(shape, message):
    with pytest.raises(DataError, match=message):
        fit(HMM(states=7, features=2), torch.zeros(shape))


def test_learned_scales_of_the_prior_raise_the_bound_and_are_kept_with_the_fit(tmp_path):
    torch.manual_seed(0)
    x = 0.05 * torch.randn(2, 150, 2, dtype=torch.float64).cumsum(1)
    options = {"random_seed": 0, "progressbar": False, "max_steps": 60}
    given = vb.fit(HMM(2, emission=Autoregressive(2, 1, noise=1.0)), x, **options)
    learned = vb.fit(HMM(2, emission=Autoregressive(2, 1, noise=1.0), learn_prior=True), x, **options)
    assert learned.history["elbo"].iloc[-1] > given.history["elbo"].iloc[-1]
    assert (learned.history["elbo"].diff().dropna() > -1e-6).all()
    assert learned.model.scales["noise"].item() < 0.3
    learned.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    assert again.model.scales["noise"].equal(learned.model.scales["noise"])


def test_inputs_are_refused_and_not_ignored():
    with pytest.raises(DataError, match="HMM: takes no inputs u"):
        HMM(2, 2).model(torch.zeros(1, 5, 2).double(), u=torch.zeros(1, 5, 1).double())


def clear_states():
    rng = np.random.default_rng(0)
    z = np.repeat(rng.integers(0, 3, 40), 10)
    return np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])[z] + 0.5 * rng.normal(size=(400, 2))


@pytest.mark.parametrize("change", [lambda x: 0.01 * x, lambda x: 1e-12 * x, lambda x: x + 1000, lambda x: x + 1e6])
def test_units_that_the_prior_outweighs_are_refused_in_words(change):
    with pytest.raises(DataError, match=r"HMM, Gaussian: x must be in units .* got feature 0 with mean .* standardise"):
        vb.fit(HMM(3, 2), change(clear_states())[None], random_seed=0)


@pytest.mark.parametrize("change", [lambda x: 0.1 * x, lambda x: 1e15 * x, lambda x: x + 10, lambda x: 0 * x + 1000])
def test_units_that_do_no_harm_are_taken(change):
    x = torch.tensor(change(clear_states()))[None]
    check_units("HMM", HMM(3, 2).emission, [x], 3)
    check_units("HMM", Autoregressive(2), [x], 3)


def test_one_feature_out_of_scale_is_said(caplog):
    x = torch.tensor(clear_states() + [0.0, 1000.0])[None]
    with caplog.at_level("WARNING", "ppgen"):
        check_units("HMM", HMM(3, 2).emission, [x], 3)
    assert "feature 1 with mean 1e+03" in caplog.text
    assert "1 of 2 features" in caplog.text


def test_minibatches_with_gaps_and_lengths_of_their_own_share_one_graph():
    """Each batch of two sequences has other lengths and gaps than the first, at which the bound was traced."""
    x = torch.tensor(np.random.default_rng(0).normal(size=(8, 6, 2)))
    for row in range(8):
        x[row, row % 6, row % 2] = torch.nan
        x[row, 6 - row // 2 :] = torch.nan
    options = {"batch_size": 2, "max_steps": 30, "random_seed": 1, "progressbar": False, "draws": 5}
    traced, eager = (svi.fit(HMM(2, 2), x, compile=mode, **options) for mode in ("auto", "eager"))
    assert traced.attrs["compile"] == "traced"
    np.testing.assert_allclose(traced.history["elbo"], eager.history["elbo"], rtol=1e-10)
    for name, factor in eager.posterior.factors.items():
        for key, value in factor.eta.items():
            torch.testing.assert_close(traced.posterior.factors[name].eta[key], value)


@pytest.mark.parametrize(("gaps", "said"), [(False, False), (True, True)])
def test_a_sampled_bound_is_said_to_be_one(gaps, said):
    x = torch.tensor(np.random.default_rng(0).normal(size=(1, 6, 1)))
    x[0, 3] = torch.nan if gaps else 0.0
    settings = {"draws": 2, "tune": 2, "chains": 2, "compile": "eager", "start": "uniform", "random_seed": 0}
    fit = mcmc.fit(HMM(2, emission=Autoregressive(1, 1)), x, progressbar=False, **settings)
    assert ("What was sampled is a lower bound of the density of x" in str(fit.diagnose())) is said
