"""Exact inference in chains and mixtures: pure tensor functions, and the compiled kernels beside them."""

from ppgen.messages.discrete import DiscreteChain, discrete_chain

__all__ = ["DiscreteChain", "discrete_chain"]
