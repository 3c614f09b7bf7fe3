"""Conjugate exponential families: priors whose posteriors are of the same kind."""

from ppgen.families.beta import Beta
from ppgen.families.dirichlet import Dirichlet
from ppgen.families.family import Factor, Family, Natural, Sampler
from ppgen.families.gamma import Gamma
from ppgen.families.jumps import JumpDirichlet
from ppgen.families.matrix_normal_gamma import MatrixNormalGamma
from ppgen.families.matrix_normal_inverse_wishart import MatrixNormalInverseWishart
from ppgen.families.normal import Normal
from ppgen.families.normal_gamma import NormalGamma, SphericalNormalGamma
from ppgen.families.normal_inverse_wishart import NormalInverseWishart

__all__ = [
    "Beta",
    "Dirichlet",
    "Factor",
    "Family",
    "Gamma",
    "JumpDirichlet",
    "MatrixNormalGamma",
    "MatrixNormalInverseWishart",
    "Natural",
    "Normal",
    "NormalGamma",
    "NormalInverseWishart",
    "Sampler",
    "SphericalNormalGamma",
]
