"""Laws of every model. A new model is one line in ``CASES``: how to make it, its data, the inputs it needs."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine

import ppgen
from ppgen.diagnostics.relabel import label_axes, permuted
from ppgen.durations import NegativeBinomialDurations, PoissonDurations
from ppgen.emissions.autoregressive import Autoregressive
from ppgen.emissions.bernoulli import Bernoulli
from ppgen.emissions.categorical import Categorical
from ppgen.emissions.driven import DrivenGaussian
from ppgen.emissions.gaussian import Gaussian
from ppgen.emissions.poisson import Poisson
from ppgen.families.regression import OF_ONE
from ppgen.inference import svi, vb
from ppgen.model import Conjugate, Model
from ppgen.models.cca import CCA
from ppgen.models.factorial_hmm import FactorialHMM
from ppgen.models.gmm import GMM
from ppgen.models.hmm import HMM
from ppgen.models.iohmm import IOHMM
from ppgen.models.lds import LDS
from ppgen.models.mixture_of_experts import MixtureOfExperts
from ppgen.models.slds import SLDS
from ppgen.predictions import predictive
from ppgen.programs import program
from ppgen.programs.isolated import isolated


class Line(Model):
    """x = u'weight + noise, as a user writes it in plain Pyro: rows, inputs, missing targets, no conjugacy."""

    data_dims = ("row", "target")
    dims = {"weight": ("input",), "noise": ()}
    config = {}

    def model(self, x, *, u=None, total=None):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("row", total or len(x), subsample_size=len(x)):
            line = dist.Normal((u @ weight)[:, None], noise).mask(~torch.isnan(x)).to_event(1)
            pyro.sample("x", line, obs=torch.nan_to_num(x))


class Case(NamedTuple):
    make: Callable[[], Model]
    fill: Callable[..., torch.Tensor]
    shape: tuple[int, ...] = (3, 14, 2)
    inputs: int = 0


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def integers(below):
    return lambda *shape: torch.randint(below, shape).double()


CASES = {
    "hmm-gaussian": Case(lambda: HMM(["rest", "run"], 2), normal),
    "hmm-diagonal": Case(lambda: HMM(3, emission=Gaussian(2, covariance="diagonal")), normal),
    "hmm-one-state": Case(lambda: HMM(1, 2), normal),
    "hmm-sticky-hierarchical": Case(lambda: HMM(3, 2, stickiness=5.0, hierarchical=True), normal),
    "hmm-autoregressive": Case(lambda: HMM(2, emission=Autoregressive(2, 2)), normal),
    "hmm-categorical": Case(lambda: HMM(2, emission=Categorical(4, features=2)), integers(4)),
    "hmm-poisson": Case(lambda: HMM(2, emission=Poisson(2)), integers(6)),
    "hmm-durations": Case(lambda: HMM(3, 2, durations=NegativeBinomialDurations(2)), normal),
    "hmm-durations-poisson": Case(
        lambda: HMM(2, emission=Autoregressive(2, 2), durations=PoissonDurations(4, expected=2.0)), normal
    ),
    "hmm-driven": Case(lambda: HMM(2, 2, inputs=2), normal, inputs=2),
    "hmm-driven-diagonal-durations": Case(
        lambda: HMM(
            2, emission=DrivenGaussian(2, 1, covariance="diagonal"), inputs=1, durations=NegativeBinomialDurations(2)
        ),
        normal,
        inputs=1,
    ),
    "hmm-bernoulli": Case(lambda: HMM(2, emission=Bernoulli(2)), integers(2)),
    "gmm": Case(lambda: GMM(3, 2), normal, (9, 2)),
    "gmm-diagonal": Case(lambda: GMM(2, 2, covariance="diagonal"), normal, (9, 2)),
    "gmm-nonparametric": Case(lambda: GMM(4, 2, nonparametric=True), normal, (9, 2)),
    "lds": Case(lambda: LDS(1, 2), normal),
    "lds-full-driven": Case(lambda: LDS(2, 2, inputs=2, covariance="full"), normal, inputs=2),
    "slds": Case(lambda: SLDS(2, 1, 2), normal),
    "slds-both-driven": Case(lambda: SLDS(2, 1, 2, inputs=2, switching="both", covariance="full"), normal, inputs=2),
    "slds-recurrent": Case(lambda: SLDS(3, 1, 2, recurrent=True), normal),
    "cca-private": Case(lambda: CCA({"a": 2, "b": 1}, 1, private={"a": 1}), normal, (9, 3)),
    "cca-full": Case(lambda: CCA({"a": 2, "b": 2}, 1, covariance="full"), normal, (9, 4)),
    "cca-sparse": Case(lambda: CCA({"a": 2, "b": 2}, 2, sparse=True), normal, (9, 4)),
    "factorial": Case(lambda: FactorialHMM([2, 3], 2), normal),
    "factorial-full-held": Case(lambda: FactorialHMM([2, 2], 2, covariance="full", product=1), normal),
    "iohmm": Case(lambda: IOHMM(2, 2, 2), normal, inputs=2),
    "glm-hmm": Case(lambda: IOHMM(2, 2, 2, emission="bernoulli", transition_inputs=False), integers(2), inputs=2),
    "experts": Case(lambda: MixtureOfExperts(2, 2, 2), normal, (9, 2), inputs=2),
    "experts-categorical-deep": Case(
        lambda: MixtureOfExperts(2, 2, 2, likelihood="categorical", categories=3, depth=2),
        integers(3),
        (9, 2),
        inputs=2,
    ),
    "principal-components": Case(lambda: CCA(3, 1, covariance="spherical"), normal, (9, 3)),
    "line": Case(Line, normal, (9, 1), inputs=2),
}


