import pytest
import torch
from torch.distributions.constraints import real_vector

from ppgen.errors import DataError
from ppgen.families.beta import Beta
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Factor, Family
from ppgen.families.gamma import Gamma
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart
from ppgen.families.normal_gamma import NormalGamma, SphericalNormalGamma
from ppgen.families.normal_inverse_wishart import NormalInverseWishart
from ppgen.families.parameters import VariationalFactor


def positive(*shape):
    return torch.rand(*shape, dtype=torch.float64) * 3 + 0.01


def definite(*shape):
    root = torch.randn(*shape, shape[-1], dtype=torch.float64)
    return root @ root.mT + 0.1 * torch.eye(shape[-1], dtype=torch.float64)


FACTORS = {
    "Dirichlet": lambda: (Dirichlet("p"), {"concentration": positive(3, 4) * 1e-3}),
    "Beta": lambda: (Beta("p"), {"one": positive(3), "zero": positive(3)}),
    "Gamma": lambda: (Gamma("r"), {"shape": positive(3), "rate": positive(3)}),
    "NormalGamma": lambda: (
        NormalGamma(),
        {"location": positive(3, 2), "strength": positive(3, 2), "shape": positive(3, 2), "rate": positive(3, 2)},
    ),
    "SphericalNormalGamma": lambda: (
        SphericalNormalGamma(),
        {"location": positive(3, 2), "strength": positive(3, 2), "shape": positive(3), "rate": positive(3)},
    ),
    "NormalInverseWishart": lambda: (
        NormalInverseWishart(),
        {"location": positive(3, 2), "strength": positive(3), "scale": definite(3, 2), "degrees": positive(3) + 1},
    ),
    "MatrixNormalInverseWishart": lambda: (
        MatrixNormalInverseWishart(),
        {
            "location": torch.randn(3, 2, 5, dtype=torch.float64),
            "column_precision": definite(3, 5),
            "scale": definite(3, 2),
            "degrees": positive(3) + 1,
        },
    ),
}


@pytest.fixture(params=FACTORS)
def factor(request):
    family, named = FACTORS[request.param]()
    return Factor(family, family.natural(**named))


def test_a_trainable_factor_starts_as_its_factor(factor):
    again = VariationalFactor(factor).factor()
    for name, value in factor.eta.items():
        torch.testing.assert_close(again.eta[name], value, rtol=1e-9, atol=1e-12)


def test_its_parameters_can_be_anything_and_the_factor_stays_proper(factor):
    trainable = VariationalFactor(factor)
    with torch.no_grad():
        for parameter in trainable.parameters():
            parameter.copy_(torch.randn_like(parameter) * 2)
    trained = trainable.factor()
    trained.family.check({name: value.detach() for name, value in trained.eta.items()})


def test_gradients_descend_to_another_factor_of_the_family(factor):
    """Kullback-Leibler divergence to a wider factor falls, with a finite gradient for every parameter."""
    trainable = VariationalFactor(factor)
    target = {name: 1.5 * value for name, value in factor.eta.items()}
    optimizer = torch.optim.Adam(trainable.parameters(), lr=0.02)

    def divergence():
        return factor.family.kl(trainable.factor().eta, target).sum()

    before = float(divergence().detach())
    for _ in range(150):
        optimizer.zero_grad()
        loss = divergence()
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in trainable.parameters())
        optimizer.step()
    assert float(loss.detach()) < 0.3 * before


def test_each_textbook_parameter_is_within_what_its_family_says(factor):
    named, constraints = factor.family.named(factor.eta), factor.family.constraints(factor.eta)
    assert set(named) == set(constraints)
    for name, value in named.items():
        assert constraints[name].check(value).all()


class Vector(Family):
    """A normal with unit variance, whose textbook parameter is a vector of any sign that no other family names."""

    event_dims = {"linear": 1}
    sites = ("m",)

    def natural(self, *, vector):
        return {"linear": vector}

    def named(self, eta):
        return {"vector": eta["linear"]}

    def log_normalizer(self, eta):
        return eta["linear"].square().sum(-1) / 2

    def expected(self, eta):
        return eta

    def statistic(self, theta):
        return {"linear": theta["m"]}

    def draw(self, eta, sample):
        return {"m": sample("m", torch.distributions.Normal(eta["linear"], 1.0))}

    def _check_proper(self, eta):
        pass


class Declared(Vector):
    def constraints(self, eta):
        return {"vector": real_vector}


def test_the_transform_follows_from_the_constraint_and_not_from_the_name():
    eta = {"linear": torch.tensor([-2.0, 0.5], dtype=torch.float64)}
    torch.testing.assert_close(VariationalFactor((Declared(), eta)).factor().eta, eta)
    with pytest.raises(DataError, match=r"Vector: constraints must give (.|\n)* \['vector'\] are missing"):
        VariationalFactor((Vector(), eta))


def test_an_improper_factor_is_refused():
    with pytest.raises(DataError, match="concentration must be positive"):
        VariationalFactor(Factor(Dirichlet("p"), {"log_probability": torch.tensor([1.0, -1.0])}))
