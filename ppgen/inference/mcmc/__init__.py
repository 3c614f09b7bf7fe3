"""Hamiltonian Monte Carlo on many chains."""

from ppgen.inference.mcmc.engine import fit

__all__ = ["fit"]
