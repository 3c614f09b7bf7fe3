"""Conjugate exponential families and the emissions built on them."""

from ppgen.families.autoregressive import Autoregressive
from ppgen.families.bernoulli import Bernoulli
from ppgen.families.beta import Beta
from ppgen.families.categorical import Categorical
from ppgen.families.completion import Completion
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.emission import Emission
from ppgen.families.family import Factor, Family, Natural, Sampler
from ppgen.families.gamma import Gamma
from ppgen.families.gaussian import Gaussian
from ppgen.families.matrix_normal import MatrixNormal, PrecisionNormal
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart
from ppgen.families.normal_gamma import NormalGamma
from ppgen.families.normal_inverse_wishart import NormalInverseWishart
from ppgen.families.poisson import Poisson
from ppgen.families.subspace import Subspace
from ppgen.families.wishart import WishartCholesky

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Completion",
    "Dirichlet",
    "Emission",
    "Factor",
    "Family",
    "Gamma",
    "Gaussian",
    "MatrixNormal",
    "MatrixNormalInverseWishart",
    "Natural",
    "NormalGamma",
    "NormalInverseWishart",
    "Poisson",
    "PrecisionNormal",
    "Sampler",
    "Subspace",
    "WishartCholesky",
]
