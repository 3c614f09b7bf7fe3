"""Exact inference in chains and mixtures: pure tensor functions, and the compiled kernels beside them."""

from ppgen.messages.discrete import DiscreteChain, discrete_chain
from ppgen.messages.gaussian import GaussianChain, gaussian_chain

__all__ = ["DiscreteChain", "GaussianChain", "discrete_chain", "gaussian_chain"]
