"""Stochastic variational inference."""

from ppgen.inference.svi.engine import fit

__all__ = ["fit"]