class Given(NamedTuple):
    """A model with data full of gaps, inputs, and one draw of its parameters from the prior."""

    case: Case
    model: Model
    x: torch.Tensor
    u: torch.Tensor | None
    theta: dict[str, torch.Tensor]

    @property
    def timed(self):
        return "time" in self.model.data_dims


@pytest.fixture(params=CASES)
def given(request):
    case = CASES[request.param]
    model, x = case.make(), case.fill(*case.shape)
    u = normal(len(x), case.inputs) if case.inputs else None
    x[0, 0] = torch.nan
    if x.ndim == 3:
        x[0, 5], x[1, 3, 0], x[2, 7:9, 1] = torch.nan, torch.nan, torch.nan
        x[1, 10:] = torch.nan  # a shorter sequence
    return Given(case, model, x, u, predictive.prior(model, x, u=u))


def likelihood(given, x, u=None):
    return predictive.log_likelihood(given.model, given.theta, x, u=given.u if u is None else u)


def joint_gradient(given, x, u=None):
    """Log joint and its gradient with respect to every parameter."""
    theta = {site: value.clone().requires_grad_() for site, value in given.theta.items()}
    with isolated():
        program = poutine.trace(poutine.condition(given.model.model, data=theta))
        value = program.get_trace(x, u=given.u if u is None else u).log_prob_sum()
    return value.detach(), dict(zip(theta, torch.autograd.grad(value, list(theta.values())), strict=True))


def fitted(given, **options):
    options = {"random_seed": 3, "progressbar": False} | options
    if isinstance(given.model, Conjugate):
        return vb.fit(given.model, given.x, u=given.u, max_steps=3, **options)
    return svi.fit(given.model, given.x, u=given.u, max_steps=3, draws=8, **options)


def test_the_public_check_finds_no_broken_law(given):
    found = ppgen.check(given.model, given.x, u=given.u, random_seed=1)
    assert found.ok, str(found)


def test_what_hides_behind_a_nan_is_irrelevant(given):
    payload = torch.tensor(0x7FF8DEADBEEF0001 - (1 << 64) * 0, dtype=torch.int64).view(torch.float64)
    other = torch.where(torch.isnan(given.x), -payload, given.x)
    assert not other.view(torch.int64).equal(given.x.view(torch.int64))
    assert likelihood(given, other).equal(likelihood(given, given.x))
    for one, two in zip(*(joint_gradient(given, x)[1].values() for x in (other, given.x)), strict=True):
        assert one.equal(two)


def test_a_row_or_sequence_without_observations_adds_nothing(given):
    empty = torch.full_like(given.x[:1], torch.nan)
    x = torch.cat([given.x, empty])
    u = None if given.u is None else torch.cat([given.u, given.u[:1]])
    assert abs(likelihood(given, x, u)[-1]) < 1e-12
    torch.testing.assert_close(likelihood(given, x, u)[:-1], likelihood(given, given.x), rtol=1e-12, atol=1e-12)
    (value, gradient), (before, gradient_before) = joint_gradient(given, x, u), joint_gradient(given, given.x)
    torch.testing.assert_close(value, before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, gradient_before, rtol=1e-9, atol=1e-9)


def test_trailing_nan_is_a_shorter_sequence(given):
    if not given.timed:
        pytest.skip("no time")
    longer = torch.cat([given.x, torch.full_like(given.x[:, :3], torch.nan)], 1)
    torch.testing.assert_close(likelihood(given, longer), likelihood(given, given.x), rtol=1e-12, atol=1e-12)
    short, u = given.x[1:2, :10], None if given.u is None else given.u[1:2]
    torch.testing.assert_close(likelihood(given, short, u), likelihood(given, given.x)[1:2], rtol=1e-12, atol=1e-12)


def test_a_batch_is_the_sum_of_its_parts(given):
    parts = [
        likelihood(given, given.x[n : n + 1], None if given.u is None else given.u[n : n + 1])
        for n in range(len(given.x))
    ]
    torch.testing.assert_close(likelihood(given, given.x), torch.cat(parts), rtol=1e-11, atol=1e-11)


