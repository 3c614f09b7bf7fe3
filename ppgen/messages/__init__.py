"""Exact inference in chains and mixtures: pure tensor functions, and the compiled kernels beside them."""

from ppgen.messages.components import Mixture, mixture
from ppgen.messages.discrete.chain import DiscreteChain, discrete_chain
from ppgen.messages.gaussian.chain import GaussianChain, gaussian_chain

__all__ = ["DiscreteChain", "GaussianChain", "Mixture", "discrete_chain", "gaussian_chain", "mixture"]
