"""Distributions that Pyro and torch lack."""

from ppgen.distributions.matrix_normal import MatrixNormal, PrecisionNormal
from ppgen.distributions.observed import observed
from ppgen.distributions.wishart import WishartCholesky

__all__ = ["MatrixNormal", "PrecisionNormal", "WishartCholesky", "observed"]