def test_a_batch_stands_for_the_whole_it_was_drawn_from(given):
    """With ``total`` rows behind a batch its likelihood counts as often, and the prior once."""
    with torch.no_grad(), isolated():
        run = poutine.trace(poutine.condition(given.model.model, data=given.theta))
        one, many = (run.get_trace(given.x, u=given.u, total=k * len(given.x)).log_prob_sum() for k in (1, 4))
    torch.testing.assert_close(many - one, 3 * likelihood(given, given.x).sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("hide", ["nothing", "gaps", "one feature", "everything"])
def test_gradients_are_finite_whatever_is_missing(given, hide):
    x = given.case.fill(*given.case.shape)
    if hide == "gaps":
        x = given.x
    if hide == "one feature":
        x[..., 0] = torch.nan
    if hide == "everything":
        x[:] = torch.nan
    value, gradient = joint_gradient(given, x)
    assert value.isfinite()
    assert all(entry.isfinite().all() for entry in gradient.values())


def test_exchangeable_labels_carry_no_meaning(given):
    """Parameters under another numbering have the same density, prior and likelihood both."""
    model, x, u, theta = given.model, given.x, given.u, given.theta
    if not model.exchangeable:
        pytest.skip("no labels")
    draws = {site: value[None, None] for site, value in theta.items()}
    for labels in model.exchangeable:
        axes = {site: places for site, places in label_axes(model.dims, labels).items() if site in theta}
        assert axes
        count = next(draws[site].shape[2 + places[0]] for site, places in axes.items())
        order = np.roll(np.arange(count), 1)[None, None]
        other = theta | {
            site: torch.as_tensor(permuted(draws[site].numpy(), order, places)[0, 0]) for site, places in axes.items()
        }
        expected = predictive.log_joint(model, theta, x, u=u)
        torch.testing.assert_close(predictive.log_joint(model, other, x, u=u), expected, rtol=1e-10, atol=1e-9)


def test_imputation_keeps_every_observed_entry_and_fills_every_gap(given):
    filled = predictive.impute(given.model, given.theta, given.x, u=given.u)
    seen = ~torch.isnan(given.x)
    assert filled[seen].equal(given.x[seen])
    gaps = predictive.exists(given.model, given.x)
    assert filled[gaps].isfinite().all()
    assert filled[~gaps].isnan().all()


def test_replicated_data_is_data_the_model_takes(given):
    replicated = predictive.replicate(given.model, given.theta, given.x, u=given.u)
    given.model.check(replicated)
    assert replicated[predictive.exists(given.model, given.x)].isfinite().all()


def test_the_guide_draws_exactly_the_latent_sites(given):
    with isolated():
        model = program.copy_model(given.model)
        drawn = predictive.latent_sites(poutine.trace(model.guide).get_trace(given.x, u=given.u))
    assert set(drawn) == set(given.theta)


def test_dims_name_every_axis_of_every_site(given):
    assert set(given.model.dims) == set(given.theta)
    for site, names in given.model.dims.items():
        assert len(names) == given.theta[site].ndim, site
    latents = fitted(given).latents(given.x, u=given.u, draws=2) if given.model.coords else xr.Dataset()
    for axis, labels in given.model.coords.items():
        sizes = {given.theta[s].shape[n.index(axis)] for s, n in given.model.dims.items() if axis in n}
        assert sizes | {size for name, size in latents.sizes.items() if name == axis} == {len(labels)}


def test_the_same_seed_gives_the_same_fit_and_global_generators_do_not_move(given):
    state, weights = torch.get_rng_state(), copy.deepcopy(given.model.state_dict())
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = fitted(given), fitted(given)
    one, two = (fit.log_likelihood(given.x, draws=4, u=given.u, random_seed=1) for fit in (first, second))
    xr.testing.assert_identical(one, two)
    assert first.history.equals(second.history)
    assert torch.get_rng_state().equal(state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert all(value.equal(weights[name]) for name, value in given.model.state_dict().items())


def test_a_loaded_fit_answers_bit_for_bit(given, tmp_path):
    fit = fitted(given)
    fit.save(tmp_path / "fit")
    own = None if type(given.model).__module__.startswith("ppgen.") else type(given.model)
    again = ppgen.load(tmp_path / "fit", model=own)
    for ask in (
        lambda f: f.log_likelihood(given.x, draws=3, u=given.u, random_seed=1),
        lambda f: f.impute(given.x, draws=2, u=given.u, random_seed=1),
        lambda f: f.latents(given.x, draws=2, u=given.u, random_seed=1) if given.timed else xr.Dataset(),
    ):
        xr.testing.assert_identical(ask(again), ask(fit))


def test_arviz_gets_every_site_with_dims_and_coords(given):
    tree = fitted(given).to_arviz(given.x, draws=3, u=given.u)
    for site, axes in given.model.dims.items():
        names = [axis for axis in axes if axis not in OF_ONE]  # these are one long by design, and not shown
        assert tree["posterior"][site].dims == ("chain", "draw", *names)
        assert tree["prior"][site].dims == ("chain", "draw", *names)
    for axis, labels in given.model.coords.items():
        if axis in tree["posterior"].dims:
            assert list(tree["posterior"][axis].values) == list(labels)
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", *given.model.data_dims)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", given.model.data_dims[0])
