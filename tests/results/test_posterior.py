import pytest
import torch

from ppgen.errors import FitError
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.normal_inverse_wishart import NormalInverseWishart
from ppgen.model import Factor
from ppgen.results import Draws, Factors
from ppgen.results.posterior import evenly


@pytest.fixture
def factors():
    p = Factor(Dirichlet("p"), {"log_probability": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()})
    family = NormalInverseWishart()
    named = {"location": torch.ones(3, 2), "strength": 2.0, "scale": torch.eye(2), "degrees": 5.0}
    eta = family.natural(**{k: torch.as_tensor(v).double() for k, v in named.items()})
    return Factors({"p": p, "emission": Factor(family, eta)}, {"usage": torch.tensor([0.5, 0.5]).double()})


def test_draws_of_factors_hold_every_site_and_every_point(factors):
    theta = factors.draws(7)
    assert {site: tuple(value.shape) for site, value in theta.items()} == {
        "usage": (7, 2),
        "p": (7, 2, 2),
        "precision_cholesky": (7, 3, 2, 2),
        "location": (7, 3, 2),
    }
    assert (theta["usage"] == 0.5).all()
    assert {site: value.shape[:2] for site, value in factors.chains(7).items()} == dict.fromkeys(theta, (1, 7))


def test_the_density_of_draws_is_that_of_each_draw_alone(factors):
    theta = factors.draws(5)
    together = factors.log_prob(theta)
    alone = [factors.log_prob({site: value[i : i + 1] for site, value in theta.items()}) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_density_of_factors_integrates_the_ratio_to_one(factors):
    """E_q[p/q] = 1 for a narrower p, every factor and site included; |z| < 4.4 is a false-alarm rate of 1e-5."""
    narrower = {
        name: Factor(factor.family, {key: 1.2 * value for key, value in factor.eta.items()})
        for name, factor in factors.factors.items()
    }
    theta = factors.draws(20_000)
    weights = (Factors(narrower).log_prob(theta) - factors.log_prob(theta)).exp()
    assert weights.std() > 0.2
    assert abs(weights.mean() - 1) < 4.4 * weights.std() / 20_000**0.5


def test_draws_are_spread_evenly_over_chains():
    draws = Draws({"a": torch.arange(12).reshape(3, 4)}, {"energy": torch.arange(12.0).reshape(3, 4)})
    assert draws.draws(6)["a"].tolist() == [0, 2, 4, 6, 8, 10]
    assert draws.draw_stats(6)["energy"].tolist() == [0, 2, 4, 6, 8, 10]
    assert draws.chains(2)["a"].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert draws.chain_stats(2)["energy"].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert draws.chains(99)["a"].equal(draws.sites["a"])
    assert torch.bincount(draws.draws(30)["a"]).min() >= 2


def test_even_indices_are_distinct_and_ordered():
    for total in (1, 5, 17):
        for n in range(1, total + 1):
            index = evenly(total, n).tolist()
            assert index == sorted(set(index))
            assert 0 <= index[0] <= index[-1] < total


@pytest.mark.parametrize(
    "sites", [{}, {"a": torch.zeros(3)}, {"a": torch.zeros(2, 0)}, {"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}]
)
def test_draws_of_unequal_shape_are_refused_in_words(sites):
    with pytest.raises(FitError, match=r"Draws: every site must have shape \(chains, draws, ...\)"):
        Draws(sites)


def test_posteriors_move_between_devices(factors):
    moved = factors.to("meta")
    assert {value.device.type for factor in moved.factors.values() for value in factor.eta.values()} == {"meta"}
    assert Draws({"a": torch.zeros(1, 1)}).to("meta").sites["a"].device.type == "meta"
