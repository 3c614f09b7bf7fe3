"""Conjugate exponential families and the emissions built on them."""

from ppgen.families.beta import Beta
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Factor, Family, Natural, Sampler
from ppgen.families.gamma import Gamma
from ppgen.families.matrix_normal import MatrixNormal, PrecisionNormal
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart
from ppgen.families.normal_gamma import NormalGamma
from ppgen.families.normal_inverse_wishart import NormalInverseWishart
from ppgen.families.wishart import WishartCholesky

__all__ = [
    "Beta",
    "Dirichlet",
    "Factor",
    "Family",
    "Gamma",
    "MatrixNormal",
    "MatrixNormalInverseWishart",
    "Natural",
    "NormalGamma",
    "NormalInverseWishart",
    "PrecisionNormal",
    "Sampler",
    "WishartCholesky",
]
