"""Many data sets sampled together: each must be what it would be alone."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppgen.emissions.gaussian import Gaussian
from ppgen.errors import FitError
from ppgen.inference.calibration.replications import Moments, Replications, sample
from ppgen.inference.calibration.shared_gaps import SharedGaps
from ppgen.inference.calibration.simulation import joint
from ppgen.inference.mcmc.starts import _replaced
from ppgen.models.hmm import HMM
from ppgen.programs.density import density

OPTIONS = {
    "chains": 4, "tune": 60, "draws": 50, "target_accept": None, "max_tree_depth": 6, "mode": "traced",
}  # fmt: skip


def hidden_markov(covariance="full"):
    x = torch.zeros(2, 6, 2, dtype=torch.float64)
    x[0, 1, 0] = x[0, 2] = x[1, 4:] = math.nan
    return joint(HMM(2, emission=Gaussian(2, covariance=covariance)), (x,))


def scaled(scale, x):
    """Data with a scale that is observed and differs by orders of magnitude: narrow and wide posteriors."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1e3))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 3.0), obs=scale)
    with pyro.plate("row", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


def stacked(joint, sets):
    data = [joint.simulate(seed).data for seed in range(sets)]
    if isinstance(data[0], torch.Tensor):
        return torch.stack(data)
    return {name: torch.stack([one[name] for one in data]) for name in data[0]}


@pytest.mark.parametrize(
    "program",
    [hidden_markov, lambda: hidden_markov("diagonal"), lambda: joint(scaled, (torch.ones(()), torch.zeros(3)))],
)
def test_every_row_has_the_density_of_its_own_data(program):
    prepared = program()
    data, target = stacked(prepared, 3), None
    target = Replications(prepared.density, data, 2)
    v = target.start(6, torch.Generator().manual_seed(0))
    gradient = target.batch(lambda gradient: gradient, [v], mode="traced")
    value, slope = gradient(v)
    for r in range(3):
        one = data[r] if isinstance(data, torch.Tensor) else {name: values[r] for name, values in data.items()}
        alone = density(prepared.program, one)
        wanted = alone.value_and_grad(v[2 * r : 2 * r + 2])
        torch.testing.assert_close(value[2 * r : 2 * r + 2], wanted[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(slope[2 * r : 2 * r + 2], wanted[1], rtol=1e-10, atol=1e-10)


def test_coordinates_go_there_and_back_and_gradients_with_them():
    prepared = hidden_markov("diagonal")
    target = Replications(prepared.density, stacked(prepared, 3), 2)
    v = target.start(6, torch.Generator().manual_seed(0))
    gradient = target.batch(lambda gradient: gradient, [v], mode="traced")
    plain = gradient(v)[1]
    moments = Moments.empty(v.unflatten(0, (3, 2)), target.root)
    noise, scales = torch.Generator().manual_seed(1), torch.tensor([1.0, 5.0, 0.1])[:, None, None]
    for _ in range(60):
        moments.learn(scales * torch.randn(3, 2, v.shape[1], generator=noise, dtype=torch.float64))
    target.fit(moments)
    target.log_stretch = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
    y = target.within(v)
    torch.testing.assert_close(target.unwhitened(y), v)
    value, slope = gradient(y)
    change = 1e-6 * torch.randn(y.shape, generator=noise, dtype=torch.float64)
    torch.testing.assert_close(gradient(y + change)[0] - value, (slope * change).sum(-1), rtol=1e-3, atol=1e-9)
    assert not torch.allclose(plain, slope)
    sizes = (target.stretch * target.root).diagonal(dim1=1, dim2=2).mean(1)
    assert sizes[1] > 2 * sizes[0] > 10 * sizes[2]


def test_gaps_that_differ_between_data_sets_are_refused():
    def seen(row):
        with SharedGaps():
            return torch.func.grad(lambda scale: (scale * row[~torch.isnan(row * 1)]).sum())(torch.ones(()))

    x = torch.ones(3, 4)
    x[1, 2] = math.nan
    with pytest.raises(FitError, match="same gaps"):
        torch.func.vmap(seen)(x)
    x[:, 2] = math.nan
    assert torch.func.vmap(seen)(x).tolist() == [3.0, 3.0, 3.0]


def test_what_depends_on_parameters_is_not_taken_for_a_gap():
    def seen(row, theta):
        with SharedGaps():
            return torch.func.vmap(lambda one: torch.isnan(row * one).sum())(theta)

    theta = torch.tensor([[1.0, math.nan], [math.nan, 2.0]])
    assert torch.func.vmap(seen)(torch.ones(2, 3), theta).tolist() == [[0, 3], [3, 0]]


@pytest.mark.parametrize("sampler", ["chees", "nuts"])
def test_easy_and_hard_data_sets_are_sampled_alike(sampler):
    """Posterior sds from 1e-3 to 1e3 in one batch; the false-alarm rate of each of the two bounds is below 1e-5."""
    prepared = joint(scaled, (torch.ones(()), torch.zeros(5)))
    data = stacked(prepared, 200)
    found = sample(prepared.density, data, 0, sampler=sampler, **OPTIONS)
    precision = 1e-6 + 5 / data["scale"] ** 2
    mean = data["x"].sum(-1) / data["scale"] ** 2 / precision
    z = (found.v[..., 0].flatten(1) - mean[:, None]) * precision.sqrt()[:, None]  # (R, C S)
    assert found.usable.all()
    assert precision.max() / precision.min() > 1e9
    centre = z.mean(1)
    assert float(centre.mean().abs() / (centre.std() / 200**0.5)) < 4.5
    spread = z.square().mean(1)
    assert abs(float(spread.mean()) - 1) < 4.5 * float(spread.std()) / 200**0.5
    assert float(spread.min()) > 0.4


def test_a_data_set_that_cannot_be_scored_is_lost_alone():
    prepared = joint(scaled, (torch.ones(()), torch.zeros(5)))
    data = stacked(prepared, 6)
    data["x"][3, 0] = math.nan
    found = sample(prepared.density, data, 0, sampler="chees", **OPTIONS)
    assert found.usable.tolist() == [True, True, True, False, True, True]
    assert torch.isfinite(found.v[found.usable]).all()


def test_the_same_seed_gives_the_same_draws():
    prepared = joint(scaled, (torch.ones(()), torch.zeros(5)))
    data = stacked(prepared, 5)
    one, two = (sample(prepared.density, data, seed, sampler="chees", **OPTIONS).v for seed in (4, 4))
    assert one.equal(two)


def test_chains_in_two_modes_keep_their_own_centres():
    origin = torch.tensor([[[-50.0], [50.0]], [[0.0], [0.1]]], dtype=torch.float64)
    moments = Moments.empty(origin, torch.ones(2, 1, 1, dtype=torch.float64))
    noise = torch.Generator().manual_seed(0)
    for _ in range(200):
        moments.learn(origin + torch.randn(2, 2, 1, generator=noise, dtype=torch.float64))
    centre, root = moments.coordinates(torch.zeros_like(origin), torch.ones(2, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(centre[0], origin[0], atol=0.4, rtol=0.0)
    assert centre[1, 0].equal(centre[1, 1])
    torch.testing.assert_close(root, torch.ones_like(root), atol=0.2, rtol=0.0)


def test_hopeless_paths_are_replaced_by_others_of_their_own_density():
    good = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    assert _replaced(good).tolist() == [0, 2, 2, 3, 4, 5, 7, 7, 7]
